import pytest
import torch

from mmattn.benchmarks.timing import saved_bytes
from mmattn.ops import max_of_gates, scale_by_fused_sigmoid, two_gates
from tests.blocks.slow import draw

FORMS = {
    'contiguous': lambda x: x.contiguous(),
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'sliced': lambda x: x.repeat(1, 2, 1, 2)[:, : x.shape[1], :, : x.shape[3]],
    'transposed': lambda x: x.mT.contiguous().mT,
}
SIZES = [(2, 6, 5, 7), (3, 4, 1, 1), (1, 1, 3, 1), (2, 1, 1, 1), (0, 3, 4, 5)]


def gates(size, dtype=torch.float64):
    n, c, h, w = size
    return torch.rand(n, c, 1, 1, dtype=dtype), torch.rand(n, 1, h, w, dtype=dtype)


def plain(x, channel, spatial):
    return torch.max(x * channel, x * spatial)


def same(inputs, weight, tolerance=1e-12):
    """The same values bit by bit, and the same gradients."""
    found, wanted = max_of_gates(*inputs), plain(*inputs)
    assert torch.equal(found.nan_to_num(7), wanted.nan_to_num(7))
    wants = [t for t in inputs if t.requires_grad]
    grads = [torch.autograd.grad(y, wants, weight) for y in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)
    return found


@pytest.mark.parametrize('block', [1, 100, 1 << 18])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', SIZES)
def test_equals_the_formula(monkeypatch, size, form, block):
    """Also where x is 0 or the gates are equal, which share the gradient."""
    monkeypatch.setattr(two_gates, '_BLOCK', block)
    x = draw(*size)
    x[:, :, ::2] *= torch.randint(0, 2, x[:, :, ::2].shape)
    channel, spatial = gates(size)
    spatial[..., ::3] = 0.25
    channel[:, ::2] = 0.25
    inputs = [t.requires_grad_() for t in (FORMS[form](x), channel, spatial)]
    for weight in draw(*size), torch.ones(()).double().expand(size), FORMS['transposed'](x):
        y = same(inputs, weight.detach())
    if form == 'channels_last' and len(x):
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('frozen', [[0], [1], [2], [0, 1], [1, 2], [0, 2]])
def test_only_some_gradients(frozen):
    size = 2, 3, 4, 5
    inputs = [draw(*size), *gates(size)]
    for k, value in enumerate(inputs):
        value.requires_grad_(k not in frozen)
    same(inputs, draw(*size))


def test_gradcheck():
    size = 2, 3, 2, 4
    inputs = [t.requires_grad_() for t in (draw(*size), *gates(size))]
    assert torch.autograd.gradcheck(max_of_gates, inputs)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_not_finite(form):
    """NaN stays where it is; other positions have the gradient of the formula."""
    size = 1, 3, 4, 5
    x = draw(*size)
    x[0, 0, 0, 0], x[0, 1, 1, 1], x[0, 2, 2, 2] = float('nan'), float('inf'), -float('inf')
    inputs = [t.requires_grad_() for t in (FORMS[form](x), *gates(size))]
    y, wanted = max_of_gates(*inputs), plain(*inputs)
    assert torch.equal(y.nan_to_num(7), wanted.nan_to_num(7))
    assert y.isnan().sum() == 1
    ours, theirs = (torch.autograd.grad(t.sum(), inputs) for t in (y, wanted))
    finite = x.isfinite()
    torch.testing.assert_close(ours[0][finite], theirs[0][finite])
    assert ours[1][0, 0].isnan() and ours[2][0, 0, 0, 0].isnan()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_half_precision(form, dtype):
    """Bit by bit the formula; sums for the gates are computed in fp32."""
    size = 2, 64, 60, 50
    x = FORMS[form]((1000 * torch.randn(size)).to(dtype))
    inputs = [t.requires_grad_() for t in (x, *gates(size, dtype))]
    y = max_of_gates(*inputs)
    assert y.dtype == dtype and torch.equal(y, plain(*inputs))
    weight = (1e-3 * torch.randn(size)).to(dtype)
    ours = torch.autograd.grad(y, inputs, weight)
    wide = [t.detach().float().requires_grad_() for t in inputs]
    wanted = torch.autograd.grad(plain(*wide), wide, weight.float())
    for a, b in zip(ours, wanted):
        assert a.dtype == dtype
        error = (a.float() - b).norm() / b.norm()
        assert error < 0.05  # where the products round to the same, they share the gradient


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_saves_x_and_gates(form):
    x = FORMS[form](torch.randn(2, 8, 9, 10))
    values = [t.requires_grad_() for t in gates(x.shape, torch.float32)]
    saved = saved_bytes(lambda t: max_of_gates(t, *values), [x], values)
    assert saved == 0


def fused(x, channel, spatial, offset, multiply):
    z = channel * spatial if multiply else channel + spatial
    return x * (offset + z.sigmoid())


@pytest.mark.parametrize('block', [1, 100, 1 << 18])
@pytest.mark.parametrize('multiply', [False, True])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', SIZES)
def test_fused_sigmoid(monkeypatch, size, form, multiply, block):
    monkeypatch.setattr(two_gates, '_BLOCK', block)
    n, c, h, w = size
    inputs = FORMS[form](draw(*size)), draw(n, c, 1, 1), draw(n, 1, h, w)
    inputs = [t.requires_grad_() for t in inputs]
    found = scale_by_fused_sigmoid(*inputs, 0.5, multiply)
    wanted = fused(*inputs, 0.5, multiply)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    assert found.stride() == wanted.stride() or not inputs[0].is_contiguous() or n == 0
    weight = draw(*size)
    grads = [torch.autograd.grad(y, inputs, weight, retain_graph=True) for y in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)
    for value, whole in zip(inputs, grads[1]):  # one gradient alone
        others = [t if t is value else t.detach() for t in inputs]
        (grad,) = torch.autograd.grad(scale_by_fused_sigmoid(*others, 0.5, multiply), value, weight)
        torch.testing.assert_close(grad, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('multiply', [False, True])
def test_gradcheck_of_fused_sigmoid(multiply):
    inputs = [t.requires_grad_() for t in (draw(2, 3, 2, 4), draw(2, 3, 1, 1), draw(2, 1, 2, 4))]
    assert torch.autograd.gradcheck(
        lambda *given: scale_by_fused_sigmoid(*given, 1.0, multiply), inputs
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_fused_sigmoid_in_half_precision(form, dtype):
    size = 2, 64, 60, 50
    x = FORMS[form]((1000 * torch.randn(size)).to(dtype))
    inputs = [t.to(dtype) for t in (x, draw(2, 64, 1, 1), draw(2, 1, 60, 50))]
    inputs = [t.requires_grad_() for t in inputs]
    y = scale_by_fused_sigmoid(*inputs, 1.0)
    torch.testing.assert_close(y, fused(*inputs, 1.0, False))
    weight = (1e-3 * torch.randn(size)).to(dtype)
    ours = torch.autograd.grad(y, inputs, weight)
    wide = [t.detach().float().requires_grad_() for t in inputs]
    wanted = torch.autograd.grad(fused(*wide, 1.0, False), wide, weight.float())
    for a, b in zip(ours, wanted):
        assert a.dtype == dtype
        assert (a.float() - b).norm() < 0.02 * b.norm()


def test_fused_sigmoid_saves_x_and_logits():
    x, *values = torch.randn(2, 8, 9, 10), torch.randn(2, 8, 1, 1), torch.randn(2, 1, 9, 10)
    values = [t.requires_grad_() for t in values]
    assert saved_bytes(lambda t: scale_by_fused_sigmoid(t, *values, 1.0), [x], values) == 0
