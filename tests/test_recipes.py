"""Configs that name one of MMSegmentation's as their source say the same as it."""

import ast
import json
import re
from pathlib import Path

import mmengine
import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmattn.config.index import find_config, list_models
from mmattn.config.load import load_config
from mmattn.config.names import config_text

THEIRS = Path(mmseg.__file__).parent / '.mim' / 'configs'
HUB = json.loads((Path(mmengine.__file__).parent / 'hub' / 'openmmlab.json').read_text())
SOURCES = {}
for path in map(find_config, list_models()):
    doc = ast.get_docstring(ast.parse(config_text(path) or path.read_text()))
    if found := re.search(r'Source: open-mmlab/mmsegmentation, (\S+)\.$', doc):
        SOURCES[path.stem] = found[1]


def test_all_variants_are_there():
    models = 'ccnet', 'ann', 'danet', 'nonlocal', 'gcnet'
    sizes = [f'{c}_{k}_cityscapes' for c in ('512x1024', '769x769') for k in ('40k', '80k')]
    names = {f'{m}_{net}_{size}' for m in models for net in ('r50', 'r101') for size in sizes}
    names |= {f'{m}_{net}_ade20k' for m in ('ccnet', 'ann') for net in ('r50', 'r101')}
    names |= {f'{m}_r50_512x1024_40k_cityscapes' for m in ('isanet', 'psanet', 'dnlnet')}
    names |= {'emanet_r50_512x1024_80k_cityscapes', 'ocrnet_r101_512x1024_40k_cityscapes'}
    assert set(SOURCES) == names


@pytest.mark.parametrize('name', SOURCES)
def test_equals_mmsegmentations(name):
    ours = load_config(name)
    theirs = Config.fromfile(next(THEIRS.glob(f'*/{SOURCES[name]}.py')))
    assert _plain(ours.optim_wrapper) == _plain(theirs.optim_wrapper)
    assert _plain(ours.param_scheduler) == _plain(theirs.param_scheduler)
    assert ours.train_cfg == theirs.train_cfg
    for key in 'train_dataloader', 'test_dataloader':
        mine, other = _plain(ours[key]), _plain(theirs[key])
        assert mine['batch_size'] == other['batch_size']
        for part in 'type', 'data_prefix':
            assert mine['dataset'][part] == other['dataset'][part], part
        assert mine['dataset']['pipeline'] == _pipeline(other['dataset']['pipeline'])
    assert ours.model.data_preprocessor == theirs.model.data_preprocessor
    assert ours.model.test_cfg == theirs.model.test_cfg
    weights = HUB[theirs.model.pretrained.removeprefix('open-mmlab://')]
    assert Path(ours.model.backbone.init_cfg.checkpoint).name == Path(weights).name
    mine, other = _build(ours.model), _build(theirs.model)
    first, second = mine.state_dict(), other.state_dict()
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    for (key, head), (other_key, other_head) in zip(_heads(mine), _heads(other), strict=True):
        assert key == other_key and _traits(head) == _traits(other_head)
        if type(head) is type(other_head):
            assert _options(head) == _options(other_head)


def _plain(value):
    """Without defaults, scopes and the form of sequences."""
    if isinstance(value, dict):
        defaults = dict(clip_grad=None, backend_args=None)
        return {k: _plain(v) for k, v in value.items() if k not in defaults or v != defaults[k]}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _pipeline(steps):
    """Theirs, without what changes nothing: ours leave 2048x1024 as it is, and label 0 to the set."""
    steps = [{k: v for k, v in step.items() if k != 'reduce_zero_label'} for step in steps]
    whole = dict(type='Resize', scale=[2048, 1024], keep_ratio=True)
    return [step for step in steps if step != whole]


def _build(model):
    model = model.copy()
    model.pop('pretrained', None)
    model.backbone.init_cfg = None
    init_default_scope('mmseg')
    with torch.device('meta'):
        return MODELS.build(model)


def _heads(model):
    """(path, head) of each, those of a cascade on their own."""
    return [(k, m) for k, m in model.named_modules() if hasattr(m, 'loss_decode')]


def _options(head):
    """What a head of MMSegmentation keeps of its arguments."""
    kinds = (bool, int, float, str, tuple, type(None))
    return {k: v for k, v in vars(head).items() if isinstance(v, kinds)}


def _traits(head):
    loss = head.loss_decode
    return dict(
        align_corners=head.align_corners,
        dropout=head.dropout_ratio,
        index=head.in_index,
        weight=loss.loss_weight,
        mean_of_labelled=loss.avg_non_ignore,
        strides=[m.stride for m in head.modules() if isinstance(m, torch.nn.Conv2d)],
    )
