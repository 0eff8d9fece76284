"""Softmax attention of a map with itself, in blocks whose size does not divide the map."""

import math

import pytest
import torch

from mmattn import ops
from mmattn.blocks import NonLocal2d
from mmattn.ops import self_attention


def draw(*shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def formula(x, v, scale):
    return (v.double() @ (scale * x.double().mT @ x.double()).softmax(-1).mT).to(v.dtype)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(self_attention, '_side', lambda: 4)


@pytest.mark.parametrize('positions', [1, 4, 5, 11])
@pytest.mark.parametrize('e, c', [(3, 5), (1, 2), (4, 4)])
@pytest.mark.parametrize('scale', [1, 0.6])
def test_values_and_gradients(positions, e, c, scale):
    x, v = (t.requires_grad_() for t in draw((2, e, positions), (2, c, positions)))

    def attend(x, v):
        out = ops.softmax_attention(x, x, v, scale)
        assert type(out.grad_fn).__name__ == 'SelfAttentionBackward'
        return out

    torch.testing.assert_close(attend(x, v), formula(x, v, scale))
    assert torch.autograd.gradcheck(attend, (x, v))


def test_gradients_where_a_position_sees_almost_itself_alone(monkeypatch):
    """They are differences of nearly equal numbers; no less exact than those of the formula."""
    monkeypatch.setattr(self_attention, '_side', lambda: 96)
    x, v = (t.float().requires_grad_() for t in draw((1, 256, 300), (1, 128, 300)))
    weight = draw((1, 128, 300))[0]
    wide = [t.detach().double().requires_grad_() for t in (x, v)]
    plain = (v @ (x.mT @ x).softmax(-1).mT, ops.softmax_attention(x, x, v))
    exact = torch.autograd.grad(formula(*wide, 1), wide, weight)
    errors = [
        [
            (a - b).norm() / v.numel() ** 0.5
            for a, b in zip(torch.autograd.grad(y, (x, v), weight.float()), exact)
        ]
        for y in plain
    ]
    for theirs, ours in zip(*errors):
        assert ours <= 2 * theirs + 1e-7


def test_tiles_grow_with_threads(monkeypatch):
    monkeypatch.undo()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = self_attention._side()
        torch.set_num_threads(4)
        assert self_attention._side() == 2 * one == 1024
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_no_weight_is_subnormal(dtype):
    """Products with such numbers take 200 times longer; they are 0."""
    lowest = math.log(torch.finfo(dtype).tiny)
    x = torch.linspace(2 * lowest, 0, 10_001, dtype=dtype)
    found = self_attention._exp(x.clone())
    assert not ((found > 0) & (found < torch.finfo(dtype).tiny)).any() and found[0] == 0
    torch.testing.assert_close(found, x.exp(), rtol=1e-6, atol=40 * torch.finfo(dtype).tiny)
    zero, nan = self_attention._exp(torch.tensor([-torch.inf, torch.nan]))
    assert zero == 0 and nan.isnan()


def test_layouts():
    x, v = draw((2, 3, 11), (2, 5, 11))
    adjacent = [t.mT.contiguous().mT for t in (x, v)]
    out = ops.softmax_attention(adjacent[0], adjacent[0], adjacent[1])
    torch.testing.assert_close(out, formula(x, v, 1))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    x, v = (t.requires_grad_() for t in draw((2, 6, 11), (2, 5, 11), dtype=dtype))
    weight = torch.randn(2, 5, 11).to(dtype)
    found = [ops.softmax_attention(x, x, v, 0.6)]
    found += torch.autograd.grad(found[0], (x, v), weight)
    wide = [t.detach().double().requires_grad_() for t in (x, v)]
    exact = [formula(*wide, 0.6)]
    exact += torch.autograd.grad(exact[0], wide, weight.double())
    for ours, theirs in zip(found, exact):
        assert ours.dtype == dtype
        error = (ours - theirs).abs().max() / theirs.abs().max()
        # logits up to 20 are rounded in fp32, and so are their exponentials
        assert error < max(4 * torch.finfo(dtype).eps, 20 * torch.finfo(torch.float32).eps)


def test_logits_of_a_thousand():
    """Of which `exp` is infinite; a block's highest one may come last."""
    x, v = draw((1, 3, 11), (1, 5, 11))
    x = x * torch.linspace(1, 40, 11, dtype=x.dtype)
    torch.testing.assert_close(ops.softmax_attention(x, x, v), formula(x, v, 1))
    x = x.flip(2)
    torch.testing.assert_close(ops.softmax_attention(x, x, v), formula(x, v, 1))


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('where', [0, 1])
@pytest.mark.parametrize('position', [1, 9])
def test_what_is_not_finite(value, where, position):
    inputs = draw((1, 3, 11), (1, 5, 11), dtype=torch.float32)
    inputs[where][0, 1, position] = value
    x, v = inputs
    expected = v @ (x.mT @ x).softmax(-1).mT
    assert torch.equal(ops.softmax_attention(x, x, v).isfinite(), expected.isfinite())


def test_no_images():
    x, v = (t.requires_grad_() for t in draw((0, 3, 7), (0, 5, 7)))
    out = ops.softmax_attention(x, x, v)
    out.sum().backward()
    assert out.shape == v.shape == v.grad.shape and x.grad.shape == x.shape


def test_a_gaussian_block_takes_it(monkeypatch):
    torch.manual_seed(0)
    block = NonLocal2d(8, mode='gaussian', zeros_init=False).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64, requires_grad=True)
    calls = []
    forward = self_attention.SelfAttention.apply
    monkeypatch.setattr(
        self_attention.SelfAttention, 'apply', lambda *t: calls.append(1) or forward(*t)
    )
    block(x).sum().backward()
    assert calls == [1]
