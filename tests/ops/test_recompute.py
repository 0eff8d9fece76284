import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmattn.ops import recompute


def function(x, weight, bias):
    y = F.conv2d(x.square(), weight, bias)
    return x * y.sigmoid() + y.tanh()


def draw(has_bias=True, **options):
    shapes = (2, 3, 4, 5), (3, 3, 1, 1), (3,)
    x, weight, bias = (torch.randn(shape, **options).requires_grad_() for shape in shapes)
    return [x, weight, bias if has_bias else None]


@pytest.mark.parametrize('has_bias', [True, False])
@pytest.mark.parametrize('frozen', [None, 0, 1])
def test_values_and_gradients(frozen, has_bias):
    inputs = draw(has_bias, dtype=torch.float64)
    if frozen is not None:
        inputs[frozen].requires_grad_(False)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found, plain = recompute(function, *inputs), function(*inputs)
    assert torch.equal(found, plain)
    weight = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, wanted, weight) for y in (found, plain))):
        assert torch.equal(a, b)


def test_only_the_inputs_are_kept():
    inputs, kept = draw(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        recompute(function, *inputs)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in inputs}


def test_it_runs_without_autocast_forward_and_backward():
    seen = []

    def watched(x, weight, bias):
        y = F.conv2d(x, weight, bias)
        seen.append(y.dtype)
        return y

    inputs = draw()
    with torch.autocast('cpu', torch.bfloat16):
        y = recompute(watched, *inputs)
        y.sum().backward()
    assert seen == [torch.float32, torch.float32]


def test_without_a_gradient_it_is_the_function():
    with torch.no_grad():
        assert not recompute(function, *draw()).requires_grad


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return recompute(function, x, self.conv.weight, self.conv.bias)


def test_in_a_compiled_graph():
    layer, x = Layer(), torch.randn(2, 3, 4, 5, requires_grad=True)
    y = torch.compile(layer, fullgraph=True, backend='aot_eager')(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(grad, wanted)
