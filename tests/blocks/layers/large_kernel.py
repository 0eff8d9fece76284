"""What LSK and LSKA share: projections, hooks, memory, precision. `respond(block, x)` is a formula."""

import torch
from torch.testing import assert_close

from mmattn.visualization import record
from tests.blocks.slow import conv, draw, drawn
from tests.blocks.test_memory import kept


def formula(block, x, respond):
    if not block.project:
        return x * respond(block, x)
    z = conv(x, block.proj_1)
    z = z * (1 + torch.erf(z / 2**0.5)) / 2
    return x + conv(z * respond(block, z), block.proj_2)


def keeps_few_maps(block, more):
    """x, and so many more maps of its size."""
    x = torch.randn(2, block.in_channels, 12, 11, requires_grad=True)
    _, found = kept(block, [x])
    weights = sum(p.numel() for p in block.parameters())
    assert found <= 4 * ((1 + more) * x.numel() + weights)


def hooks_are_called(block):
    """Each layer's, with the output that the recomputed response is made of."""
    drawn(block)
    x = draw(2, block.in_channels, 5, 4)
    wanted, calls = block(x), []
    for name, layer in block.named_children():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    assert_close(block(x), wanted, rtol=0, atol=1e-10)
    assert sorted(calls) == sorted(name for name, _ in block.named_children())


def formats_stay(block):
    for form in torch.contiguous_format, torch.channels_last:
        x = torch.randn(2, block.in_channels, 5, 4).contiguous(memory_format=form)
        x.requires_grad_()
        y = block(x)
        assert y.is_contiguous(memory_format=form)
        (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert grad.is_contiguous(memory_format=form)


def frozen(block):
    """Frozen weights have no gradient, and change no other."""
    drawn(block)
    x = draw(2, block.in_channels, 5, 4).requires_grad_()
    weight = draw(*x.shape)
    parameters = dict(block.named_parameters())
    wanted = torch.autograd.grad(block(x), (x, *parameters.values()), weight)
    left = {name: value for name, value in parameters.items() if name.startswith('conv1')}
    for name, value in parameters.items():
        value.requires_grad_(name in left)
    found = torch.autograd.grad(block(x), (x, *left.values()), weight)
    by_name = dict(zip(parameters, wanted[1:]))
    for a, b in zip(found, (wanted[0], *(by_name[name] for name in left))):
        assert_close(a, b)


def half(build):
    """bf16 for |x| up to 1000; fp16 as far as the response times x fits."""
    for dtype, limits in (torch.bfloat16, (1, 1000)), (torch.float16, (1, 20)):
        for limit in limits:
            block = build().eval()
            x = ((2 * torch.rand(2, block.in_channels, 9, 7) - 1) * limit).to(dtype)
            wide = block(x.float())
            with torch.autocast('cpu', dtype):
                mixed, pure = block(x.float().requires_grad_()), block(x)
            assert mixed.dtype == torch.float32 and pure.dtype == dtype
            alone = block.to(dtype)(x.requires_grad_())
            assert alone.dtype == dtype
            for y in mixed, pure, alone:
                assert y.isfinite().all(), f'{dtype} at |x| up to {limit}'
                error = (y.float() - wide).abs().max() / wide.abs().max()
                assert limit > 1 or error < 0.05, f'{dtype} differs by {error:.1e}'
            for grad in torch.autograd.grad(alone.float().mean(), (x, *block.parameters())):
                assert grad.isfinite().all()


def recorded_once(block, name, shape):
    """Also where the backward pass, which computes it again, runs while recording."""
    drawn(block)
    x = draw(2, block.in_channels, 5, 4).requires_grad_()
    wanted = torch.autograd.grad(block(x).sum(), x)[0]
    with record(block) as maps:
        found = torch.autograd.grad(block(x).sum(), x)[0]
    assert_close(found, wanted)
    (by_name,) = maps.values()
    (found,) = by_name[name]
    assert found.shape == shape
    return x.detach(), found
