"""The three aggregations beside the formula in a loop, and what they allocate and call."""

import math
import sys

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmattn import ops
from mmattn.torch_compat import HAS_NARROW_ATTENTION

non_local = sys.modules['mmattn.ops.non_local']


def draw(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def softmax(q, k, v, scale):
    """One query after the other."""
    out = torch.empty(len(q), v.shape[1], q.shape[2], dtype=v.dtype)
    for n in range(len(q)):
        for p in range(q.shape[2]):
            weights = [math.exp(scale * (q[n, :, p] @ k[n, :, s])) for s in range(k.shape[2])]
            terms = [w * v[n, :, s] for s, w in enumerate(weights)]
            out[n, :, p] = sum(terms) / sum(weights)
    return out


def pairs(a, b, v):
    """All pairs at once; autograd gives its gradients."""
    return ((a[:, :, None] + b[:, None]).relu() @ v.mT).mT / b.shape[1]


@pytest.mark.parametrize('rows', [1, 40, 1 << 20])
@pytest.mark.parametrize('e, c', [(3, 5), (4, 4), (1, 1)])
@pytest.mark.parametrize('p, s', [(7, 9), (1, 6), (6, 1), (1, 1)])
def test_softmax(monkeypatch, e, c, p, s, rows):
    monkeypatch.setattr(non_local, '_ROWS', rows)
    q, k, v = draw((2, e, p), (2, e, s), (2, c, s))
    torch.testing.assert_close(ops.softmax_attention(q, k, v, 0.7), softmax(q, k, v, 0.7))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *t: ops.softmax_attention(*t, 0.7), leaves)


@pytest.mark.parametrize('p, s', [(8, 5), (5, 8), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize('whole', [False, True], ids=['drawn', 'ties'])
@pytest.mark.parametrize('shift', [0, 50, -50])
def test_concatenation(p, s, whole, shift):
    a, b, v = draw((2, p), (2, s), (2, 70, s))
    if whole:  # pairs that are equal, and pairs of which the sum is exactly 0
        a, b = a.round(), b.round()
    inputs = [(a + shift).requires_grad_(), b.requires_grad_(), v.requires_grad_()]
    out, expected = ops.concatenation_attention(*inputs), pairs(*inputs)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    weight = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, weight)
    for ours, theirs in zip(found, torch.autograd.grad(expected, inputs, weight)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize('shift', [0, 1000])
def test_concatenation_loses_nothing_to_a_common_offset(shift):
    a, b, v = draw((1, 900), (1, 900), (1, 4, 900), dtype=torch.float32)
    a, b = a + shift, b - shift
    exact = pairs(a.double(), b.double(), v.double())
    error = (ops.concatenation_attention(a, b, v) - exact).abs().max() / exact.abs().max()
    assert error < 2e-6


@pytest.mark.parametrize('p, s', [(5, 7), (40, 41)], ids=['the map', 'by associativity'])
def test_dot_product(p, s):
    q, k, v = draw((2, 6, p), (2, 6, s), (2, 5, s))
    expected = torch.einsum('nep,nes,ncs->ncp', q, k, v) / s
    torch.testing.assert_close(ops.dot_product_attention(q, k, v), expected)


DTYPES = [torch.float32, torch.float64, torch.bfloat16]
DTYPES += [] if HAS_NARROW_ATTENTION else [torch.float16]


@pytest.mark.parametrize('dtype', DTYPES)
def test_equal_widths_are_left_to_a_fused_kernel(monkeypatch, dtype):
    """Its fallback would give the same numbers, with the map."""
    inputs = [t.requires_grad_() for t in draw((1, 24, 9), (1, 24, 7), (1, 24, 7), dtype=dtype)]
    monkeypatch.setattr(non_local, '_RowAttention', None)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        ops.softmax_attention(*inputs, 0.5).float().sum().backward()
    heads = [t.detach().mT.contiguous()[:, None] for t in inputs]
    assert torch._fused_sdp_choice(*heads, scale=0.5) == SDPBackend.FLASH_ATTENTION.value


def test_other_widths_are_not(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('this would build the map')

    monkeypatch.setattr(F, 'scaled_dot_product_attention', refuse)
    assert ops.softmax_attention(*draw((1, 3, 9), (1, 3, 7), (1, 24, 7))).shape == (1, 24, 9)


@pytest.mark.parametrize('c', [3, 5], ids=['fused', 'rows'])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('where', [0, 1, 2])
@pytest.mark.parametrize('keys', ['drawn', 'negative'])
def test_softmax_of_what_is_not_finite(value, where, c, keys):
    inputs = draw((1, 3, 8), (1, 3, 9), (1, c, 9), dtype=torch.float32)
    if keys == 'negative':  # with an infinite query all its logits are -infinity
        inputs[1] = -inputs[1].abs()
    inputs[where][0, 1, 4] = value
    q, k, v = inputs
    expected = v @ (q.mT @ k).softmax(-1).mT
    out = ops.softmax_attention(q, k, v)
    assert torch.equal(out.isfinite(), expected.isfinite())


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('where', [0, 1, 2])
def test_concatenation_of_what_is_not_finite(value, where):
    a, b, v = draw((1, 8), (1, 9), (1, 3, 9), dtype=torch.float32)
    (a, b, v)[where][0, ..., 4] = value
    expected = pairs(a, b, v)
    out = ops.concatenation_attention(a, b, v)
    assert not (out.isfinite() & ~expected.isfinite()).any()


@pytest.mark.parametrize(
    'attention, shapes',
    [
        (ops.softmax_attention, [(0, 3, 4), (0, 3, 5), (0, 6, 5)]),
        (ops.softmax_attention, [(0, 6, 4), (0, 6, 5), (0, 6, 5)]),
        (ops.dot_product_attention, [(0, 3, 4), (0, 3, 5), (0, 6, 5)]),
        (ops.concatenation_attention, [(0, 4), (0, 5), (0, 6, 5)]),
    ],
)
def test_empty_batch(attention, shapes):
    inputs = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    out = attention(*inputs)
    assert out.shape == (0, 6, 4)
    out.sum().backward()
    assert all(t.grad.shape == t.shape for t in inputs)
