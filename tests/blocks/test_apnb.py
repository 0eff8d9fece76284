import copy

import pytest
import torch

from mmattn import APNB
from tests.blocks.slow import agree, agree_with_peer, asymmetric, batch_norm, conv, draw, drawn

BN, RELU, LEAKY = dict(type='BN'), dict(type='ReLU'), dict(type='LeakyReLU', negative_slope=0.2)


def formula(
    block, x, act_cfg=RELU, init='paper', query_scales=(1,), key_pool_scales=(1, 3, 6, 8), **_
):
    slope = {'ReLU': 0, 'LeakyReLU': 0.2}[act_cfg['type']] if act_cfg else 1

    def act(t):
        return torch.where(t > 0, t, slope * t)

    y = asymmetric(block, x, x, act, act, query_scales, key_pool_scales)
    return x + block.rho.scale * y if init == 'identity' else y


FORMS = [
    dict(),
    dict(channels=3, out_channels=5, key_pool_scales=(1, 2)),
    dict(norm_cfg=None, key_pool_scales=(3,)),
    dict(query_scales=(1, 2), key_pool_scales=(2, 1)),
    dict(act_cfg=LEAKY, key_pool_scales=(2,)),
    dict(act_cfg=None, key_pool_scales=(2,)),
    dict(init='identity', key_pool_scales=(1, 2)),
]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('form', FORMS)
def test_formula(form, train):
    agree(drawn(APNB(4, **form), train), formula, draw(2, 4, 5, 4), **form)


@pytest.mark.openmmlab
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('act_cfg', [RELU, LEAKY, None])
@pytest.mark.parametrize('norm_cfg', [BN, None, dict(type='GN', num_groups=2)])
@pytest.mark.parametrize('size', [(7, 9), (5, 4)])
def test_mmseg(size, norm_cfg, act_cfg, train):
    theirs = pytest.importorskip('mmseg.models.decode_heads.ann_head').APNB
    arguments = dict(in_channels=8, channels=4, out_channels=8, query_scales=(1, 1))
    arguments |= dict(
        key_pool_scales=(1, 3, 6, 8), conv_cfg=None, norm_cfg=norm_cfg, act_cfg=act_cfg
    )
    agree_with_peer(APNB(**arguments), theirs(**arguments), draw(2, 8, *size), train=train)


def test_the_shared_norm_is_updated_twice_a_step():
    block = APNB(8)
    assert block.stages[0].key_project is block.stages[0].query_project
    block(torch.randn(2, 8, 5, 4))
    assert block.stages[0].key_project.bn.num_batches_tracked == 2
    assert block.bottleneck.bn.num_batches_tracked == 1


@pytest.mark.parametrize('momentum', [0.1, 0.3, None])
def test_the_running_statistics_are_those_of_two_runs(momentum):
    block, x = APNB(8, norm_cfg=dict(type='BN', momentum=momentum)).double(), draw(3, 2, 8, 5, 4)
    twin = copy.deepcopy(block.stages[0].key_project)
    for batch in x:
        block(batch)
        twin(batch), twin(batch)
    for key, value in twin.bn.state_dict().items():
        torch.testing.assert_close(block.stages[0].key_project.bn.state_dict()[key], value)
    assert block.stages[0].key_project.bn.momentum == momentum


def test_a_hook_on_the_bottleneck_sees_its_call():
    """Which folding would leave out."""
    block, x = drawn(APNB(8, key_pool_scales=(1, 2))), draw(2, 8, 5, 4)
    expected, seen = block(x), []
    block.bottleneck.conv.register_forward_hook(lambda *args: seen.append(args[2]))
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    assert len(seen) == 1


def test_start():
    block, x = APNB(8).double(), draw(2, 8, 5, 4)
    out = block.stages[0].out_project
    assert (out.weight == 0).all() and (out.bias == 0).all()
    y = conv(torch.cat([torch.zeros_like(x), x], 1), block.bottleneck.conv)
    expected = batch_norm(y, block.bottleneck.bn).clamp(min=0)
    torch.testing.assert_close(block(x), expected)


def test_defaults():
    shapes = {k: tuple(v.shape) for k, v in APNB(8).state_dict().items() if 'bn.' not in k}
    stage = {f'stages.0.{k}_project.conv.weight': (4, 8, 1, 1) for k in ('key', 'query')}
    stage |= {'stages.0.value_project.weight': (4, 8, 1, 1), 'stages.0.value_project.bias': (4,)}
    stage |= {'stages.0.out_project.weight': (8, 4, 1, 1), 'stages.0.out_project.bias': (8,)}
    assert shapes == stage | {'bottleneck.conv.weight': (8, 16, 1, 1)}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=1), 'APNB: channels=0, allowed whole numbers from 1'),
        (dict(query_scales=()), r'APNB: query_scales=\(\), allowed at least one'),
        (dict(key_pool_scales=()), r'APNB: key_pool_scales=\(\), allowed at least one'),
        (dict(key_pool_scales=(1, 0)), 'APNB: key_pool_scales=0, allowed whole numbers from 1'),
        (
            dict(out_channels=4, init='identity'),
            "APNB: out_channels=4 with init='identity', allowed the channels of the input, 8",
        ),
        (
            dict(norm_cfg=dict(type='GN', num_groups=3)),
            'norm_cfg: GN with num_groups=3, allowed e.g. .1, 2, 4.',
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        APNB(**(dict(in_channels=8) | arguments))


def test_refused_calls():
    with pytest.raises(ValueError, match='APNB: .* with query scale 4, allowed H, W from 4'):
        APNB(8, query_scales=(1, 4)).eval()(torch.randn(1, 8, 5, 3))
    with pytest.raises(ValueError, match='APNB: a batch norm sees batch size 1'):
        APNB(8)(torch.randn(1, 8, 1, 1))
