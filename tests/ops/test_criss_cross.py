import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmattn.ops import criss_cross

SHAPES = [(2, 4, 3), (1, 1, 5), (1, 5, 1), (2, 1, 1), (1, 6, 6)]  # N, H, W


def slow(q, k, v):
    """The definition, pixel by pixel: softmax over row and column, the pixel itself once."""
    out = torch.empty_like(v)
    _, _, height, width = v.shape
    for n in range(len(v)):
        for i in range(height):
            for j in range(width):
                cross = [(i, b) for b in range(width)] + [(a, j) for a in range(height) if a != i]
                logits = torch.stack([q[n, :, i, j] @ k[n, :, a, b] for a, b in cross])
                weights = logits.softmax(0)
                out[n, :, i, j] = sum(w * v[n, :, a, b] for w, (a, b) in zip(weights, cross))
    return out


def draw(n, height, width, dtype=torch.float64, e=2, c=5):
    q, k = torch.randn(2, n, e, height, width, dtype=torch.float64).to(dtype)
    return q, k, torch.randn(n, c, height, width, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize('shape', SHAPES)
def test_equals_the_definition(shape):
    q, k, v = draw(*shape)
    torch.testing.assert_close(criss_cross(q, k, v), slow(q, k, v), rtol=0, atol=1e-13)


@pytest.mark.parametrize('shape', SHAPES)
def test_gradients(shape):
    inputs = [t.requires_grad_() for t in draw(*shape)]
    assert torch.autograd.gradcheck(criss_cross, inputs)


@pytest.mark.parametrize('rows', [1, 2, 3])
def test_maps_larger_than_a_block(rows, monkeypatch):
    """Rows that do not fit into one block of weights, of which the last may be smaller."""
    shape = 2, 5, 3
    blocks = rows * 3 * (3 + 5)
    monkeypatch.setattr(sys.modules['mmattn.ops.criss_cross'], '_BLOCK', blocks)
    inputs = [t.requires_grad_() for t in draw(*shape)]
    torch.testing.assert_close(criss_cross(*inputs), slow(*inputs), rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(criss_cross, inputs)


def test_transposing_the_map_transposes_the_result():
    q, k, v = draw(2, 4, 3)
    turned = criss_cross(q.mT, k.mT, v.mT).mT
    torch.testing.assert_close(turned, criss_cross(q, k, v), rtol=0, atol=1e-13)


def test_rows_permute_with_their_rows():
    q, k, v = draw(1, 4, 3)
    order = torch.tensor([2, 0, 3, 1])
    permuted = criss_cross(q[:, :, order], k[:, :, order], v[:, :, order])
    torch.testing.assert_close(permuted, criss_cross(q, k, v)[:, :, order], rtol=0, atol=1e-13)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_follows_float64(dtype):
    q, k, v = draw(2, 5, 7, dtype, e=8)
    out = criss_cross(q, k, v)
    assert out.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    expected = slow(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_large_logits_do_not_overflow(dtype, autocast):
    q, k, v = (
        1e3 * t for t in draw(1, 4, 6, torch.float32, e=64)
    )  # logits of 1e7, fp16 ends at 6e4
    q, k, v = (t.to(torch.float32 if autocast else dtype).requires_grad_() for t in (q, k, v))
    with torch.autocast('cpu', dtype, enabled=autocast):
        out = criss_cross(q, k, v)
    assert out.isfinite().all()
    out.float().sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))


def test_builds_no_tensor_on_the_host_and_reads_none_back():
    """Such a tensor would be a blocking copy per call on a GPU; the meta device refuses it too."""

    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.add(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Names() as names:
        criss_cross(*draw(1, 4, 3))
    assert not names.seen & {'aten::lift_fresh', 'aten::_local_scalar_dense', 'aten::scalar_tensor'}
    q, k, v = (t.to('meta') for t in draw(1, 4, 3))
    assert criss_cross(q, k, v).shape == v.shape


def test_inputs_stay_as_they_were():
    inputs = draw(1, 4, 3)
    copies = [t.clone() for t in inputs]
    criss_cross(*inputs)
    assert all(torch.equal(t, c) for t, c in zip(inputs, copies))


def test_shapes_that_do_not_fit_are_named():
    q, k, v = draw(1, 4, 3)
    with pytest.raises(ValueError, match=r'v \(1, 5, 4, 2\)'):
        criss_cross(q, k, v[..., :2])
