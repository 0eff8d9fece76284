import pytest
import torch
from torch.nn import functional as F

from mmattn import ops
from mmattn.benchmarks.timing import saved_bytes
from mmattn.ops import affine
from tests.blocks.slow import draw

FORMATS = torch.contiguous_format, torch.channels_last
SHIFT = [[1, 0, 2 / 7], [0, 1, -4 / 5]]  # one column, two rows of a 5 x 7 map


@pytest.fixture(autouse=True)
def few_channels(monkeypatch):
    monkeypatch.setattr(affine, '_MIN_CHANNELS', 1)


def sampled(x, theta, size=None, padding_mode='border', align_corners=False):
    """By torch alone, of a contiguous map."""
    grid = F.affine_grid(theta, (*x.shape[:2], *(size or x.shape[2:])), align_corners)
    return F.grid_sample(x.contiguous(), grid, 'bilinear', padding_mode, align_corners)


def inputs(shape=(2, 3, 5, 7), memory_format=torch.channels_last, spread=1):
    x = draw(*shape).to(memory_format=memory_format)
    theta = torch.eye(2, 3, dtype=x.dtype) + spread * draw(len(x), 2, 3)
    return x.requires_grad_(), theta.requires_grad_()


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('padding_mode', ['border', 'zeros'])
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [None, (4, 9), (1, 1)])
@pytest.mark.parametrize('spread', [0.1, 3])
def test_values_and_gradients(memory_format, padding_mode, align_corners, size, spread):
    given = inputs(memory_format=memory_format, spread=spread)
    arguments = size, padding_mode, align_corners
    y, wanted = ops.affine_sample(*given, *arguments), sampled(*given, *arguments)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    weight = torch.randn_like(wanted)
    grads = [torch.autograd.grad(t, given, weight) for t in (y, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('padding_mode', ['border', 'zeros'])
@pytest.mark.parametrize('align_corners', [False, True])
def test_gradcheck(padding_mode, align_corners):
    given = inputs()
    arguments = None, padding_mode, align_corners
    assert torch.autograd.gradcheck(lambda *t: ops.affine_sample(*t, *arguments), given)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('padding_mode', ['border', 'zeros'])
def test_whole_pixels(memory_format, padding_mode):
    """On pixels, also on those of the border, gradients are those of the other format."""
    x, theta = inputs(memory_format=memory_format, spread=0)
    with torch.no_grad():
        theta[1] = theta.new_tensor(SHIFT)
    y, wanted = (f(x, theta, None, padding_mode) for f in (ops.affine_sample, sampled))
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    assert torch.equal(y[0], x[0])
    weight = torch.randn_like(wanted)
    grads = [torch.autograd.grad(t, x, weight)[0] for t in (y, wanted)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize('padding_mode', ['border', 'zeros'])
def test_formats_have_one_gradient_at_the_identity(padding_mode):
    size = 2, 3, 4, 8  # of powers of two, for positions without rounding
    x, theta = inputs(size, spread=0)
    weight = draw(*size)
    grads = [
        torch.autograd.grad(ops.affine_sample(t, theta, None, padding_mode), theta, weight)[0]
        for t in (x, x.contiguous())
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x, theta = (t.detach().to(dtype).requires_grad_() for t in inputs(spread=0.3))
    y, wanted = ops.affine_sample(x, theta), sampled(x.float(), theta.float())
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), wanted, rtol=eps, atol=1e-4)
    weight = torch.randn_like(y)
    grads = [torch.autograd.grad(t, (x, theta), weight.to(t.dtype)) for t in (y, wanted)]
    for found, grad in zip(*grads):
        assert found.dtype == dtype
        torch.testing.assert_close(found, grad, rtol=2 * eps, atol=eps)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_memory_format(memory_format):
    x, theta = inputs((2, 8, 5, 7), memory_format)
    y = ops.affine_sample(x, theta)
    assert y.is_contiguous(memory_format=memory_format)
    if memory_format == torch.channels_last:
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert grad.is_contiguous(memory_format=memory_format)
    saved = saved_bytes(ops.affine_sample, [x.detach(), theta.detach()], [])
    assert saved <= 4 * x[:, 0].numel() * x.element_size()


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('needs', [(True, False), (False, True)])
def test_one_gradient_alone(memory_format, needs):
    given = inputs(memory_format=memory_format)
    for t, flag in zip(given, needs):
        t.requires_grad_(flag)
    wanted_of = [t for t in given if t.requires_grad]
    grads = [torch.autograd.grad(f(*given).sum(), wanted_of) for f in (ops.affine_sample, sampled)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_no_image():
    x, theta = inputs((0, 3, 5, 7))
    y = ops.affine_sample(x, theta)
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), (x, theta))
    assert [t.shape for t in grads] == [x.shape, theta.shape]


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e30])
@pytest.mark.parametrize('padding_mode', ['border', 'zeros'])
def test_a_transform_that_is_not_finite(value, padding_mode):
    """Nothing is read beyond the map; a NaN shows."""
    x, theta = inputs(spread=0)
    theta = theta.detach().clone()
    theta[1, 0, 2] = value
    y = ops.affine_sample(x, theta.requires_grad_(), None, padding_mode)
    assert y[0].isfinite().all() and y[1].isnan().all() == (value != value)
    y.sum().backward()
