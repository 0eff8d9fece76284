"""Decode heads of MMSegmentation that mmattn has configs for: attention in the backbone, and views."""

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmattn.config.check import check_config
from mmattn.config.load import load_config
from mmattn.engine.network import build_network
from mmattn.errors import UsageError
from mmattn.inference.attention_view import attention_views
from mmattn.inference.export_program import build_program
from mmattn.inference.predictor import Predictor
from mmattn.plugins import named_plugins
from tests.conftest import ROOT, randomise
from tests.test_configs import decode_heads

CLASSES = {
    'ocrnet': ('CascadeEncoderDecoder', 'OCRHead'), 'isanet': ('EncoderDecoder', 'ISAHead'),
    'emanet': ('EncoderDecoder', 'EMAHead'), 'psanet': ('EncoderDecoder', 'PSAHead'),
    'dnlnet': ('EncoderDecoder', 'DNLHead'),
}  # fmt: skip
NO_GRADIENT = {'decode_head.ema_mid_conv.conv.weight', 'decode_head.ema_mid_conv.conv.bias'}


def config(name):
    return ROOT / 'configs' / f'{name}_r18_street.py'


def narrow(name) -> dict:
    """A quarter of the width of the backbone, an eighth of that of the heads."""
    options = {'model.backbone.stem_channels': 16, 'model.backbone.base_channels': 16}
    for key, head in decode_heads(load_config(config(name)).model).items():
        options |= {f'{key}.in_channels': head.in_channels // 4, f'{key}.channels': 16}
    return options


@pytest.mark.parametrize('name', CLASSES)
def test_attention_learns_and_is_shown(name, tmp_path):
    options = narrow(name)
    model, _ = build_network(config(name), options, 'cbam')
    head = model.decode_head[-1] if name == 'ocrnet' else model.decode_head
    assert (type(model).__name__, type(head).__name__) == CLASSES[name]
    assert type(model).__module__.startswith('mmattn.')
    assert type(head).__module__.startswith('mmseg.')
    model.train()
    blocks = dict(named_plugins(model))
    for block in blocks.values():
        randomise(block)
    before = {k: v.clone() for k, v in model.named_buffers() if k.endswith('.bases')}
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=v)) for v in torch.randint(0, 19, (2, 1, 72, 120))
    ]
    losses = model.loss(torch.randn(2, 3, 72, 120), samples)  # maps of 5x8: no multiples
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    missing = {k for k, p in model.named_parameters() if p.grad is None}
    assert missing == (NO_GRADIENT if name == 'emanet' else set())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    for path, block in blocks.items():
        assert any(p.grad.any() for p in block.parameters()), path
    assert bool(before) == (name == 'emanet')
    assert all(not torch.equal(dict(model.named_buffers())[k], v) for k, v in before.items())

    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    image = np.random.default_rng(0).integers(0, 255, (48, 96, 3), np.uint8)
    predictor = Predictor.of(config(name), tmp_path / 'weights.pth', options, 'cbam', 'cpu')
    views, shown = attention_views(predictor, image)
    assert np.array_equal(shown, image)
    assert {block.path for block in views} == set(blocks)
    assert [len(block.views) for block in views] == [2] * 8


@pytest.mark.parametrize(
    'name, key, value, message',
    [
        ('dnlnet', 'model.decode_head.mode', 'gaussian', "cannot train with 'gaussian': .*Use 'embedded"),
        ('dnlnet', 'model.decode_head.mode', 'concatenation', "DNLHead of MMSegmentation cannot train"),
        ('ocrnet', 'model.decode_head.1.scale', 2, 'OCRHead of MMSegmentation cannot train with 2: .*Use 1'),
    ],
)  # fmt: skip
def test_options_that_fail_in_the_first_step_are_refused(name, key, value, message):
    with pytest.raises(UsageError, match=f'config key {key}: .*{message}'):
        check_config(load_config(config(name), {key: value}))


@pytest.mark.parametrize('mode', ['embedded_gaussian', 'dot_product'])
def test_other_options_are_left_to_the_head(mode):
    check_config(load_config(config('dnlnet'), {'model.decode_head.mode': mode}))


def test_psanet_is_not_exported():
    model, _ = build_network(config('psanet'), narrow('psanet'))
    with pytest.raises(UsageError, match='psanet: PSAHead runs a compiled operator .*PSAMask'):
        build_program(model, torch.randn(1, 3, 64, 96), 'psanet')
