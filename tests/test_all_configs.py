"""A sample of the configs of mmdet and mmseg, over all families; `python -m tests.all_configs` has all."""

import itertools

import pytest

from tests import all_configs

_EACH = 3  # of so many families, one config
# Packages that are not there, misspelled types and lost parents: the stock tools refuse them too.
_REFUSED = (
    'convnext',
    'poolformer',
    'timm_example',
    'reid',
    'deepsort',
    'sort',
    'bytetrack',
    'classification',
)


def sample() -> list:
    found = []
    for package in 'mmdet', 'mmseg':
        families = itertools.groupby(
            all_configs.configs(package), key=lambda path: path.parent.name
        )
        firsts = [next(paths) for name, paths in families if name not in _REFUSED]
        found += firsts[::_EACH]
    return [path for path in found if 'tta' not in path.name and path.parent.name != 'common']


SAMPLE = sample()


def test_the_sample_is_over_the_families():
    assert len(SAMPLE) >= 45 and len({path.parent for path in SAMPLE}) == len(SAMPLE)


@pytest.mark.parametrize('part', range(4))
def test_what_comes_with_the_packages_is_accepted(part):
    refusals = {path.name: all_configs.refusal(path) for path in SAMPLE[part::4]}
    assert {name: text for name, text in refusals.items() if text} == {}


@pytest.mark.parametrize(
    'package, path, ours, stock',
    [
        ('mmseg', 'poolformer/fpn_poolformer_s12_8xb4-40k_ade20k-512x512.py', 'mmpretrain', 'ImportError'),
        (
            'mmdet', 'bytetrack/bytetrack_yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17test.py',
            'No such file', 'FileNotFoundError',
        ),
        ('mmdet', 'reid/reid_r50_8xb32-6e_mot15train80_test-mot15val20.py', 'Is mmpretrain installed', 'mmpretrain'),
    ],
)  # fmt: skip
def test_what_is_refused_the_stock_tools_refuse_too(package, path, ours, stock):
    file = next(p for p in all_configs.configs(package) if p.as_posix().endswith(path))
    assert ours in all_configs.refusal(file)
    assert stock in all_configs.stock_error(file)
