import pytest
import torch
from torch.nn import functional as F

from mmattn import ops

LAYOUTS = torch.contiguous_format, torch.channels_last
SCALES = 1, 3, 2
KEYS = 14


def draw(*shape, layout=None, dtype=torch.float64):
    x = torch.randn(shape, dtype=dtype)
    return x if layout is None else x.contiguous(memory_format=layout)


def arguments(layout, batch=2, size=(5, 4), bias=True):
    x, q = (draw(batch, c, *size, layout=layout) for c in (6, 3))
    weight, bias = draw(7, 6), draw(7) if bias else None
    return x, weight, bias, q, draw(batch, 3, KEYS), draw(batch, 7, KEYS)


def plain(x, weight, bias, q, k, v, scale):
    context = v @ (scale * k.mT @ q.flatten(2)).softmax(1)
    return F.conv2d(x, weight[:, :, None, None], bias) + context.unflatten(2, x.shape[2:])


def trainable(tensors):
    return [t if t is None else t.detach().requires_grad_() for t in tensors]


def saved(function, *tensors):
    """The storages of what is saved for backward, and their bytes."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(*tensors)
    return storages


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('size', [(5, 4), (1, 1), (1, 9), (12, 7)])
@pytest.mark.parametrize('batch', [0, 2])
def test_pool_is_adaptive_pooling(batch, size, layout):
    x = draw(batch, 6, *size, layout=layout).requires_grad_()
    y = ops.pyramid_pool(x, SCALES)
    pooled = [F.adaptive_avg_pool2d(x.contiguous(), n).flatten(2) for n in SCALES if batch]
    expected = torch.cat(pooled, 2) if batch else x.new_zeros(0, 6, KEYS)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    if batch:
        assert torch.autograd.gradcheck(lambda t: ops.pyramid_pool(t, SCALES), x, fast_mode=True)


def test_pool_reads_channels_last_in_its_order():
    """A product in the order of the channels would first copy the map."""
    x = draw(2, 6, 5, 4, layout=torch.channels_last).requires_grad_()
    seen = []
    x.register_hook(lambda grad: seen.append(grad))
    ops.pyramid_pool(x, SCALES).square().sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('block', [1, 4 * KEYS, 1 << 22])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('batch, bias', [(0, True), (1, False), (3, True)])
def test_attend_is_the_formula(monkeypatch, batch, bias, layout, block):
    """By any number of pixels at a time."""
    monkeypatch.setattr('mmattn.ops.pyramid._BLOCK', block)
    tensors = trainable(arguments(layout, batch, bias=bias))
    y, expected = ops.project_and_attend(*tensors, 0.7), plain(*tensors, 0.7)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert not batch or y.is_contiguous(memory_format=layout)
    gradient, wanted = draw(*y.shape), [t for t in tensors if t is not None]
    grads = torch.autograd.grad(y, wanted, gradient)
    for grad, theirs in zip(grads, torch.autograd.grad(expected, wanted, gradient)):
        torch.testing.assert_close(grad, theirs, rtol=0, atol=1e-11)
    assert not batch or all(grads[i].is_contiguous(memory_format=layout) for i in (0, -3))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_attend_gradcheck(layout):
    tensors = trainable(arguments(layout, size=(3, 2)))
    assert torch.autograd.gradcheck(ops.project_and_attend, (*tensors, 0.7))


def test_attend_takes_any_memory_order():
    """Slices, transposed maps, and maps in two formats."""
    x, weight, bias, q, k, v = arguments(torch.contiguous_format)
    wanted = plain(x, weight, bias, q, k, v, 1.0)
    for form in (
        lambda t: t.mT.contiguous().mT,
        lambda t: t.repeat(1, 2, 1, 1)[:, : t.shape[1]],
        lambda t: t.contiguous(memory_format=torch.channels_last),
    ):
        for maps in (form(x), q), (x, form(q)), (form(x), form(q)):
            tensors = trainable((maps[0], weight, bias, maps[1], k.mT.contiguous().mT, v))
            y = ops.project_and_attend(*tensors)
            torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
            y.backward(torch.ones_like(y))
            expected = torch.autograd.grad(plain(*tensors, 1.0).sum(), tensors)
            for t, grad in zip(tensors, expected):
                torch.testing.assert_close(t.grad, grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_attend_saves_its_arguments_alone(layout):
    tensors = trainable(arguments(layout, size=(20, 30)))
    storages = saved(ops.project_and_attend, *tensors)
    assert set(storages) <= {t.untyped_storage().data_ptr() for t in tensors}


def test_the_result_may_be_changed_in_place():
    """As by an activation that follows; a view from inside a function would refuse."""
    tensors = trainable(arguments(torch.contiguous_format))
    y = ops.project_and_attend(*tensors).relu_()
    torch.testing.assert_close(y, plain(*tensors, 1.0).relu(), rtol=0, atol=1e-12)
    y.sum().backward()


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_attend_in_half_precision(dtype, layout):
    """Logits of 10^5 do not overflow."""
    wide = trainable(t.to(torch.float32) for t in arguments(layout))
    with torch.no_grad():
        wide[3].mul_(300), wide[4].mul_(300)
    half = trainable(t.to(dtype) for t in wide)
    wide = trainable(t.to(torch.float32) for t in half)
    y, expected = ops.project_and_attend(*half, 0.7), plain(*wide, 0.7)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.1)
    y.float().mean().backward()
    assert all(t.grad.dtype == dtype and t.grad.isfinite().all() for t in half)


def test_attend_follows_autocast():
    tensors = trainable(t.float() for t in arguments(torch.channels_last))
    with torch.autocast('cpu', torch.bfloat16):
        y = ops.project_and_attend(*tensors)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), plain(*tensors, 1.0), rtol=0.05, atol=0.2)
    y.float().square().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.isfinite().all() for t in tensors)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_compiled(layout):
    torch._dynamo.reset()
    tensors = trainable(arguments(layout))
    run = torch.compile(ops.project_and_attend, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(run(*tensors), plain(*tensors, 1.0), rtol=0, atol=1e-12)
