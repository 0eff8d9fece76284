"""The context probe: tasks against slow loops, cells that repeat, and what the blocks are for."""

import json

import cv2
import pytest
import torch
from torch import Generator

from mmattn.analysis import probe as module
from mmattn.analysis.probe import run_probe
from mmattn.analysis.probe_network import (
    GROUPS,
    Cell,
    ProbeNetwork,
    build_block,
    held_out,
    measure,
    refusal,
    rows,
)
from mmattn.analysis.probe_results import ProbeResults, conclusions, table
from mmattn.analysis.probe_tasks import COLOURS, IGNORED, REACH, SIZE, TASKS
from mmattn.blocks.base import AttentionBlock, registered_blocks
from mmattn.cli.main import main
from mmattn.errors import UsageError
from mmattn.registry import MODELS

PLACES = [(row, column) for row in range(SIZE) for column in range(SIZE)]


def painted(image, channels):
    """(channel, row, column) of what is not 0."""
    return [(k, r, c) for k in channels for r, c in PLACES if image[k, r, c] != 0]


def by_marker(image):
    ((colour, row, column),) = painted(image, range(4))
    return {(r, c): colour for r, c in PLACES if abs(r - row) > 2 and abs(c - column) > 2}


def by_row(image):
    markers = painted(image, range(4))
    assert sorted(colour for colour, _, _ in markers) == [0, 1, 2, 3]
    asked = range(6, 12) if max(column for _, _, column in markers) < 4 else range(6)
    return {(row, c): colour for colour, row, _ in markers for c in asked}


def by_column(image):
    return {(r, c): colour for (c, r), colour in by_row(image.transpose(1, 2)).items()}


def by_lookup(image):
    colours = {(r, c): colour - 16 for colour, r, c in painted(image, range(16, 20))}
    values = {key: colours[r, c + 1] for key, r, c in painted(image, range(8))}
    assert sorted(values.values()) == [0, 1, 2, 3]
    return {(r, c): values[key - 8] for key, r, c in painted(image, range(8, 16))}


def by_count(image):
    number = len(painted(image, [0]))
    return {(r, c): number - 1 for r in range(12) for c in (10, 11)}


def by_largest(image):
    marks = painted(image, range(4))
    assert [sum(k == colour for k, _, _ in marks) for colour in range(4)] == [3] * 4
    best, _, _ = max(marks, key=lambda mark: image[mark])
    return {(r, c): best for r in range(12) for c in (10, 11)}


def by_shift(image):
    colours = {(r, c): colour for colour, r, c in painted(image, range(4))}
    top, left = min(colours)
    assert len(colours) == 36 and max(abs(top - 3), abs(left - 3)) >= 2
    return {(r - top + 3, c - left + 3): colour for (r, c), colour in colours.items()}


def by_scale(image):
    radius = 2 if image[4, :, -1].all() else 4
    assert image[4:].sum() == 12 and image[:4].sum() == 32
    found = {}
    for r, c in [(4, 4), (4, 5), (7, 4), (7, 5)]:
        dots = [(r - radius, c), (r + radius, c), (r, c - radius), (r, c + radius)]
        (found[r, c],) = {k for k in range(4) for i, j in dots if image[k, i, j]}
    return found


def by_channel(image):
    (group,) = {k - 16 for k, _, _ in painted(image, range(16, 20))}
    found = painted(image, range(4 * group, 4 * group + 4))
    assert len(found) == 144
    return {(r, c): k - 4 * group for k, r, c in found if c < 9}


RULES = {name: globals()[f'by_{name}'] for name in TASKS}


@pytest.mark.parametrize('name', TASKS)
def test_a_rule_finds_every_answer_in_the_image(name):
    """So the ceiling is 100 %, and nothing else is asked."""
    images, targets = TASKS[name].draw(Generator().manual_seed(3), 24, SIZE)
    assert images.shape == (24, TASKS[name].channels, SIZE, SIZE)
    for image, target in zip(images, targets, strict=True):
        asked = {(r, c): int(target[r, c]) for r, c in PLACES if target[r, c] != IGNORED}
        assert asked == RULES[name](image)


HIDDEN = dict.fromkeys(('marker', 'row', 'column', 'count', 'largest'), range(4))
HIDDEN |= dict(lookup=range(8), scale=range(4, 6), channel=range(16, 20))


@pytest.mark.parametrize('name', HIDDEN)
def test_what_gives_the_answer_is_out_of_reach(name):
    """`by_shift` and `by_scale` show it for the picture and the dots."""
    images, targets = TASKS[name].draw(Generator().manual_seed(4), 24, SIZE)
    for image, target in zip(images, targets, strict=True):
        for _, row, column in painted(image, [k for k in HIDDEN[name] if k < len(image)]):
            near = target[max(0, row - REACH) : row + REACH + 1]
            near = near[:, max(0, column - REACH) : column + REACH + 1]
            assert (near == IGNORED).all()


@pytest.mark.parametrize('name', TASKS)
def test_a_constant_answer_is_at_chance(name):
    _, target = held_out(name)
    asked = target[target != IGNORED]
    for colour in range(COLOURS):
        assert 0.2 < (asked == colour).double().mean() < 0.3


def test_a_network_without_a_block_sees_three_pixels_and_the_control_five():
    for row, reach in ('none', 1), ('conv3x3', 2):
        x = torch.zeros(1, 3, 11, 13, requires_grad=True)
        ProbeNetwork(3, row)(x)[0, :, 5, 6].sum().backward()
        seen = x.grad.abs().sum((0, 1)).nonzero()
        assert seen.amin(0).tolist() == [5 - reach, 6 - reach]
        assert seen.amax(0).tolist() == [5 + reach, 6 + reach]


def test_every_registered_block_has_a_row_and_takes_a_step():
    listed = {row.partition(' ')[0] for blocks in GROUPS.values() for row in blocks}
    assert set(registered_blocks()) | {'none', 'conv3x3'} == listed
    x, target = TASKS['marker'].draw(Generator().manual_seed(0), 4, SIZE)
    for row in rows():
        network = ProbeNetwork(COLOURS, row)
        torch.nn.functional.cross_entropy(network(x), target).backward()
        # of `none` the asked pixels see zeros alone, so its first kernel has no gradient
        assert refusal(row) is None and network.first.bias.grad.abs().sum() > 0, row


def test_a_cell_repeats_whatever_went_before():
    cell = measure('SE', 'marker', 0, steps=4)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert measure('SE', 'marker', 0, steps=4) == cell
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), before)
    others = [('SE', 'marker', 1), ('SE', 'row', 0), ('SCSE', 'marker', 0)]
    prints = {measure(*unit, steps=4).fingerprint for unit in others}
    assert len(prints | {cell.fingerprint}) == 4


@pytest.fixture
def measured(monkeypatch):
    """The units that are measured in this process."""
    units = []

    def watched(*unit):
        units.append(unit[:3])
        return measure(*unit)

    monkeypatch.setattr(module, 'measure', watched)
    return units


def test_a_run_goes_on_with_what_is_missing(measured, tmp_path, capsys):
    path = tmp_path / 'probe.json'
    options = dict(steps=2, json_path=path, tasks=['marker', 'c*t'])
    run_probe(['none', 'se'], seeds=range(2), **options)
    first = path.read_text()
    assert len(measured) == 8 and measured[0] == ('none', 'marker', 0)
    assert json.loads(first)['cells'][0]['block'] == 'SE'
    printed = capsys.readouterr().out
    assert '| block | marker | count |' in printed and '| *chance* | *25* | *25* |' in printed
    run_probe(['none', 'se', 'eca'], seeds=range(2), resume=True, **options)
    assert measured[8:] == [
        ('ECA', task, seed) for seed in range(2) for task in ('marker', 'count')
    ]
    capsys.readouterr()
    run_probe(['se'], seeds=[1], resume=True, **options)  # prints all that the file has
    assert len(measured) == 12 and '| ECA | ' in capsys.readouterr().out
    with pytest.raises(UsageError, match='was measured with steps 2, this is 3'):
        run_probe(['se'], resume=True, **options | dict(steps=3))
    run_probe(['none', 'se'], seeds=range(2), **options)
    assert path.read_text() == first


def test_two_processes_give_the_same_and_a_file_is_compared(tmp_path, capsys):
    path, other = tmp_path / 'probe.json', tmp_path / 'other.json'
    options = ['--blocks', 'se', '--tasks', 'row', 'count', '--steps', '3', '--json']
    assert main(['probe', *options, str(path), '--jobs', '1', '--seeds', '1']) == 0
    command = ['probe', *options, str(other), '--jobs', '2', '--seed', '0', '--against', str(path)]
    assert main(command) == 0
    assert '2 cells are equal, bit for bit, to those of' in capsys.readouterr().out
    assert other.read_text() == path.read_text()
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    assert main([*command, '--resume']) == 1
    said = capsys.readouterr().err
    assert 'error: 2 of 2 cells differ from those of' in said and 'SE on row, seed 0: ' in said


@pytest.mark.parametrize(
    'arguments, text',
    [
        (['--blocks', 'nonlocal'], "--blocks 'nonlocal' fits no name. Did you mean NonLocal2d?"),
        (['--tasks', 'rows'], "--tasks 'rows' fits no name. Did you mean row?"),
        (['--seeds', '0'], 'with 0 seeds: allowed are numbers from 1'),
        (['--seed', '-1'], 'seeds from 0'),
        (['--steps', '0'], '--steps 0'),
        (['--against', 'none.json'], 'none.json cannot be read'),
    ],
)
def test_what_is_refused(arguments, text, capsys):
    assert main(['probe', *arguments]) == 2
    said = capsys.readouterr().err
    assert text in said and 'Traceback' not in said


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / 'other.json'
    path.write_text('{"rows": []}')
    with pytest.raises(UsageError, match='has no results of the probe'):
        ProbeResults.load(path)


def test_a_block_of_ones_own_is_measured_or_left_out_with_the_reason(request, capsys):
    class Own(AttentionBlock):
        _abbr_, kind = 'own', 'channel'

        def __init__(self, in_channels, init='paper'):
            super().__init__(in_channels, init)
            self._check(self.allowed, 'allowed never')

        def forward(self, x):
            return x / 2

    for name, allowed in ('OwnBlock', True), ('NoBlock', False):
        MODELS.register_module()(type(name, (Own,), dict(allowed=allowed)))
        request.addfinalizer(lambda name=name: MODELS.module_dict.pop(name))
    results = run_probe(['own*', 'nobl*'], ['row'], [0], steps=2)
    printed = capsys.readouterr().out
    assert list(results.left_out) == ['NoBlock'] and len(results.cells) == 1
    assert '| NoBlock | - |' in printed and 'left out: NoBlock: NoBlock: allowed never' in printed
    with pytest.raises(UsageError, match="no block 'Nothing'. There are: none"):
        build_block('Nothing')


def filled():
    """Results with known figures."""
    results = ProbeResults(dict(torch='2'))
    for block, task, shares in [
        ('none', 'row', (24, 26)), ('none', 'shift', (40, 40)), ('SE', 'row', (25, 25)),
        ('MHSA', 'row', (90, 94)), ('PAM', 'row', (44, 45)), ('PAM', 'shift', (70, 70)),
    ]:  # fmt: skip
        for seed, share in enumerate(shares):
            results.add(Cell(block, task, seed, correct=share, asked=100, fingerprint='a'))
    return results


def test_the_table_and_what_it_tells():
    results = filled()
    lines = list(table(results))
    assert lines[4:] == [
        '| none | 25.0 ± 1.4 | 40.0 ± 0.0 |',
        '| SE | 25.0 ± 0.0 | - |',
        '| PAM | 44.5 ± 0.7 | **70.0 ± 0.0** |',
        '| MHSA | **92.0 ± 2.8** | - |',
    ]
    assert list(conclusions(results)) == [
        'row (context of a row): MHSA 92',
        'shift (undoing a shift): PAM 70',
    ]


@pytest.mark.openmmlab
def test_the_heat_map(tmp_path):
    module.plot_probe(filled(), tmp_path / 'probe.png')
    assert cv2.imread(str(tmp_path / 'probe.png')).std() > 5
