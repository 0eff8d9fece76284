"""Norms folded into convolutions: the same outputs, whatever is around them."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmattn.config.load import load_config
from mmattn.models.folded_norms import fold_norms
from mmattn.plugins import insert
from tests.conftest import ROOT, randomise
from tests.engine.killing import SMALL


def close(model, folded, inputs, tolerance=1e-5):
    with torch.no_grad():
        expected, found = model(inputs), folded(inputs)
    assert (expected - found).abs().max() <= tolerance * expected.abs().max()


class Layers(nn.Module):
    """Layers in a row, or a forward of them."""

    def __init__(self, layers, run=None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.run = run

    def forward(self, x):
        if self.run:
            return self.run(x, *self.layers)
        for layer in self.layers:
            x = layer(x)
        return x


def conv(inputs=3, outputs=6, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def weight_only(x, first, norm):
    return norm(nn.functional.conv2d(x, first.weight, padding=1))


def weight_again(x, first, norm):
    return norm(first(x)) + nn.functional.conv2d(x, first.weight, padding=1)


def read_twice(x, first, norm):
    x = first(x)
    return norm(x) + x


def changed_in_place(x, first, norm):
    return norm(first(x).mul_(2))


def two_norms(x, first, norm, other):
    return norm(first(x)) + other(first(x.flip(3)))


def norm_of_input(x, first, norm, second, other):
    return other(second(norm(x) + first(x)))


def hooked(module, inputs, output):
    return output.relu()


def adds_input(module, inputs, output):
    return output + inputs[0]


def with_hook(module, hook):
    module.register_forward_hook(hook)
    return module


CASES = {
    'in a row': (1, [conv(), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4)], None),
    'with a bias, groups and stride': (1, [conv(outputs=6, groups=3, stride=2, bias=True), nn.BatchNorm2d(6)], None),
    'without scale and shift': (1, [conv(bias=False), nn.BatchNorm2d(6, affine=False)], None),
    'transposed': (1, [nn.ConvTranspose2d(3, 6, 2, 2, bias=False), nn.BatchNorm2d(6)], None),
    'transposed, in groups': (0, [nn.ConvTranspose2d(3, 6, 2, groups=3), nn.BatchNorm2d(6)], None),
    'reflected borders': (1, [conv(padding_mode='reflect'), nn.BatchNorm2d(6)], None),
    'shared by all runs': (1, [conv(bias=False), nn.BatchNorm2d(6)], lambda x, a, b: b(a(x)) * b(a(x.flip(3)))),
    'a ConvModule': (1, [ConvModule(3, 6, 3, norm_cfg=dict(type='BN'))], None),
    'norm first': (0, [ConvModule(3, 6, 3, norm_cfg=dict(type='BN'), order=('norm', 'act', 'conv'))], None),
    'activation between': (0, [conv(), nn.ReLU(), nn.BatchNorm2d(6)], None),
    'the weight alone': (0, [conv(bias=False), nn.BatchNorm2d(6)], weight_only),
    'the weight once more': (0, [conv(bias=False), nn.BatchNorm2d(6)], weight_again),
    'read twice': (0, [conv(), nn.BatchNorm2d(6)], read_twice),
    'changed in place': (0, [conv(bias=False), nn.BatchNorm2d(6)], changed_in_place),
    'one of two runs': (0, [conv(), nn.BatchNorm2d(6)], lambda x, a, b: b(a(x)).sum() + a(x.flip(3))),
    'two norms': (0, [conv(), nn.BatchNorm2d(6), nn.BatchNorm2d(6)], two_norms),
    'another input': (1, [conv(outputs=3), nn.BatchNorm2d(3), conv(), nn.BatchNorm2d(6)], norm_of_input),
    'a hook': (0, [with_hook(conv(), hooked), nn.BatchNorm2d(6)], None),
    'a hook that reads the input': (0, [conv(), with_hook(nn.BatchNorm2d(6), adds_input)], None),
    'no running statistics': (0, [conv(), nn.BatchNorm2d(6, track_running_stats=False)], None),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_what_directly_follows_is_folded_and_nothing_else(name):
    count, layers, run = CASES[name]
    model = randomise(Layers(copy.deepcopy(layers), run)).eval()
    folded = copy.deepcopy(model)
    assert fold_norms(folded)[0] == count
    close(model, folded, torch.randn(2, 3, 9, 7))
    if count:
        assert any(
            not torch.equal(a, folded.state_dict()[k]) for k, a in model.state_dict().items()
        )


@pytest.mark.parametrize(
    'place, left',
    [
        (dict(position='after_conv1'), 8),  # a hook of conv2; a norm of BAM follows no convolution
        (dict(position='before_add'), 8),  # a hook of the last norm, which must go on running
        (dict(at='backbone.layer*.0.conv1'), 8),  # between convolution and norm
        (dict(replace='backbone.layer4.1.conv2'), 1),
    ],
)
def test_plugins_are_not_jumped_over(place, left):
    cfg = load_config(ROOT / 'configs/ccnet_r18_street.py', SMALL)
    init_default_scope('mmseg')
    model = randomise(MODELS.build(cfg.model))
    block = dict(type='SKConv2d') if 'replace' in place else dict(type='BAM', reduction=4)
    insert(model, [dict(cfg=block, **place)])
    randomise(model).eval()
    folded, stock = copy.deepcopy(model), copy.deepcopy(model)
    count, norms = fold_norms(folded)
    assert count == norms - left, (count, norms)
    images = torch.randn(1, 3, 64, 96)
    close(model, folded, images)
    if place == dict(position='before_add'):
        with pytest.raises(AssertionError):  # why mmcv's function is not used
            close(model, fuse_conv_bn(stock), images, 1e-3)
