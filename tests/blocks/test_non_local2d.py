import pytest
import torch

from mmattn import NonLocal2d
from tests.blocks.slow import (
    agree,
    agree_with_peer,
    conv,
    conv_norm,
    draw,
    drawn,
    max_pool,
    parameters,
    softmax,
)

MODES = ['gaussian', 'embedded_gaussian', 'dot_product', 'concatenation']
BN = dict(type='BN')


def formula(block, x, mode='embedded_gaussian', sub_sample=False, use_scale=True, **_):
    def keys(name):
        layer = block.get_submodule(name)
        return max_pool(conv(x, layer[0].conv), 2, 2) if sub_sample else conv(x, layer.conv)

    g = keys('g')
    if mode == 'gaussian':
        theta, phi = x, max_pool(x, 2, 2) if sub_sample else x
    else:
        theta, phi = conv(x, block.theta.conv), keys('phi')
    out = []
    for n in range(len(x)):
        values, others = g[n].flatten(1).T, phi[n].flatten(1).T
        for query in theta[n].flatten(1).T:
            if mode == 'concatenation':
                w = block.concat_project.conv.weight.flatten()
                f = [(w @ torch.cat([query, key])).clamp(min=0) / len(others) for key in others]
            elif mode == 'dot_product':
                f = [query @ key / len(others) for key in others]
            else:
                root = len(query) ** 0.5 if mode == 'embedded_gaussian' and use_scale else 1
                f = softmax([query @ key / root for key in others])
            out.append(sum(weight * value for weight, value in zip(f, values)))
    y = torch.stack(out).unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)
    return x + conv_norm(y, block.conv_out)


FORMS = [
    dict(),
    dict(sub_sample=True),
    dict(norm_cfg=BN, reduction=1),
    dict(use_scale=False, reduction=9),
]


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('mode', MODES)
def test_formula(mode, form):
    arguments = dict(mode=mode, **form)
    agree(drawn(NonLocal2d(5, **arguments)), formula, draw(2, 5, 3, 5), **arguments)


@pytest.mark.parametrize(
    'arguments', [dict(norm_cfg=BN), dict(norm_cfg=BN, mode='dot_product', sub_sample=True)]
)
def test_formula_in_training(arguments):
    agree(drawn(NonLocal2d(4, **arguments), train=True), formula, draw(2, 4, 4, 3), **arguments)


@pytest.mark.parametrize('size', [(1, 5), (6, 1), (1, 1), (12, 9)])
def test_both_orders_of_the_dot_product(size):
    """It multiplies in the cheaper order, which the size of the map decides."""
    arguments = dict(mode='dot_product', reduction=1)
    agree(drawn(NonLocal2d(3, **arguments)), formula, draw(1, 3, *size), **arguments)


@pytest.mark.openmmlab
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('norm_cfg', [None, BN, dict(type='GN', num_groups=2)])
@pytest.mark.parametrize('sub_sample', [False, True])
@pytest.mark.parametrize('mode', MODES)
def test_mmcv(mode, sub_sample, norm_cfg, train):
    theirs = pytest.importorskip('mmcv.cnn').NonLocal2d
    arguments = dict(in_channels=8, sub_sample=sub_sample, norm_cfg=norm_cfg, mode=mode)
    arguments |= dict(reduction=3, use_scale=not sub_sample)
    peers = NonLocal2d(**arguments), theirs(**arguments)
    gradients = mode != 'concatenation'  # theirs divides in place, so its backward raises
    agree_with_peer(*peers, draw(2, 8, 5, 6), train=train, gradients=gradients)


@pytest.mark.parametrize('norm_cfg', [None, BN])
@pytest.mark.parametrize('sub_sample', [False, True])
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('zeros_init', [True, False])
def test_start(zeros_init, mode, sub_sample, norm_cfg):
    arguments = dict(mode=mode, sub_sample=sub_sample, norm_cfg=norm_cfg)
    block, x = NonLocal2d(64, zeros_init=zeros_init, **arguments), torch.randn(2, 64, 4, 3)
    assert torch.equal(block(x), x) == zeros_init
    for name in ['g'] if mode == 'gaussian' else ['g', 'theta', 'phi']:
        layer = block.get_submodule(name)
        layer = layer[0] if sub_sample and name != 'theta' else layer
        assert abs(layer.conv.weight.std() / 0.01 - 1) < 0.1
        assert (layer.conv.bias == 0).all()
    last = block.conv_out.norm if norm_cfg else block.conv_out.conv
    assert (last.bias == 0).all()
    deviation = 0 if zeros_init else 0.01
    assert abs(last.weight.std() - deviation) < 0.3 * deviation + 1e-12


@pytest.mark.parametrize(
    'channels, count', [(256, 132224), (512, 526592), (1024, 2101760), (2048, 8397824)]
)
def test_parameters(channels, count):
    """The counts are those of a module with a convolution bias before its norm; ours has none."""
    assert parameters(NonLocal2d, channels, norm_cfg=BN) == count - channels


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(mode='cosine'),
            "NonLocal2d: mode='cosine', allowed 'gaussian', 'embedded_gaussian', 'dot_product', 'concatenation'",
        ),
        (dict(reduction=0), 'NonLocal2d: reduction=0, allowed whole numbers from 1'),
        (
            dict(zeros_init=False, init='identity'),
            "NonLocal2d: zeros_init=False contradicts init='identity'; allowed one of the two",
        ),
        (dict(norm_cfg=dict(type='Bn')), "norm_cfg: type='Bn', allowed BN, .*SyncBN, GN, IN"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        NonLocal2d(8, **arguments)


@pytest.mark.parametrize('size', [(1, 6), (6, 1), (1, 1)])
def test_nothing_to_sub_sample(size):
    block = NonLocal2d(8, sub_sample=True)
    with pytest.raises(
        ValueError, match=r'NonLocal2d: input .* with sub_sample=True, allowed H, W from 2'
    ):
        block(torch.randn(2, 8, *size))
    assert NonLocal2d(8)(torch.randn(2, 8, *size)).shape == (2, 8, *size)


def test_training_a_norm_on_one_value():
    block = NonLocal2d(8, norm_cfg=BN)
    with pytest.raises(ValueError, match='NonLocal2d: the norm of conv_out sees batch size 1'):
        block(torch.randn(1, 8, 1, 1))
    assert block(torch.randn(1, 8, 1, 2)).shape == (1, 8, 1, 2)
