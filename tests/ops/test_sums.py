"""Sums and their gradients, eager, compiled and exported, against the formula."""

import pytest
import torch

from mmattn.ops import global_pool, max_of_gates, sums
from mmattn.torch_compat import can_compile

FORMATS = [torch.contiguous_format, torch.channels_last]
SIZES = [(2, 6, 5, 7), (3, 4, 1, 1), (1, 1, 3, 1)]


def means(x, gate, weight, bias):
    return sums.channel_means(x), sums.channel_means(x, keepdim=True)


def plain_means(x, gate, weight, bias):
    return x.mean((2, 3)), x.mean((2, 3), keepdim=True)


def scaled(x, gate, weight, bias):
    return x * sums.channel_factor(gate, x), x * sums.channel_factor(gate[:, :, None, None], x)


def plain_scaled(x, gate, weight, bias):
    return 2 * (torch.einsum('nchw,nc->nchw', x, gate),)


def weighted(x, gate, weight, bias):
    dots = sums.position_dots(x, weight, bias)
    return dots, sums.weighted_sums(x, dots)


def plain_weighted(x, gate, weight, bias):
    dots = torch.einsum('nchw,ic->nihw', x, weight[:, :, 0, 0]) + bias
    return dots, torch.einsum('nchw,nihw->nc', x, dots)


def pooled(x, gate, weight, bias):
    return (global_pool(x, 'max'),)


def plain_pooled(x, gate, weight, bias):
    return (x.flatten(2).max(2).values,)


CASES = {  # functions, and which of x, gate, weight and bias they use
    'means': (means, plain_means, [0]),
    'scaled': (scaled, plain_scaled, [0, 1]),
    'pooled': (pooled, plain_pooled, [0]),
    'weighted': (weighted, plain_weighted, [0, 2, 3]),
}


@pytest.mark.parametrize('compiled', [False, True] if can_compile else [False])
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name', CASES)
def test_equals_the_formula(name, size, memory_format, compiled):
    torch.manual_seed(0)
    n, c = size[:2]
    inputs = [torch.randn(s, dtype=torch.float64) for s in (size, (n, c), (1, c, 1, 1), (1,))]
    inputs[0] = inputs[0].contiguous(memory_format=memory_format)
    inputs = [t.requires_grad_() for t in inputs]
    run, formula, used = CASES[name]
    if compiled:
        torch.compiler.reset()
        run = torch.compile(run, backend='aot_eager', dynamic=False)
    if name == 'pooled':  # with equal maxima, of which the first gets the gradient
        inputs[0] = inputs[0].detach().round().requires_grad_()
    found, wanted = run(*inputs), formula(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    factors = [torch.randn_like(t) for t in wanted]
    leaves = [inputs[k] for k in used]
    grads = [torch.autograd.grad(outputs, leaves, factors) for outputs in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not can_compile, reason='torch before 2.4 compiles views wrongly')
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_at_once(dtype):
    """Sums of rows would be rounded before they are added."""
    x = torch.randn(2, 3, 40, 40).to(dtype, memory_format=torch.channels_last)

    def run(x):
        return sums.channel_means(x), x * sums.channel_factor(x[:, :, 0, 0], x)

    torch.compiler.reset()
    found = torch.compile(run, backend='aot_eager', dynamic=False)(x)
    assert torch.equal(found[0], x.mean((2, 3)))
    torch.compiler.reset()
    shape = []
    torch.compile(
        lambda x: shape.append(sums.channel_factor(x[:, :, 0, 0], x).shape) or x,
        backend='eager',
        dynamic=False,
    )(x)
    assert shape == [(2, 3, 1, 1)]


@pytest.mark.skipif(not can_compile, reason='torch before 2.4 compiles views wrongly')
def test_the_gradient_of_compiled_gates_is_in_channels_last():
    """It would be written in NCHW, several times slower."""

    def gates(x, weight, bias):
        channel, spatial = sums.channel_means(x), sums.position_dots(x, weight, bias)
        return max_of_gates(x, channel[:, :, None, None], spatial)

    x = torch.randn(2, 6, 5, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(1, 6, 1, 1), torch.randn(1)

    def has_gradient_in_channels_last(run, *inputs):
        torch.compiler.reset()
        y = torch.compile(run, backend='aot_eager', dynamic=False)(x, *inputs)
        (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
        return grad.is_contiguous(memory_format=torch.channels_last)

    # torch 2.4 makes the gradient of any compiled output contiguous
    expected = has_gradient_in_channels_last(torch.sigmoid)
    assert has_gradient_in_channels_last(gates, *weights) == expected


def test_exported_sums_are_those_of_torch():
    class Means(torch.nn.Module):
        def forward(self, x):
            return sums.channel_means(x), sums.weighted_sums(x, x[:, :1])

    program = torch.export.export(Means(), (torch.randn(1, 3, 4, 5),))
    names = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
    assert sum('mean' in name for name in names) == 1 and any('matmul' in name for name in names)
