import pytest
import torch

from mmattn import ops

LAYOUTS = torch.contiguous_format, torch.channels_last


def draw(*shape, layout, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize('of_y', LAYOUTS)
@pytest.mark.parametrize('of_x', LAYOUTS)
@pytest.mark.parametrize(
    'shape',
    [(2, 3, 4, 5), (1, 70, 19, 31), (2, 5, 16, 32), (0, 3, 4, 5), (2, 3, 1, 1), (2, 1, 7, 6)],
)
def test_residual_add(shape, of_x, of_y):
    """The sum to the last bit, in the layout of x; both gradients are that of the sum."""
    x, y = (draw(*shape, layout=layout).requires_grad_() for layout in (of_x, of_y))
    total = ops.residual_add(x, y)
    assert torch.equal(total, x + y)
    assert not len(x) or total.is_contiguous(memory_format=of_x)
    for layout in LAYOUTS:
        weight = draw(*shape, layout=layout)
        for grad in torch.autograd.grad(total, (x, y), weight, retain_graph=True):
            assert torch.equal(grad, weight)


def test_gradcheck():
    x, y = (draw(2, 3, 20, 17, layout=layout).requires_grad_() for layout in LAYOUTS)
    assert torch.autograd.gradcheck(ops.residual_add, (x, y), fast_mode=True)


def test_of_every_second_channel():
    x, y = (draw(2, 6, 4, 5, layout=layout)[:, ::2] for layout in LAYOUTS)
    assert torch.equal(ops.residual_add(x, y), x + y)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('wide', [False, True])
def test_dtype_is_that_of_x(dtype, wide):
    x = draw(1, 70, 19, 31, layout=LAYOUTS[0], dtype=dtype)
    y = draw(1, 70, 19, 31, layout=LAYOUTS[1], dtype=torch.float32 if wide else dtype)
    assert torch.equal(ops.residual_add(x, y), x + y.to(dtype))


def test_saves_nothing_for_backward():
    saved = []
    x, y = (draw(1, 3, 20, 17, layout=layout).requires_grad_() for layout in LAYOUTS)
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        ops.residual_add(x, y)
    assert not saved
