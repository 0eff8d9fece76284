import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from mmattn.ops import project, recompute_project
from mmattn.torch_compat import HAS_OLD_EXPORT


def function(x, weight, bias):
    y = F.conv2d(x.square(), weight, bias)
    return x * y.sigmoid() + y.tanh()


def draw(**options):
    shapes = (2, 3, 4, 5), (3, 3, 1, 1), (3,)
    x, weight, bias = (torch.randn(shape, **options).requires_grad_() for shape in shapes)
    return [x, weight, bias]


def projected(weight, bias, *inputs, scale=None, last=True):
    y = project(function(*inputs), weight, bias, last=last)
    return y if scale is None else scale * y


def draw_projected(scaled=True, **options):
    """weight, bias, inputs of the function, scale."""
    shapes = (4, 3), (4,), (2, 4, 4, 5)
    weight, bias, scale = (torch.randn(shape, **options).requires_grad_() for shape in shapes)
    return [weight, bias, *draw(**options)], dict(scale=scale if scaled else None)


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('scaled, save', [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize('frozen', [None, 0, 1, 2, 3, 'scale', 'inputs'])
def test_values_and_gradients(frozen, scaled, save, last):
    inputs, options = draw_projected(scaled, dtype=torch.float64)
    if frozen == 'inputs':
        for t in inputs[2:]:
            t.requires_grad_(False)
    elif frozen == 'scale' and scaled:
        options['scale'].requires_grad_(False)
    elif isinstance(frozen, int):
        inputs[frozen].requires_grad_(False)
    wanted = [t for t in (*inputs, options['scale']) if t is not None and t.requires_grad]
    found = recompute_project(function, *inputs, **options, last=last, save=save)
    plain = projected(*inputs, **options, last=last)
    assert torch.equal(found, plain) and found.stride() == plain.stride()
    weight = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, wanted, weight) for y in (found, plain))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_without_bias():
    (weight, _, *inputs), options = draw_projected()
    found = recompute_project(function, weight, None, *inputs, **options)
    plain = projected(weight, None, *inputs, **options)
    for a, b in zip(*(torch.autograd.grad(y.sum(), (weight, *inputs)) for y in (found, plain))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('save', [False, True])
def test_saves_its_arguments_and_the_projection_if_that_is_asked_for(save):
    inputs, options = draw_projected()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        recompute_project(function, *inputs, **options, save=save)
    known = {t.data_ptr() for t in (*inputs, options['scale'])}
    assert known <= {t.data_ptr() for t in saved}
    others = [t for t in saved if t.data_ptr() not in known]
    assert len(others) == save
    if save:
        torch.testing.assert_close(others[0], projected(*inputs))


@pytest.mark.skipif(HAS_OLD_EXPORT, reason='torch.autograd.grad needs the tensor itself')
@pytest.mark.parametrize('scaled, save', [(True, True), (False, False)])
def test_the_result_of_the_function_is_freed_before_its_gradients(scaled, save):
    results, are_freed = [], []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            are_freed.append(results[-1].expired())
            return 2 * grad

    def doubled(x):
        y = Double.apply(x)
        results.append(StorageWeakRef(y.untyped_storage()))
        return y

    (weight, bias, x, *_), options = draw_projected(scaled)
    recompute_project(doubled, weight, bias, x, **options, save=save).sum().backward()
    assert are_freed == [True]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_in_half_precision_of_a_wide_scale(dtype):
    (weight, bias, *inputs), options = draw_projected()
    half = [t.detach().to(dtype).requires_grad_() for t in (weight, bias, *inputs)]
    with torch.autocast('cpu', dtype):
        found = recompute_project(function, *half, **options)
    assert found.dtype == torch.float32
    plain = projected(weight, bias, *inputs, **options)
    cotangent = torch.randn_like(plain)
    ours = torch.autograd.grad(found, (options['scale'], *half), cotangent)
    theirs = torch.autograd.grad(plain, (options['scale'], weight, bias, *inputs), cotangent)
    for a, b in zip(ours, theirs):
        assert (a.float() - b).abs().max() < 0.05 * b.abs().max()


def test_the_function_runs_without_autocast_forward_and_backward():
    seen = []

    def watched(x, weight, bias):
        y = F.conv2d(x, weight, bias)
        seen.append(y.dtype)
        return y

    inputs, options = draw_projected()
    with torch.autocast('cpu', torch.bfloat16):
        y = recompute_project(watched, *inputs, **options)
        y.sum().backward()
    assert seen == [torch.float32, torch.float32]


def test_without_a_gradient_it_is_the_formula():
    inputs, options = draw_projected()
    with torch.no_grad():
        assert not recompute_project(function, *inputs, **options).requires_grad


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        weight = self.conv.weight.flatten(1)
        inputs = x, self.conv.weight, self.conv.bias
        return recompute_project(function, weight, self.conv.bias, *inputs, scale=x)


def test_in_a_compiled_graph():
    layer, x = Layer(), torch.randn(2, 3, 4, 5, requires_grad=True)
    y = torch.compile(layer, fullgraph=True, backend='aot_eager')(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(grad, wanted)
