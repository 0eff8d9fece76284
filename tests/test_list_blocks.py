import math

import pytest
import torch

from mmattn.blocks.base import registered_blocks
from mmattn.errors import UsageError
from mmattn.zoo.block_pages import to_sections
from mmattn.zoo.catalogue import SIZE, list_blocks, to_markdown
from tests.conftest import ROOT
from tools import list_blocks as tool


def test_readme_has_the_table():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    start = '<!-- python tools/list_blocks.py --markdown -->\n'
    table = text.partition(start)[2].partition('<!-- end -->')[0]
    assert table == to_markdown(list_blocks()), 'run: python tools/list_blocks.py --markdown'


def test_docs_have_a_section_for_each_block():
    text = (ROOT / 'docs' / 'blocks.md').read_text(encoding='utf-8')
    start = '<!-- python tools/list_blocks.py --details -->\n'
    sections = text.partition(start)[2].partition('<!-- end -->')[0]
    assert sections == to_sections(list_blocks()), 'run: python tools/list_blocks.py --details'


def test_a_section_says_where_the_block_stands_and_what_it_records():
    text = to_sections(list_blocks('cbam'))
    assert '| Maps in a recording | `channel`, `spatial` |' in text
    assert '| --attention cbam | CBAM at the end of every residual branch' in text
    assert '- `spatial`: whether there is a spatial gate.' in text
    assert 'arXiv 1807.06521' in text and '8,564' in text


def test_the_package_offers_every_block():
    import mmattn

    names = {name for name, home in mmattn._MODULES.items() if home == 'mmattn.blocks'}
    assert names == set(registered_blocks())


def test_parameters_and_macs_of_a_block_that_can_be_counted_by_hand():
    (row,) = list_blocks('PAM')
    channels, height, width = SIZE
    inner, positions = channels // 8, height * width
    assert row.parameters == 2 * (channels + 1) * inner + (channels + 1) * channels + 1
    convs = positions * channels * (2 * inner + channels)
    assert row.macs == convs + positions**2 * (inner + channels)


def test_criss_cross_costs_its_row_and_column_alone():
    (row,) = list_blocks('crisscross*')
    channels, height, width = SIZE
    inner, positions = channels // 8, height * width
    core = positions * (height + width) * (inner + channels)
    assert math.isclose(row.macs, positions * channels * (2 * inner + channels) + core)


def test_identity_at_start_is_what_a_fresh_block_does():
    starts = {row.name: row.identity for row in list_blocks()}
    assert starts['NonLocal2d'] and starts['ContextBlock'] and not starts['SE']


@pytest.mark.parametrize(
    'pattern, names', [('se', ['SE']), ('*NONLOCAL*', ['NonLocal2d', 'SimplifiedNonLocal'])]
)
def test_pattern(pattern, names):
    assert [row.name for row in list_blocks(pattern)] == names


def test_nothing_fits():
    with pytest.raises(UsageError, match="no block fits 'xyz'. There are: AFNB, APNB"):
        list_blocks('xyz')


def test_tool(capsys):
    assert tool.main(['bam', '--markdown']) == 0
    out = capsys.readouterr().out
    assert out.count('\n') == 3 and '`BAM`' in out and '17,361' in out
    assert tool.main(['bam']) == 0
    assert '17,361' in capsys.readouterr().out
    assert tool.main(['xyz']) == 2


def test_a_block_of_the_user_is_listed():
    from mmattn.blocks import AttentionBlock
    from mmattn.registry import MODELS

    class Mine(AttentionBlock):
        """y = x."""

        _abbr_, kind = 'mine', 'none'

        def __init__(self, in_channels: int, *, init: str = 'paper') -> None:
            super().__init__(in_channels, init)
            self.weight = torch.nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x

    MODELS.register_module(module=Mine)
    try:
        (row,) = list_blocks('mine')
        assert row.parameters == 3 and row.identity and row.year is None
    finally:
        MODELS.module_dict.pop('Mine')
