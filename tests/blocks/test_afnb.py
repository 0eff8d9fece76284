import pytest
import torch

from mmattn import AFNB
from tests.blocks.slow import agree, agree_with_peer, asymmetric, batch_norm, conv, draw, drawn

BN, RELU = dict(type='BN'), dict(type='ReLU')


def formula(
    block,
    low,
    high,
    act_cfg=RELU,
    init='paper',
    query_scales=(1,),
    key_pool_scales=(1, 3, 6, 8),
    **_,
):
    def act(t):
        return t.clamp(min=0) if act_cfg else t

    y = asymmetric(block, high, low, act, lambda t: t, query_scales, key_pool_scales)
    return high + block.rho.scale * y if init == 'identity' else y


FORMS = [
    dict(),
    dict(channels=4, out_channels=5, key_pool_scales=(1, 2)),
    dict(norm_cfg=None, act_cfg=None, key_pool_scales=(3,)),
    dict(query_scales=(2, 3), key_pool_scales=(2, 1)),
    dict(init='identity', key_pool_scales=(1, 2)),
]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('form', FORMS)
def test_formula(form, train):
    block = drawn(AFNB(3, 6, **form), train)
    agree(block, formula, draw(2, 3, 6, 7), draw(2, 6, 3, 4), **form)


@pytest.mark.openmmlab
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('norm_cfg', [BN, None])
@pytest.mark.parametrize('low, high', [((7, 9), (4, 5)), ((5, 4), (5, 4))])
def test_mmseg(low, high, norm_cfg, train):
    theirs = pytest.importorskip('mmseg.models.decode_heads.ann_head').AFNB
    arguments = dict(low_in_channels=6, high_in_channels=8, channels=4, out_channels=5)
    arguments |= dict(query_scales=(1,), key_pool_scales=(1, 3, 6, 8), conv_cfg=None, act_cfg=RELU)
    arguments['norm_cfg'] = norm_cfg
    peers = AFNB(**arguments), theirs(**arguments)
    agree_with_peer(*peers, draw(2, 6, *low), draw(2, 8, *high), train=train)


def test_start():
    """Zero context, and no activation at the end."""
    block, low, high = AFNB(6, 8).double(), draw(2, 6, 7, 5), draw(2, 8, 4, 3)
    y = conv(torch.cat([torch.zeros_like(high), high], 1), block.bottleneck.conv)
    expected = batch_norm(y, block.bottleneck.bn)
    found = block(low, high)
    torch.testing.assert_close(found, expected)
    assert (found < 0).any()


def test_defaults():
    shapes = {
        k: tuple(v.shape) for k, v in AFNB(6, 8).state_dict().items() if k.endswith('conv.weight')
    }
    assert shapes == {
        'stages.0.key_project.conv.weight': (4, 6, 1, 1),
        'stages.0.query_project.conv.weight': (4, 8, 1, 1),
        'bottleneck.conv.weight': (8, 16, 1, 1),
    }


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(high_in_channels=0), 'AFNB: high_in_channels=0, allowed whole numbers from 1'),
        (dict(channels=0), 'AFNB: channels=0, allowed whole numbers from 1'),
        (
            dict(high_in_channels=6, out_channels=8, init='identity'),
            "AFNB: out_channels=8 with init='identity', allowed the channels of the input, 6",
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AFNB(8, **arguments)


@pytest.mark.parametrize(
    'low, high, message',
    [
        ((1, 8, 3, 3), (1, 8, 3, 3), r'AFNB: low \(1, 8, 3, 3\), allowed \(N, 6, H, W\)'),
        ((1, 6, 3, 3), (1, 6, 3, 3), r'AFNB: high \(1, 6, 3, 3\), allowed \(N, 8, H, W\)'),
    ],
)
def test_refused_inputs(low, high, message):
    with pytest.raises(ValueError, match=message):
        AFNB(6, 8)(torch.randn(low), torch.randn(high))
