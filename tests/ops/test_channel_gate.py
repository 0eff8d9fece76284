import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmattn.benchmarks.timing import saved_bytes
from mmattn.ops import channel_gate, channel_means, scale_channels
from tests.blocks.slow import draw

FORMS = {
    'contiguous': lambda x: x.contiguous(),
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'sliced': lambda x: x.repeat(1, 2, 1, 2)[:, : x.shape[1], :, : x.shape[3]],
    'transposed': lambda x: x.mT.contiguous().mT,
}
SIZES = [(2, 6, 5, 7), (3, 4, 1, 1), (1, 1, 3, 1), (0, 3, 4, 5)]


class Gates(nn.Module):
    """Gates of means, and with `largest` of maxima too, whose gradient is a whole map."""

    def __init__(self, channels, largest=False):
        super().__init__()
        self.fc, self.largest = nn.Linear(channels, channels), largest

    def forward(self, x):
        pooled = channel_means(x)
        return self.fc(pooled + x.amax((2, 3)) if self.largest else pooled).sigmoid()

    def plain(self, x):
        pooled = x.mean((2, 3))
        return self.fc(pooled + x.amax((2, 3)) if self.largest else pooled).sigmoid()


def plain(x, gates, added=None):
    y = x * gates.plain(x)[:, :, None, None]
    return y if added is None else y + added


def same(found, wanted, inputs, weight=None, tolerance=1e-12):
    """The same values and gradients."""
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(wanted) if weight is None else weight
    grads = [torch.autograd.grad(y, inputs, weight, retain_graph=True) for y in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('block', [1, 100, 1 << 19])
@pytest.mark.parametrize('with_added', [False, True])
@pytest.mark.parametrize('largest', [False, True])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', SIZES)
def test_equals_the_formula(monkeypatch, size, form, largest, with_added, block):
    monkeypatch.setattr(channel_gate, '_BLOCK', block)
    x, added = (FORMS[form](draw(*size)).requires_grad_() for _ in range(2))
    gates, added = Gates(size[1], largest).double(), added if with_added else None
    inputs = [t for t in (x, added, *gates.parameters()) if t is not None]
    y = scale_channels(x, gates, added)
    for _ in range(2):  # the graph is retained
        same(y, plain(x, gates, added), inputs)
        same(y, plain(x, gates, added), inputs, torch.ones(()).double().expand(size))
        mixed = draw(*size).contiguous(memory_format=torch.channels_last)
        same(y, plain(x, gates, added), inputs, mixed)
    with torch.no_grad():
        assert torch.equal(scale_channels(x, gates, added), y)


@pytest.mark.parametrize('frozen', ['x', 'gates', 'both', 'added'])
def test_only_some_gradients(frozen):
    x, added, gates = draw(2, 3, 4, 5), draw(2, 3, 4, 5), Gates(3).double()
    x.requires_grad_(frozen not in ('x', 'both'))
    gates.requires_grad_(frozen not in ('gates', 'both'))
    added.requires_grad_(frozen != 'added')
    inputs = [t for t in (x, added, *gates.parameters()) if t.requires_grad]
    same(scale_channels(x, gates, added), plain(x, gates, added), inputs)


def test_parts_of_the_graph():
    """Gradients for weights alone leave nothing that a later backward pass would take."""
    x, gates = draw(2, 3, 4, 5).requires_grad_(), Gates(3).double()
    seen = []
    y = scale_channels(x, lambda t: seen.append(gates(t)) or seen[0])
    torch.autograd.grad(y.sum(), gates.fc.weight, retain_graph=True)
    wanted = gates.plain(x)
    ours, theirs = (torch.autograd.grad(g.cos().sum(), x)[0] for g in (seen[0], wanted))
    torch.testing.assert_close(ours, theirs)


def test_gates_used_twice():
    x, gates, seen = draw(2, 3, 4, 5).requires_grad_(), Gates(3).double(), []
    y = scale_channels(x, lambda t: seen.append(gates(t)) or seen[0])
    found, wanted = y * seen[0].sum(), plain(x, gates) * gates.plain(x).sum()
    same(found, wanted, [x, *gates.parameters()])


def test_constant_gates():
    x = draw(2, 3, 4, 5).requires_grad_()
    factor = torch.rand(2, 3, 1, 1).double()
    same(scale_channels(x, lambda t: factor), x * factor, [x])


def test_gradcheck():
    gates = Gates(3, largest=True).double()

    def call(x, added, *weights):
        parameters = dict(zip(('fc.weight', 'fc.bias'), weights))
        run = torch.func.functional_call
        return scale_channels(x, lambda t: run(gates, parameters, t), added)

    values = (draw(2, 3, 2, 4), draw(2, 3, 2, 4), *gates.parameters())
    assert torch.autograd.gradcheck(call, tuple(t.detach().requires_grad_() for t in values))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_half_precision(form, dtype):
    x = FORMS[form]((1000 * torch.randn(2, 3, 100, 90)).to(dtype)).requires_grad_()
    wide = x.detach().float().requires_grad_()
    gates = Gates(3)
    for weight in (gates.fc.weight, gates.fc.bias):
        nn.init.normal_(weight, std=1e-3)
    y = scale_channels(x, lambda t: gates(t.float()).to(dtype))
    wanted = plain(wide, gates)
    assert y.dtype == dtype
    close = dict(rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(y.float(), wanted, **close)
    weight = 1e-3 * torch.randn_like(wanted)
    (ours,) = torch.autograd.grad(y, x, weight.to(dtype))
    (theirs,) = torch.autograd.grad(wanted, wide, weight)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=1e-4)


def test_means():
    for form in FORMS.values():
        x = form(draw(2, 3, 4, 5)).requires_grad_()
        for keep in False, True:
            same(channel_means(x, keep), x.mean((2, 3), keepdim=keep), [x])
    (grad,) = torch.autograd.grad(channel_means(x).sum(), x)
    assert not any(grad.stride()[2:]), 'the gradient is written out'
    large = torch.full((1, 2, 100, 100), 1000.0, dtype=torch.float16)
    assert (channel_means(large) == 1000).all()


class Maps(TorchDispatchMode):
    """Storages of at least a map that operations allocate."""

    def __init__(self, x):
        super().__init__()
        self.nbytes, self.seen, self.kept = x.nbytes, {x.untyped_storage().data_ptr()}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, out)):
            if isinstance(t, torch.Tensor) and t.untyped_storage().nbytes() >= self.nbytes:
                self.seen.add(t.untyped_storage().data_ptr())
                self.kept.append(t.detach())  # no address is used again
        return out


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_few_maps_are_written(monkeypatch, form):
    """Of x, its gradient, y and its gradient; the plain formula writes three more."""
    monkeypatch.setattr(channel_gate, '_BLOCK', 1 << 10)
    x, gates = FORMS[form](torch.randn(2, 8, 12, 16)).requires_grad_(), Gates(8)
    counts = []
    for run in scale_channels, plain:
        with Maps(x) as maps:
            y = run(x, gates)
            torch.autograd.grad(y, [x, *gates.parameters()], torch.randn_like(y))
        counts.append(len(maps.seen))
    assert counts[0] == 4 < counts[1]


def test_saves_x_and_vectors():
    gates, x = Gates(8), torch.randn(2, 8, 30, 40)
    saved = saved_bytes(lambda t: scale_channels(t, gates), [x], gates.parameters())
    assert saved < 0.01 * x.nbytes


def test_the_graph_is_freed():
    x, gates = torch.randn(2, 3, 4, 5, requires_grad=True), Gates(3)
    gc.disable()
    try:
        seen = []
        y = scale_channels(x, lambda t: seen.append(gates(t)) or seen[0])
        y.sum().backward(retain_graph=True)
        alive = weakref.ref(seen.pop())
        del y
        assert alive() is None, 'a cycle keeps the graph'
    finally:
        gc.enable()


def test_a_changed_input_is_refused():
    x, gates = torch.randn(2, 3, 4, 5, requires_grad=True), Gates(3)
    z = x * 1
    y = scale_channels(z, gates)
    z.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()
