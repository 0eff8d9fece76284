import pytest
import torch

from mmattn import ops
from mmattn.ops.channel_attention import _flush, _gram


def draw(batch, channels, pixels, last, dtype=torch.float64):
    shape = (batch, pixels, channels) if last else (batch, channels, pixels)
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    return x.mT if last else x


def formula(x, gamma):
    return x + gamma * (-(x @ x.mT)).softmax(-1) @ x


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize(
    'batch, channels, pixels', [(2, 3, 5), (1, 1, 4), (2, 300, 7), (1, 256, 1), (0, 3, 5)]
)
def test_channel_attention(batch, channels, pixels, last):
    """Value, order in memory and gradients, with and without several blocks of channels."""
    x = (0.3 * draw(batch, channels, pixels, last)).requires_grad_()
    gamma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y, expected = ops.channel_attention(x, gamma), formula(x, gamma)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
    assert not batch or (y.mT if last else y).is_contiguous()
    for weight in torch.randn_like(expected), torch.randn_like(expected.mT).mT:
        wanted = torch.autograd.grad(expected, (x, gamma), weight, retain_graph=True)
        found = torch.autograd.grad(y, (x, gamma), weight, retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('gamma', [0.0, -0.4])
def test_gradcheck(gamma, last):
    x = draw(2, 3, 5, last).requires_grad_()
    leaves = x, torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.channel_attention, leaves)


def test_of_every_second_channel():
    x, gamma = draw(2, 6, 5, False)[:, ::2], torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(ops.channel_attention(x, gamma), formula(x, gamma))


@pytest.mark.parametrize('channels', [1, 127, 128, 129, 300])
def test_gram(channels):
    """Symmetric to the last bit, and no block is missing."""
    x = draw(2, channels, 9, False)
    gram = _gram(x)
    torch.testing.assert_close(gram, x @ x.mT)
    assert torch.equal(gram, gram.mT) or channels <= 128


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype, last):
    """Logits beyond what fp16 holds; the gradients are those of the formula in fp64."""
    x = (5 * draw(2, 6, 4000, last)).to(dtype)
    assert (x.double() @ x.double().mT).max() > torch.finfo(torch.float16).max
    gamma = torch.tensor(0.7)
    leaves = [x.requires_grad_(), gamma.requires_grad_()]
    y = ops.channel_attention(*leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = formula(*wide)
    close = dict(rtol=4 * torch.finfo(dtype).eps, atol=0.1)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, **close)
    weight = 0.01 * torch.randn_like(expected)
    found = torch.autograd.grad(y, leaves, weight.to(dtype))
    for a, b in zip(found, torch.autograd.grad(expected, wide, weight.to(dtype).double())):
        torch.testing.assert_close(a.double(), b, **close)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    x, gamma = torch.randn(1, 6, 50), torch.tensor(0.7)
    expected = ops.channel_attention(x, gamma)
    with torch.autocast('cpu', dtype):
        assert torch.equal(ops.channel_attention(x, gamma), expected)


def test_saves_the_input_and_one_map():
    saved = {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x, gamma = torch.randn(1, 8, 100, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ops.channel_attention(x, gamma)
    assert sum(saved.values()) == 4 * (8 * 100 + 8 * 8 + 1)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_flush(dtype):
    """Only subnormal numbers become 0."""
    tiny = torch.finfo(dtype).tiny
    x = torch.tensor([tiny / 2, -tiny / 4, 2 * tiny, -1, float('nan'), -float('inf')], dtype=dtype)
    expected = torch.cat([x.new_zeros(2), x[2:]])
    torch.testing.assert_close(_flush(x), expected, rtol=0, atol=0, equal_nan=True)
