"""Shuffle attention: half of the channels of each group get a channel gate, half a spatial one.

Source: SA-Net: Shuffle Attention for Deep Convolutional Neural Networks, ICASSP 2021,
arXiv 2102.00240, section 3.

Here maps are (N, C, H, W), their G groups of 2 k channels; P = H W.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmattn.torch_compat import is_compiling

from .channel import channel_shuffle
from .layout import is_channels_last
from .precision import disable_autocast, upcast

_PART = 1 << 17  # values at a time on a CPU; their intermediates fit into the cache
_PART_GPU = 1 << 26

Affine = tuple[Tensor, Tensor]  # weight and bias, (k) each


def shuffle_gates(
    x: Tensor, groups: int, channel: Affine, spatial: Affine, eps: float, factor: float = 1
) -> tuple[Tensor, Tensor]:
    """The gates of `shuffle_attention`, for the same arguments.

    Returns:
        (N G, k, 1, 1) for the first and (N G, k, H, W) for the second half of each group, in the
        dtype of x.
    """
    x0, x1 = _halves(x, groups)
    weight, bias = (t[:, None, None] for t in channel)
    first = (weight * x0.mean((2, 3), keepdim=True) + bias).sigmoid()
    # as a function: the module refuses a single value
    second = torch.group_norm(x1, x1.shape[1], *spatial, eps).sigmoid()
    if factor != 1:
        first, second = factor * first, factor * second
    return first.to(x.dtype), second.to(x.dtype)


def shuffle_attention(
    x: Tensor,
    groups: int,
    channel: Affine,
    spatial: Affine,
    eps: float,
    factor: float = 1,
    shuffle: bool = True,
) -> Tensor:
    """Multiply all values by gates, then optionally `channel_shuffle` by 2.

    The first k channels of a group have the gates factor * sigmoid(w m + b), m the mean of the
    channel; the others factor * sigmoid(w t + b), t the channel standardised over the map. For
    backward autograd saves x, and two numbers a channel.

    Args:
        x: (N, C, H, W).
        groups: G.
        channel, spatial: w and b of the first and of the second halves, (k) each.
        eps: added to the variance, in units of x squared.
        factor: of all gates.
        shuffle: whether to shuffle the channels.

    Returns:
        (N, C, H, W) in the dtype of x, channels_last if x is, else contiguous.
    """
    if not is_compiling():
        zero = torch.zeros_like(channel[0])
        by_group = (channel[0], zero), (zero, spatial[0]), (channel[1], spatial[1])
        # the weight of the mean, the weight of the standardised value, the bias, (C) each
        wide = torch.promote_types(x.dtype, torch.float32)
        affine = [torch.cat(pair).to(wide).repeat(groups) for pair in by_group]
        return _ShuffleAttention.apply(x, *affine, groups, eps, factor, shuffle)
    gates = shuffle_gates(x, groups, channel, spatial, eps, factor)
    y = torch.cat([t * g for t, g in zip(_halves(x, groups), gates, strict=True)], 1)
    y = y.reshape(x.shape)
    return channel_shuffle(y, 2) if shuffle else y


def _halves(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """(N, C, H, W) -> 2 (N G, k, H, W)."""
    return x.unflatten(1, (groups, x.shape[1] // groups)).flatten(0, 1).chunk(2, dim=1)


class _ShuffleAttention(torch.autograd.Function):
    """`shuffle_attention` with parameters by channel.

    With r = (x - mean) rstd, z = v mean + w r + b and g = factor sigmoid(z), the gradient is
    dx = dy g + h w rstd + (v - w rstd) mean(h) - w rstd r mean(h r), where
    h = dy x dg/dz; w is 0 in the first halves, v in the second.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        v: Tensor,
        w: Tensor,
        b: Tensor,
        groups: int,
        eps: float,
        factor: float,
        shuffle: bool,
    ) -> Tensor:
        ctx.arguments = groups, factor, shuffle
        ctx.walk = _ByPixels if is_channels_last(x) else _ByChannels
        with disable_autocast(x):
            y, mean, rstd = ctx.walk.forward(x, v, w, b, eps, *ctx.arguments)
        ctx.save_for_backward(x, v, w, b, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, v, w, b, mean, rstd = ctx.saved_tensors
        with disable_autocast(x):
            x_grad, sums, moments = ctx.walk.backward(x, grad, v, w, b, mean, rstd, *ctx.arguments)
        grads = [(mean * sums).sum(0), moments.sum(0), sums.sum(0)]
        return x_grad, *grads, None, None, None, None


class _ByChannels:
    """For contiguous maps: a few channels at a time."""

    @staticmethod
    def forward(
        x: Tensor,
        v: Tensor,
        w: Tensor,
        b: Tensor,
        eps: float,
        groups: int,
        factor: float,
        shuffle: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y, the means and the reciprocal deviations, (N, C) each."""
        x = x.contiguous()
        y = torch.empty_like(x)
        mean, rstd = (upcast(x.new_ones(x.shape[:2])) for _ in range(2))
        parts = _runs(groups, shuffle, [x], [y], [mean, rstd, v, w, b])
        for is_spatial, (source,), (target,), (m, r, v, w, b) in parts:
            source = upcast(source)
            if is_spatial:
                lines, weight, bias = (_lines(t) for t in (source, w, b))
                size = 1, lines.shape[1], lines.shape[2], lines.shape[1]  # one group a channel
                gate, *stats = torch.native_group_norm(
                    lines, weight.flatten(), bias.flatten(), *size, eps
                )
                m.copy_(stats[0].view_as(m))
                r.copy_(stats[1].view_as(r))
                gate = gate.view_as(source).sigmoid_()
            else:
                m.copy_(source.mean(-1, keepdim=True))
                gate = (v * m + b).sigmoid_()
            gate = gate if factor == 1 else gate.mul_(factor)
            torch.mul(source, gate, out=target)
        return y, mean, rstd

    @staticmethod
    def backward(
        x: Tensor,
        grad: Tensor,
        v: Tensor,
        w: Tensor,
        b: Tensor,
        mean: Tensor,
        rstd: Tensor,
        groups: int,
        factor: float,
        shuffle: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of x, and the sums of h and of h r over the map, (N, C) each."""
        x, grad = x.contiguous(), grad.contiguous()
        x_grad = torch.empty_like(x)
        sums, moments = (torch.zeros_like(mean) for _ in range(2))
        parts = _runs(groups, shuffle, [x, x_grad], [grad], [mean, rstd, sums, moments, v, w, b])
        for is_spatial, (source, target), (dy,), (m, r, s, q, v, w, b) in parts:
            source, dy = upcast(source), upcast(dy)
            pixels = source.shape[-1]
            if not is_spatial:
                gate = (v * m + b).sigmoid_()
                s.copy_(factor * gate * (1 - gate) * (dy * source).sum(-1, keepdim=True))
                torch.add(dy * (factor * gate), v * s / pixels, out=target)
                continue
            scale = w * r
            gate = (source * scale).add_(b - scale * m).sigmoid_()
            h = torch.ops.aten.sigmoid_backward(dy * source, gate)
            if factor != 1:
                h, gate = h.mul_(factor), gate.mul_(factor)
            h, lines, *values = (_lines(t) for t in (h, source, m, r, w))
            means, deviations, weight = (t.flatten(1) for t in values)
            size = 1, lines.shape[1], pixels, lines.shape[1]
            through_t, moment, total = torch.ops.aten.native_group_norm_backward(
                h, lines, means, deviations, weight[0], *size, 3 * [True]
            )
            q.copy_(moment.view_as(q))
            s.copy_(total.view_as(s))
            torch.addcmul(through_t.view_as(dy), dy, gate, out=target)
        return x_grad, sums, moments


def _runs(
    groups: int,
    shuffle: bool,
    maps: Sequence[Tensor],
    results: Sequence[Tensor],
    channels: Sequence[Tensor],
) -> Iterator[tuple[bool, list[Tensor], list[Tensor], list[Tensor]]]:
    """Parts of maps, of some halves of groups and images.

    Args:
        groups, shuffle: those of `shuffle_attention`.
        maps: contiguous (N, C, H, W), channels as in x.
        results: the same, channels as in the result.
        channels: one value a channel, (N, C) or (C).

    Yields:
        whether these are second halves; views (n, m, k, P) of the maps and of the results, and
        (n, m, k, 1) of `channels`.
    """
    batch, width, pixels = len(maps[0]), maps[0].shape[1], maps[0].shape[2:].numel()
    k = width // (2 * groups)
    maps = [t.view(batch, 2 * groups, k, pixels) for t in maps]
    channels = [t.view(-1, 2 * groups, k, 1).expand(batch, -1, -1, -1) for t in channels]
    if shuffle:  # the first G runs of k channels alternate with the others
        results = [t.view(batch, groups, k, 2, pixels).permute(0, 3, 1, 2, 4) for t in results]
    else:
        results = [t.view(batch, 2, groups, k, pixels) for t in results]
    size = _part(maps[0])
    images, stride = max(size // (width * pixels), 1), 2 * max(size // (k * pixels), 1)
    for first in range(0, batch, images):
        n = slice(first, first + images)
        for side in range(2):
            begin, end = side * groups, (side + 1) * groups
            for parity in range(2):
                for start in range(begin + parity, end, stride):
                    runs = slice(start, min(start + stride, end), 2)
                    places = slice(runs.start - begin, runs.stop - begin, 2)
                    yield (
                        start % 2 == 1,
                        [t[n, runs] for t in maps],
                        [t[n, side, places] for t in results],
                        [t[n, runs] for t in channels],
                    )


def _lines(x: Tensor) -> Tensor:
    """(..., P) -> contiguous (1, M, P)."""
    return x.reshape(1, -1, x.shape[-1]).contiguous()


class _ByPixels:
    """For maps in channels_last: a few pixels at a time."""

    @staticmethod
    def forward(
        x: Tensor,
        v: Tensor,
        w: Tensor,
        b: Tensor,
        eps: float,
        groups: int,
        factor: float,
        shuffle: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_ByChannels.forward`."""
        y = torch.empty_like(x)
        mean, rstd = (upcast(x.new_empty(x.shape[:2])) for _ in range(2))
        order = _order(x) if shuffle else None
        for rows, out, m, r in zip(_rows(x), _rows(y), mean, rstd, strict=True):
            torch.mean(rows, 0, dtype=m.dtype, out=m)
            variance = torch.zeros_like(m)
            for (part,) in _split(rows):
                variance += (upcast(part) - m).square_().sum(0)
            torch.rsqrt(variance.div_(len(rows)).add_(eps), out=r)
            scale = w * r
            shift = v * m + b - scale * m
            for part, target in _split(rows, out):
                source = upcast(part)
                gate = torch.addcmul(shift, source, scale).sigmoid_()
                gate = gate if factor == 1 else gate.mul_(factor)
                if order is None:
                    torch.mul(source, gate, out=target)
                else:
                    torch.index_select(gate.mul_(source).to(x.dtype), 1, order, out=target)
        return y, mean, rstd

    @staticmethod
    def backward(
        x: Tensor,
        grad: Tensor,
        v: Tensor,
        w: Tensor,
        b: Tensor,
        mean: Tensor,
        rstd: Tensor,
        groups: int,
        factor: float,
        shuffle: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_ByChannels.backward`."""
        grad = grad.contiguous(memory_format=torch.channels_last)
        x_grad = torch.empty_like(x)
        sums, moments = (torch.zeros_like(mean) for _ in range(2))
        order = _order(x).argsort() if shuffle else None
        maps = _rows(x), _rows(grad), _rows(x_grad), mean, rstd, sums, moments
        for rows, row_grads, out, m, r, s, q in zip(*maps, strict=True):
            # of the sums over the map, which are added last, as wide as they are
            wide = out if out.dtype == m.dtype else torch.empty_like(out, dtype=m.dtype)
            scale, shift, pixels = w * r, v * m + b, len(rows)
            for part, dy, target in _split(rows, row_grads, wide):
                source = upcast(part)
                dy = upcast(dy if order is None else dy.index_select(1, order))
                t = (source - m).mul_(r)
                gate = torch.addcmul(shift, t, w).sigmoid_()
                h = torch.ops.aten.sigmoid_backward(source * dy, gate)
                if factor != 1:
                    h, gate = h.mul_(factor), gate.mul_(factor)
                s += h.sum(0)
                q += t.mul_(h).sum(0)
                torch.addcmul(h.mul_(scale), dy, gate, out=target)
            slope = -scale * r * q / pixels
            constant = (v - scale) * s / pixels - slope * m
            for part, added, target in _split(rows, wide, out):
                torch.add(added.addcmul_(upcast(part), slope), constant, out=target)
        return x_grad, sums, moments


def _order(x: Tensor) -> Tensor:
    """Channels in their order after `channel_shuffle` by 2."""
    return torch.arange(x.shape[1], device=x.device).view(2, -1).T.flatten()


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) in channels_last -> a view (N, P, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _split(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some rows of each, (P, C)."""
    count = max(_part(rows[0]) // rows[0].shape[1], 1)
    return zip(*(t.split(count) for t in rows), strict=True)


def _part(x: Tensor) -> int:
    """Values to process at a time."""
    return _PART if x.device.type == 'cpu' else _PART_GPU
