import pytest
import torch
from torch import nn

from mmattn.blocks.layers.conv_norm_act import ConvNormAct
from tests.blocks.slow import agree_with_peer, draw

NORMS = [
    None,
    dict(type='BN'),
    dict(type='BN', eps=1e-3, momentum=0.01),
    dict(type='GN', num_groups=4),
]
NORMS += [dict(type='IN'), dict(type='IN', affine=True), dict(type='BN', requires_grad=False)]
ACTS = [None, dict(type='ReLU'), dict(type='LeakyReLU'), dict(type='LeakyReLU', negative_slope=0.3)]
ACTS += [dict(type='Sigmoid'), dict(type='HSwish')]


@pytest.fixture
def module():
    return pytest.importorskip('mmcv.cnn').ConvModule


@pytest.mark.openmmlab
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('act_cfg', ACTS)
@pytest.mark.parametrize('norm_cfg', NORMS)
def test_mmcv(module, norm_cfg, act_cfg, train):
    arguments = dict(kernel_size=3, padding=1, stride=2, norm_cfg=norm_cfg, act_cfg=act_cfg)
    ours, theirs = ConvNormAct(4, 8, **arguments), module(4, 8, **arguments)
    trained = [{k for k, v in m.named_parameters() if v.requires_grad} for m in (ours, theirs)]
    assert trained[0] == trained[1]
    for m in ours, theirs:
        m.requires_grad_()
    agree_with_peer(ours, theirs, draw(2, 4, 5, 6), train=train)


@pytest.mark.openmmlab
@pytest.mark.parametrize(
    'options',
    [
        dict(dilation=2, groups=2),
        dict(bias=True, norm_cfg=dict(type='BN')),
        dict(bias=False),
        dict(conv_cfg=dict(type='Conv2d')),
    ],
)
def test_options_of_the_convolution(module, options):
    peers = ConvNormAct(4, 6, 3, **options), module(4, 6, 3, act_cfg=None, **options)
    agree_with_peer(*peers, draw(2, 4, 7, 6))


@pytest.mark.openmmlab
@pytest.mark.parametrize('act_cfg', ACTS)
@pytest.mark.parametrize('norm_cfg', NORMS)
def test_starts_as_mmcvs(module, norm_cfg, act_cfg):
    states = []
    for build in ConvNormAct, module:
        torch.manual_seed(1)
        states.append(build(4, 8, 3, norm_cfg=norm_cfg, act_cfg=act_cfg).state_dict())
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.openmmlab
@pytest.mark.parametrize('norm_cfg', [dict(type='SyncBN'), dict(type='BN2d'), dict(type='IN2d')])
def test_other_names_of_norms(module, norm_cfg):
    ours, theirs = ConvNormAct(4, 8, norm_cfg=norm_cfg), module(4, 8, 1, norm_cfg=norm_cfg)
    assert ours.norm_name == theirs.norm_name and isinstance(theirs.norm, type(ours.norm))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_start_without_mmcv():
    block = ConvNormAct(32, 64, 3, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU'))
    assert abs(block.conv.weight.std() / (2 / (64 * 9)) ** 0.5 - 1) < 0.05
    assert block.conv.bias is None and (ConvNormAct(32, 64).conv.bias == 0).all()
    assert (block.bn.weight == 1).all() and (block.bn.bias == 0).all()


def test_a_fresh_start_is_drawn_anew():
    block = ConvNormAct(4, 8, norm_cfg=dict(type='BN'))
    before = block.conv.weight.clone()
    nn.init.constant_(block.bn.weight, 5)
    block.reset_parameters()
    assert not torch.equal(block.conv.weight, before) and (block.bn.weight == 1).all()


def test_configs_are_left_as_they_are():
    configs = dict(
        conv_cfg=dict(type='Conv2d'),
        norm_cfg=dict(type='GN', num_groups=2),
        act_cfg=dict(type='ReLU'),
    )
    before = {name: dict(config) for name, config in configs.items()}
    ConvNormAct(4, 8, **configs)
    assert configs == before


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(conv_cfg=dict(type='Conv2D')),
            "conv_cfg: type='Conv2D', allowed Conv2d, Conv, or a registered",
        ),
        (
            dict(norm_cfg=dict(type='LRN')),
            "norm_cfg: type='LRN', allowed BN, .*GN, .*or a registered",
        ),
        (dict(act_cfg=dict(type='Relu')), "act_cfg: type='Relu', allowed ReLU"),
        (dict(norm_cfg=dict(type='GN')), 'norm_cfg: GN with num_groups=None, allowed'),
        (
            dict(norm_cfg=dict(type='GN', num_groups=3)),
            r'norm_cfg: GN with num_groups=3, allowed e.g. \[1, 2, 4, 8\]',
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvNormAct(4, 8, **arguments)
