"""The page from kernel regression to attention runs, and its claims hold."""

import math
import re

import matplotlib
import pytest
import torch
import yaml
from matplotlib import pyplot

from tests.conftest import ROOT

PATH = ROOT / 'docs' / 'kernel_regression.md'
PAGE = PATH.read_text(encoding='utf-8')
CELLS = re.findall(r'^```\{code-cell\} python\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)


def run(number: int, namespace: dict) -> None:
    """Execute one cell."""
    exec(compile(CELLS[number], f'{PATH.name}, cell {number}', 'exec'), namespace)


@pytest.fixture(scope='module')
def page():
    """The names that the cells define, after all of them have run; and the axes of each figure."""
    namespace = {}
    with matplotlib.rc_context():
        pyplot.switch_backend('agg')
        pyplot.close('all')
        for number in range(len(CELLS)):
            run(number, namespace)
        namespace['drawn'] = [pyplot.figure(n).axes for n in pyplot.get_fignums()]
        yield namespace
        pyplot.close('all')


def left_out_error(page, width):
    """Root mean square of the leave-one-out errors, by loops."""
    times, levels, squares = page['t'].tolist(), page['y'].tolist(), []
    for i, (time, level) in enumerate(zip(times, levels)):
        total, weighted = 0, 0
        for j in range(len(times)):
            if j != i:
                weight = math.exp(-((time - times[j]) ** 2) / (2 * width**2))
                total, weighted = total + weight, weighted + weight * levels[j]
        squares.append((level - weighted / total) ** 2)
    return math.sqrt(sum(squares) / len(squares))


def test_it_is_a_notebook_for_myst():
    """Its front matter is read by MyST-NB and jupytext, and all of its code is in cells."""
    front_matter = yaml.safe_load(PAGE.split('---\n')[1])
    assert front_matter['jupytext']['text_representation']['format_name'] == 'myst'
    assert front_matter['kernelspec']['name'] == 'python3'
    assert len(re.findall('^```', PAGE, re.MULTILINE)) == 2 * len(CELLS)
    assert 'regression_block' in CELLS[-2] and 'assert_close' in CELLS[-1]


def test_every_picture_has_labels(page):
    assert len(page['drawn']) >= 7
    for axes in page['drawn']:
        for axis in axes:
            assert axis.get_ylabel(), axis
            assert axis.get_xlabel() or axis.get_label() == '<colorbar>', axis


def test_the_learned_width_is_narrower_and_the_best(page):
    wide, learned = page['wide'], page['learned']
    assert learned < 0.5 * wide
    least = left_out_error(page, learned)
    assert least < 0.7 * left_out_error(page, wide)
    assert all(least < left_out_error(page, learned * factor) for factor in (0.8, 0.9, 1.1, 1.25))


def test_a_narrower_kernel_fits_the_tide_and_is_less_smooth(page):
    truth = page['level'](page['hours'])
    errors = [page['rms'](page[name] - truth) for name in ('mean', 'wide_curve', 'learned_curve')]
    assert errors[2] < 0.5 * errors[1] and errors[1] < errors[0]
    rough = [page['roughness'](c) for c in (page['wide_curve'], truth, page['learned_curve'])]
    assert rough == sorted(rough)
    learned, wide = (page['effective_count'](page[f'{n}_weights']) for n in ('learned', 'wide'))
    assert learned < 0.5 * wide


def test_keys_with_the_brightness_keep_the_edge(page):
    noisy, disc = page['noisy'], page['disc']
    blurred, sharp = (page['rms'](picture - disc) for picture in page['smoothed'].values())
    assert sharp < blurred < page['rms'](noisy - disc)


def random_values(block):
    torch.nn.init.normal_(block.g.conv.weight)


def scaled_scores(block):
    block.use_scale = True


def keys_without_their_norm(block):
    block.phi.conv.weight.data[1].zero_()


def other_channels_changed(block):
    block.conv_out.conv.weight.data[0, 0] = 1


@pytest.mark.parametrize(
    'change', [None, random_values, scaled_scores, keys_without_their_norm, other_channels_changed]
)
def test_the_last_cell_accepts_only_the_regression(page, change):
    """The cell raises for a block with other weights or another scale."""
    widths = page['wide'], page['learned']
    namespace = {**page, 'blocks': {width: page['regression_block'](width) for width in widths}}
    if change is None:
        run(-1, namespace)
        return
    for block in namespace['blocks'].values():
        change(block)
    with pytest.raises(AssertionError, match='not (close|equal)'):
        run(-1, namespace)


def test_what_is_linked_is_there():
    for target in re.findall(r'\]\((?!https?://|#)([^)#]+)', PAGE):
        assert PATH.parent.joinpath(target).exists(), target
