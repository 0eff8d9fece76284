import json

import pytest

from mmattn.engine import benchmark
from mmattn.engine.peers import PEERS
from mmattn.errors import UsageError
from mmattn.zoo.catalogue import registered_blocks
from tools import benchmark as tool


def test_peers_are_of_registered_blocks():
    assert set(PEERS) <= set(registered_blocks())


def test_every_block_equals_its_peer_and_is_measured(tmp_path, capsys):
    """`benchmark` raises where a block and its peer differ in fp64."""
    out = tmp_path / 'benchmark.json'
    assert tool.main(['--size', '2', '128', '6', '7', '--rounds', '1', '--json', str(out)]) == 0
    rows = json.loads(out.read_text())['rows']
    assert {row['name'].split()[0] for row in rows} == set(PEERS)
    for row in rows:
        assert row['forward'] > 0 and row['kept'] > 0 and row['peak'] > 0
        cannot = row['name'] == 'NonLocal2d concatenation'  # mmcv has no backward there
        assert (row['peer_step'] is None) == cannot
    assert 'least of 1 rounds' in capsys.readouterr().out


def test_unequal_peers_are_not_timed(monkeypatch):
    monkeypatch.setitem(PEERS, 'SE', ('wrong', lambda b: lambda x: x))
    with pytest.raises(benchmark.Unequal, match='SE differs from its peer'):
        list(benchmark.benchmark('SE', (1, 32, 4, 4), 1))


def test_refused():
    with pytest.raises(UsageError, match='allowed are numbers from 1'):
        benchmark.report('SE', (1, 32, 0, 4))
    with pytest.raises(UsageError, match='8 channels do not fit: SE: reduction=16'):
        benchmark.report('SE', (1, 8, 4, 4))
