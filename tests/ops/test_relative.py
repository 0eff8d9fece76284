"""Relative attention beside its formula, by both ways that it is computed."""

import sys

import pytest
import torch

from mmattn import ops

relative = sys.modules['mmattn.ops.relative']


def draw(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    ]


def inputs(height, width, e=3, c=5, n=2, **options):
    maps = (n, e, height, width), (n, e, height, width), (n, c, height, width)
    return draw(*maps, (2 * height - 1, e), (2 * width - 1, e), **options)


def formula(q, k, v, rows, columns, scale=1.0, position_scale=1.0):
    """One pair of positions after the other."""
    height, width = q.shape[2:]
    places = [(i, j) for i in range(height) for j in range(width)]
    logits = []
    for i, j in places:
        for y, x in places:
            vector = rows[y - i + height - 1] + columns[x - j + width - 1]
            distance = (q[:, :, i, j] * vector).sum(1)
            content = (q[:, :, i, j] * k[:, :, y, x]).sum(1)
            logits.append(scale * content + position_scale * distance)
    weights = torch.stack(logits, 1).unflatten(1, (len(places), -1)).softmax(2)  # (N, P, P)
    return (v.flatten(2) @ weights.mT).unflatten(2, (height, width))


def gradients(f, tensors):
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = f(*leaves)
    weight = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).cos().reshape(y.shape)
    return [y, *torch.autograd.grad(y, leaves, weight)]


SMALL = 'small'  # in place of a number of rows: the whole map at once


def compute_by(monkeypatch, rows):
    monkeypatch.setattr(relative, '_is_small', lambda q, v: rows == SMALL)
    monkeypatch.setattr(relative, '_ROWS', 1 << 20 if rows == SMALL else rows)


@pytest.mark.parametrize('rows', [1, 40, 1 << 20, SMALL])
@pytest.mark.parametrize('e, c', [(3, 5), (4, 4), (1, 1)])
@pytest.mark.parametrize('size', [(3, 4), (1, 5), (5, 1), (1, 1)])
def test_formula(monkeypatch, size, e, c, rows):
    compute_by(monkeypatch, rows)
    found = gradients(lambda *t: ops.relative_attention(*t, 0.7, 1.3), inputs(*size, e, c))
    wanted = gradients(lambda *t: formula(*t, 0.7, 1.3), inputs(*size, e, c))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('size', [(3, 4), (1, 5), (5, 1), (1, 1)])
def test_wide_queries_and_keys(monkeypatch, size):
    """As fused kernels and exporters get them."""
    monkeypatch.setattr(relative, 'is_compiling', lambda: True)
    monkeypatch.setattr(relative, '_RelativeAttention', None)
    found = gradients(lambda *t: ops.relative_attention(*t, 0.7, 1.3), inputs(*size))
    wanted = gradients(lambda *t: formula(*t, 0.7, 1.3), inputs(*size))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_their_products_are_the_logits():
    q, k, _, rows, columns = inputs(3, 4)
    wide_q, wide_k = ops.relative_pairs(q, k, rows, columns, 0.5)
    assert wide_q.shape == wide_k.shape == (2, 3 + 3 + 4, 3, 4)
    found = (wide_q[:, :, 2, 0] * wide_k[:, :, 1, 3]).sum(1)
    wanted = (q[:, :, 2, 0] * (0.5 * k[:, :, 1, 3] + rows[-1 + 2] + columns[3 + 3])).sum(1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('rows', [40, SMALL])
def test_gradcheck(monkeypatch, rows):
    compute_by(monkeypatch, rows)
    tensors = [t.requires_grad_() for t in inputs(2, 3, 2, 2)]
    assert torch.autograd.gradcheck(lambda *t: ops.relative_attention(*t, 0.7, 1.3), tensors)


@pytest.mark.parametrize('rows', [40, SMALL])
def test_memory_formats_and_views(monkeypatch, rows):
    compute_by(monkeypatch, rows)
    tensors = inputs(5, 4)
    wanted = gradients(ops.relative_attention, tensors)
    last = [t.contiguous(memory_format=torch.channels_last) for t in tensors[:3]]
    turned = [t.mT.contiguous().mT for t in tensors[:3]]
    for maps in last, turned:
        found = gradients(ops.relative_attention, maps + tensors[3:])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('rows', [40, SMALL, None])
def test_half_precision(monkeypatch, dtype, rows):
    """Logits of thousands, of the positions alone beyond what fp16 holds."""
    if rows:
        compute_by(monkeypatch, rows)
    else:
        monkeypatch.setattr(relative, 'is_compiling', lambda: True)
    q, k, v, rows, columns = inputs(3, 4, dtype=dtype)
    q, rows = 300 * q, 300 * rows
    found = gradients(ops.relative_attention, (q, k, v, rows, columns))
    assert found[0].dtype == dtype and all(t.isfinite().all() for t in found)
    wanted = formula(*(t.double() for t in (q, k, v, rows, columns)))
    torch.testing.assert_close(found[0].double(), wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize('rows', [40, SMALL])
def test_empty_batch(monkeypatch, rows):
    compute_by(monkeypatch, rows)
    tensors = [t.requires_grad_() for t in inputs(3, 4, n=0)]
    y = ops.relative_attention(*tensors)
    assert y.shape == (0, 5, 3, 4)
    y.sum().backward()
    assert all(t.grad.shape == t.shape for t in tensors)


@pytest.mark.parametrize('rows', [40, SMALL])
def test_what_is_not_finite_is_not_hidden(monkeypatch, rows):
    compute_by(monkeypatch, rows)
    for place in range(5):
        tensors = inputs(3, 4, dtype=torch.float32)
        tensors[place][..., 1, 1] = float('nan')
        assert ops.relative_attention(*tensors).isnan().any()


@pytest.mark.parametrize('e, is_small', [(3, False), (4, True)])
def test_a_map_is_saved_only_where_it_is_not_larger_than_the_inputs(e, is_small):
    """At 12 pixels, each with e values of a query and of a key, and 5 values."""
    saved = []
    tensors = [t.requires_grad_() for t in inputs(3, 4, e)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ops.relative_attention(*tensors)
    known = {t.data_ptr() for t in tensors}
    assert known <= {t.data_ptr() for t in saved}
    others = [t.shape for t in saved if t.data_ptr() not in known]
    assert others == ([(2, 12, 12)] if is_small else [])
    y.sum().backward()
