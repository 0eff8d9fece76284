import pytest
import torch

from mmattn import DualAttention
from tests.blocks.slow import agree, conv, draw, drawn, parameters, softmax


def attention(queries, keys, values, sign):
    """Rows: o[i] = sum_j softmax_j(sign q[i] . k[j]) v[j]."""
    weights = [softmax([sign * q @ k for k in keys]) for q in queries]
    return torch.stack([sum(a * v for a, v in zip(row, values)) for row in weights])


def formula(block, x, **_):
    pam, out = block.pam, []
    projected = [
        conv(x, t).flatten(2).mT for t in (pam.query_project, pam.key_project, pam.value_project)
    ]
    for image, q, k, v in zip(x, *projected):  # both modules see x, not one the other's output
        rows = image.flatten(1)
        position = attention(q, k, v, 1).T
        channel = attention(rows, rows, rows, -1)
        out.append(rows + pam.gamma.scale * position + block.cam.gamma.scale * channel)
    return torch.stack(out).reshape(x.shape)


@pytest.mark.parametrize('channels', [None, 1, 5])
def test_formula(channels):
    agree(drawn(DualAttention(16, channels=channels)), formula, draw(2, 16, 4, 3))


def test_keys():
    layers = ('query_project', 'key_project', 'value_project')
    pam = {f'pam.{layer}.{kind}' for layer in layers for kind in ('weight', 'bias')}
    assert set(DualAttention(16).state_dict()) == pam | {'pam.gamma.scale', 'cam.gamma.scale'}


def test_start():
    block, x = DualAttention(16), torch.randn(2, 16, 4, 3)
    assert block.pam.gamma.scale == block.cam.gamma.scale == 0
    assert torch.equal(block(x), x)


def test_parameters():
    assert parameters(DualAttention, 512) == 328321 + 1


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(in_channels=7),
            'in_channels=7 without channels, allowed 8 and more, or give channels',
        ),
        (dict(in_channels=8, channels=0), 'channels=0, allowed whole numbers from 1'),
        (
            dict(in_channels=8, init='zero'),
            "DualAttention: init='zero', allowed 'paper', 'identity'",
        ),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualAttention(**arguments)
