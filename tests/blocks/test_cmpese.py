import pytest
import torch

from mmattn import CMPESE
from tests.blocks.slow import agree, batch_norm, conv, draw, drawn, linear, means, sigmoid


def formula(block, u, x, reduction=16, view='pair1x1', fold_height=10, init='paper'):
    g_u, g_x = means(u), means(x)
    if view == 'double_fc':
        h = [linear(g_u, block.fc_residual), linear(g_x, block.fc_identity)]
        z = linear(torch.cat(h, 1).clamp(min=0), block.fc_gate)
    else:
        if view == 'fold3x3':
            wide = u.shape[1] // fold_height
            rows = []
            for i in range(fold_height):
                rows += [g[:, i * wide : (i + 1) * wide] for g in (g_u, g_x)]
        else:
            rows = [torch.stack([g_u[:, c], g_x[:, c]], 1) for c in range(u.shape[1])]
        maps = batch_norm(conv(torch.stack(rows, 1)[:, None], block.maps.conv), block.maps.bn)
        f = sum(maps[:, m] for m in range(maps.shape[1])) / maps.shape[1]
        z = linear(linear(f.flatten(1), block.fc1).clamp(min=0), block.fc2)
    return u * sigmoid(z, init)[:, :, None, None] + x


FORMS = [
    dict(view='double_fc'),
    dict(view='pair1x1'),
    dict(view='pair2x1'),
    dict(view='fold3x3', fold_height=2),
    dict(view='fold3x3', fold_height=4),
]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('form', FORMS)
def test_formula(form, init, train):
    arguments = dict(reduction=5, init=init, **form)
    block = drawn(CMPESE(12, **arguments), train)
    agree(block, formula, draw(3, 12, 3, 2), draw(3, 12, 3, 2), **arguments)


@pytest.mark.parametrize(
    'form, kernel, length',
    [
        (dict(), (1, 1), 96),
        (dict(view='pair2x1'), (1, 2), 48),
        (dict(view='fold3x3', fold_height=8), (3, 3), (16 - 2) * (6 - 2)),
    ],
)
def test_shapes(form, kernel, length):
    shapes = {k: tuple(v.shape) for k, v in CMPESE(48, **form).state_dict().items()}
    norm = {f'maps.bn.{k}': (3,) for k in ('weight', 'bias', 'running_mean', 'running_var')}
    assert shapes == norm | {
        'maps.bn.num_batches_tracked': (),
        'maps.conv.weight': (3, 1, *kernel),
        'fc1.weight': (3, length),
        'fc2.weight': (48, 3),
    }


def test_double_fc_shapes():
    shapes = {k: tuple(v.shape) for k, v in CMPESE(48, view='double_fc').state_dict().items()}
    hidden = {'fc_residual.weight': (3, 48), 'fc_identity.weight': (3, 48)}
    assert shapes == hidden | {'fc_gate.weight': (48, 6)}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=8), 'CMPESE: reduction=16, allowed 1..in_channels=8'),
        (
            dict(in_channels=32, view='1x1'),
            "CMPESE: view='1x1', allowed 'double_fc', 'pair1x1', 'pair2x1', 'fold3x3'",
        ),
        (
            dict(in_channels=64, view='fold3x3'),
            'fold_height=10 with in_channels=64, allowed 2, 4, 8, 16$',
        ),
        (
            dict(in_channels=24, view='fold3x3', fold_height=12),
            'fold_height=12 .* allowed 2, 3, 4, 6, 8$',
        ),
        (
            dict(in_channels=24, view='fold3x3', fold_height=1),
            'fold_height=1 .* allowed 2, 3, 4, 6, 8$',
        ),
        (
            dict(in_channels=24, view='fold3x3', fold_height=0),
            'fold_height=0, allowed whole numbers from 1',
        ),
        (
            dict(in_channels=5, reduction=2, view='fold3x3', fold_height=5),
            'fold_height=5 with in_channels=5, allowed none: more channels are needed',
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CMPESE(**arguments)


@pytest.mark.parametrize('fold_height', [2, 3, 4, 6, 8])
def test_what_the_refusal_allows(fold_height):
    block = CMPESE(24, view='fold3x3', fold_height=fold_height)
    assert block.eval()(torch.randn(1, 24, 2, 3), torch.randn(1, 24, 2, 3)).shape == (1, 24, 2, 3)


@pytest.mark.parametrize(
    'residual, identity, message',
    [
        ((1, 8, 3, 3), (1, 16, 3, 3), r'CMPESE: residual \(1, 8, 3, 3\), allowed \(N, 16, H, W\)'),
        ((1, 16, 3, 3), (1, 8, 3, 3), r'CMPESE: identity \(1, 8, 3, 3\), allowed \(N, 16, H, W\)'),
        (
            (1, 16, 3, 3),
            (1, 16, 3, 2),
            r'residual \(1, 16, 3, 3\) and identity \(1, 16, 3, 2\) must be equal',
        ),
    ],
)
def test_refused_inputs(residual, identity, message):
    with pytest.raises(ValueError, match=message):
        CMPESE(16)(torch.randn(residual), torch.randn(identity))
