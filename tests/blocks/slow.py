"""Formulas in elementary steps, loops over pixels and taps: what the blocks are compared with."""

import copy
import math

import torch
from torch.testing import assert_close

from tests.conftest import randomise


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def drawn(module, train=False):
    """The module in fp64, every parameter and running statistic drawn at random."""
    return randomise(module.double()).train(train)


def agree(block, formula, *inputs, **arguments):
    """formula(copy of the block, *inputs, **arguments) is what the block computes.

    Compared are the outputs, all gradients, and the running statistics afterwards.
    """
    twin = copy.deepcopy(block)
    _same(block, twin, lambda *given: formula(twin, *given, **arguments), inputs)


def agree_with_peer(block, peer, *inputs, train=False, gradients=True):
    """Block and peer compute the same, and load each other's weights strictly, both ways."""
    for source, target in (peer, block), (block, peer):
        drawn(source, train)
        target.double().train(train).load_state_dict(source.state_dict(), strict=True)
        _same(block, peer, peer, inputs, gradients)


def _same(block, twin, run, inputs, gradients=True):
    sides = []
    for module, call in (block, block), (twin, run):
        given = [t.clone().requires_grad_() for t in inputs]
        y = call(*given)
        cotangent = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).cos().reshape(y.shape)
        wanted = dict(module.named_parameters()) | {f'input {i}': t for i, t in enumerate(given)}
        found = {}
        if gradients:
            found = dict(zip(wanted, torch.autograd.grad(y, wanted.values(), cotangent)))
        sides.append((y, found, module.state_dict()))
    (y, found, state), (their_y, their_found, their_state) = sides
    assert_close(y, their_y, rtol=0, atol=1e-10)
    assert_close(found, their_found, rtol=1e-9, atol=1e-9)
    assert_close(state, their_state, rtol=0, atol=1e-10)


def parameters(build, *arguments, **options):
    """The number of parameters, without memory for them."""
    with torch.device('meta'):
        return sum(p.numel() for p in build(*arguments, **options).parameters())


def sigmoid(z, init='paper'):
    """The gate of blocks that only scale: doubled where the start is the identity."""
    return (2 if init == 'identity' else 1) / (1 + (-z).exp())


def softmax(logits):
    """A list of scalars -> its weights."""
    logits = torch.stack(logits)
    e = (logits - logits.max().detach()).exp()
    return e / e.sum()


def means(x):
    """(N, C, H, W) -> (N, C)."""
    return x.sum((2, 3)) / (x.shape[2] * x.shape[3])


def linear(z, layer):
    """(N, C) -> (N, C'), by a linear layer or a 1x1 convolution."""
    out = z @ layer.weight.flatten(1).T
    return out if layer.bias is None else out + layer.bias


def conv(x, layer, stride=1, padding=0, dilation=1, groups=1):
    """Weight and bias of the layer alone are read: (N, C, H, W) -> (N, C', H', W')."""
    (sy, sx), (py, px), (dy, dx) = (
        (v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)
    )
    (count, _, height, width), (out, _, kh, kw) = x.shape, layer.weight.shape
    parts = x.unflatten(1, (groups, -1))
    kernels = layer.weight.unflatten(0, (groups, -1))
    pixels = []
    rows = (height + 2 * py - dy * (kh - 1) - 1) // sy + 1
    columns = (width + 2 * px - dx * (kw - 1) - 1) // sx + 1
    for i in range(rows):
        for j in range(columns):
            total = x.new_zeros(count, out) if layer.bias is None else layer.bias.expand(count, -1)
            for a in range(kh):
                for b in range(kw):
                    r, c = i * sy - py + a * dy, j * sx - px + b * dx
                    if 0 <= r < height and 0 <= c < width:
                        tap = torch.einsum('ngc,goc->ngo', parts[..., r, c], kernels[..., a, b])
                        total = total + tap.flatten(1)
            pixels.append(total)
    return torch.stack(pixels, 2).unflatten(2, (rows, columns))


def batch_norm(x, norm, momentum=0.1):
    """By the running statistics, in training by the batch's, which then move the running ones."""
    axes, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    if norm.training:
        count = x.numel() // x.shape[1]
        mean = x.sum(axes) / count
        var = (x - mean.reshape(shape)).square().sum(axes) / count
        with torch.no_grad():
            norm.running_mean.lerp_(mean, momentum)
            norm.running_var.lerp_(var * count / (count - 1), momentum)
            norm.num_batches_tracked += 1
    x = (x - mean.reshape(shape)) / (var.reshape(shape) + 1e-5).sqrt()
    return x * norm.weight.reshape(shape) + norm.bias.reshape(shape)


def conv_norm(x, layer, **options):
    """The convolution and, where there is one, the batch norm of a `ConvNormAct`."""
    x = conv(x, layer.conv, **options)
    return x if layer.norm is None else batch_norm(x, layer.norm)


def max_pool(x, size, stride, padding=0):
    """Windows of which some part lies beyond the padding are left out."""
    height, width = x.shape[2:]
    rows, columns = ((n + 2 * padding - size) // stride + 1 for n in (height, width))
    pixels = []
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride - padding, j * stride - padding
            window = x[:, :, max(top, 0) : top + size, max(left, 0) : left + size]
            pixels.append(window.amax((2, 3)))
    return torch.stack(pixels, 2).unflatten(2, (rows, columns))


def sample(x, row, column, outside='border'):
    """(..., H, W) at one place between pixels: its four neighbours, weighted by nearness."""
    height, width = x.shape[-2:]
    if outside == 'border':
        row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    top, left = math.floor(row), math.floor(column)
    total = x.new_zeros(x.shape[:-2])
    for r in top, top + 1:
        for c in left, left + 1:
            if 0 <= r < height and 0 <= c < width:
                total = total + x[..., r, c] * (1 - (row - r).abs()) * (1 - (column - c).abs())
    return total


def resize(x, size, align_corners):
    """Bilinear: (N, C, H, W) -> (N, C, *size)."""

    def places(source, target):
        at = torch.arange(target, dtype=x.dtype)
        if align_corners:
            return at * ((source - 1) / (target - 1) if target > 1 else 0)
        return (at + 0.5) * source / target - 0.5

    rows, columns = (places(s, t) for s, t in zip(x.shape[2:], size))
    pixels = [sample(x, row, column) for row in rows for column in columns]
    return torch.stack(pixels, 2).unflatten(2, tuple(size))


def grid_means(x, n):
    """Means over n x n bins, which overlap where n does not divide the size: (N, C, n * n)."""
    height, width = x.shape[2:]
    bins = []
    for i in range(n):
        for j in range(n):
            rows = slice(math.floor(i * height / n), math.ceil((i + 1) * height / n))
            columns = slice(math.floor(j * width / n), math.ceil((j + 1) * width / n))
            bins.append(means(x[:, :, rows, columns]))
    return torch.stack(bins, 2)


def asymmetric(block, high, low, act, last_act, query_scales=(1,), key_pool_scales=(1, 3, 6, 8)):
    """APNB and AFNB: bottleneck([sum of the contexts ; high])."""
    context = 0
    for stage, scale in zip(block.stages, query_scales, strict=True):
        q, k = act(conv_norm(high, stage.query_project)), act(conv_norm(low, stage.key_project))
        v = conv(low, stage.value_project)
        q = max_pool(q, scale, scale)
        k, v = (torch.cat([grid_means(t, n) for n in key_pool_scales], 2) for t in (k, v))
        pixels = []
        for n in range(len(q)):
            for query in q[n].flatten(1).T:
                a = softmax([query @ key / len(query) ** 0.5 for key in k[n].T])
                pixels.append(sum(w * value for w, value in zip(a, v[n].T)))
        prior = torch.stack(pixels).unflatten(0, (len(q), *q.shape[2:])).permute(0, 3, 1, 2)
        context = context + resize(conv(prior, stage.out_project), high.shape[2:], False)
    return last_act(conv_norm(torch.cat([context, high], 1), block.bottleneck))
