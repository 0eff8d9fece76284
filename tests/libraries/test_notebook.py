"""The notebook about torchvision runs where torchvision is installed."""

import tempfile
from pathlib import Path

import pytest

from tests.notebooks import execute, pictures, printed

pytest.importorskip('torchvision', reason='torchvision is not installed here')


def test_attention_in_torchvision():
    with tempfile.TemporaryDirectory() as folder:
        notebook, found = execute(
            'attention_in_torchvision',
            Path(folder),
            dict(iterations=2, size=96),
            dict(
                difference='float(difference / largest)',
                changed='changed',
                paths='paths',
                losses='[sum(losses.values()) for losses in history]',
                maps='sorted(maps)',
            ),
        )
    assert found['difference'] < 1e-5  # new blocks are the identity
    assert len(found['paths']) == 13 + 1 + 4 and found['changed'] == found['paths']
    assert found['maps'] == sorted(found['paths'])
    assert len(found['losses']) == 2 and all(0 < loss < 100 for loss in found['losses'])
    assert len(pictures(notebook)) == 3
    assert '18 blocks: ' in printed(notebook)
