"""Estimates of the forward pass of a block: arithmetic and memory traffic, as a roofline.

Derived from the equations that each block's header names, for exact algorithms that store no map
over pairs of positions and fold linear operations. A block reads its inputs and writes its output;
a gate reads its map again where its equation needs values of all positions before the next step,
unless a part of the map that fits the cache, such as a group of channels, is all that it needs.
Operations on C numbers instead of the map are left out.

It is an estimate, not a bound: a kernel can be faster than the products that the machine's speed is
taken from, and part of a map may still be in the cache.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmattn.plugins.flops import flop_counter

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Estimate:
    """Arithmetic and traffic that an implementation should need.

    Attributes:
        flop: floating-point operations, two for a multiplication with an addition.
        read: values read.
        written: values written.
    """

    flop: float
    read: float
    written: float = 0

    def ms(self, itemsize: int, machine: dict[str, Any]) -> float:
        """Milliseconds on a machine, see `describe_machine`; values have `itemsize` bytes.

        The speed of memory is that of a map as large as what is written, so that of the cache where
        it fits.
        """
        arithmetic = self.flop / machine['gflops']
        size = max(self.written, self.read / 4) * itemsize / 1e6
        traffic = sum(
            values * itemsize / _speed(machine[key], size)
            for key, values in (('read_gb_per_s', self.read), ('write_gb_per_s', self.written))
        )
        return max(arithmetic, traffic) / 1e6


def _speed(by_size: dict, size: float) -> float:
    """The speed measured at the least size, in MB, that is as large, or at the largest."""
    speeds = {float(key): speed for key, speed in by_size.items()}
    return speeds[min((s for s in speeds if s >= size), default=max(speeds))]


def softmax_pairs(p: int, s: int, e: int, v: int) -> Estimate:
    """p queries, s keys of e channels, s values of v channels: NL eq. 2 and ANN eq. 5."""
    return Estimate(2 * p * s * (e + v), p * e + s * (e + v), p * v)


def linear_pairs(p: int, s: int, c: int) -> Estimate:
    """(v k^T) q instead of v (k^T q), all with c channels: NL eq. 4."""
    return Estimate(2 * c * c * (p + s), c * (p + 2 * s), c * p)


def sorted_pairs(p: int, s: int, c: int) -> Estimate:
    """relu(a + b) of NL eq. 5 as sums over sorted keys: two running sums, one look-up each."""
    return Estimate(c * (3 * s + 2 * p), c * s, c * p)


def cross(h: int, w: int, e: int, v: int) -> Estimate:
    """Row and column of each position, the position once: CCNet eq. 1-2."""
    return Estimate(2 * h * w * (h + w - 1) * (e + v), h * w * (2 * e + v), h * w * v)


def conv(p: int, c_in: int, c_out: int, kernel: int = 1) -> float:
    """FLOP of a convolution at p positions."""
    return 2 * p * c_in * c_out * kernel**2


def asymmetric(p: int, low_p: int, s: int, low: int, high: int, d: int, out: int) -> float:
    """FLOP of ANN sections 3.2 and 3.3, folded: values are pooled, and multiplied with the output
    projection and their half of the bottleneck, before they are summed at p positions."""
    projected = conv(p, high, d) + (conv(low_p, low, d) if low_p else 0)
    return projected + 2 * p * s * (d + out) + conv(p, high, out)


def estimate(block: nn.Module, shapes: Shapes) -> Estimate:
    """Estimate for a block (or another benchmarked module) at these input shapes."""
    return ESTIMATES.get(type(block).__name__, count_operators)(block, shapes)


def count_operators(block: nn.Module, shapes: Shapes) -> Estimate:
    """Convolutions and products as torch counts them; inputs read and output written once."""
    with flop_counter() as counter, torch.no_grad():
        twin = copy.deepcopy(block).to('meta', torch.float32)
        y = twin(*(torch.empty(shape, device='meta') for shape in shapes))
    return Estimate(counter.get_total_flops(), _count_values(shapes), y.numel())


def _gate(reads: int) -> Callable[[nn.Module, Shapes], Estimate]:
    """A gate that reads its map so often, and writes one."""

    def count(block: nn.Module, shapes: Shapes) -> Estimate:
        values = _count_values(shapes[:1])
        return Estimate(0, reads * values, values)

    return count


def _count_values(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def _map(shapes: Shapes) -> tuple[int, int, int, int]:
    """Batch, channels, positions and values of the first input."""
    n, c, *size = shapes[0]
    return n, c, torch.Size(size).numel(), _count_values(shapes[:1])


def _non_local(b: nn.Module, shapes: Shapes) -> Estimate:
    n, c, p, values = _map(shapes)
    d = b.inter_channels
    s = (shapes[0][2] // 2) * (shapes[0][3] // 2) if b.sub_sample else p
    outer = 2 * conv(p, c, d)  # g and the output projection
    flop = {
        'gaussian': outer + softmax_pairs(p, s, c, d).flop,
        'embedded_gaussian': 2 * outer + softmax_pairs(p, s, d, d).flop,
        'dot_product': 2 * outer + linear_pairs(p, s, d).flop,
        'concatenation': outer + 2 * conv(p, c, 1) + sorted_pairs(p, s, d).flop,
    }[b.mode]
    return Estimate(n * flop, values, values)


def _core(b: nn.Module, shapes: Shapes) -> Estimate:
    n, c, p, _ = _map(shapes)
    pairs = linear_pairs(p, p, c)
    return Estimate(n * pairs.flop, n * pairs.read, n * pairs.written)


def _pam(b: nn.Module, shapes: Shapes) -> Estimate:
    n, c, p, values = _map(shapes)
    e = b.query_project.out_channels
    flop = conv(p, c, 2 * e + c) + softmax_pairs(p, p, e, c).flop
    return Estimate(n * flop, values, values)


def _mhsa(b: nn.Module, shapes: Shapes) -> Estimate:
    n, c, p, values = _map(shapes)
    (h, w), d = shapes[0][2:], b.head_channels
    head = softmax_pairs(p, p, d, b.out_channels // b.heads).flop + 2 * p * (h + w) * d
    flop = conv(p, c, b.qkv.out_channels) + b.heads * head
    return Estimate(n * flop, values, n * b.out_channels * p // b.stride**2)


def _cam(b: nn.Module, shapes: Shapes) -> Estimate:
    n, c, p, values = _map(shapes)
    # X X^T is symmetric, so half of it is enough; the map is read twice, as all positions come
    # before the first sum over channels
    return Estimate(n * 3 * c * c * p, 2 * values, values)


def _dual(b: nn.Module, shapes: Shapes) -> Estimate:
    values = _count_values(shapes)
    flop = _pam(b.pam, shapes).flop + _cam(b.cam, shapes).flop
    return Estimate(flop, 2 * values, values)


def _criss_cross(b: nn.Module, shapes: Shapes) -> Estimate:
    n, c, h, w = shapes[0]
    e = b.query_conv.out_channels
    once = conv(h * w, c, 2 * e + c) + cross(h, w, e, c).flop
    values = b.recurrence * _count_values(shapes)
    return Estimate(b.recurrence * n * once, values, values)


def _asymmetric(b: nn.Module, shapes: Shapes) -> Estimate:
    """APNB of one map, AFNB of a low and a high one."""
    n, high, p, _ = _map(shapes[-1:])
    low, low_p = (0, 0) if b.share_key_query else _map(shapes)[1:3]
    s = sum(k * k for k in b.arguments['key_pool_scales'])
    d, out = (b.arguments[name] for name in ('channels', 'out_channels'))
    d, out = high // 2 if d is None else d, high if out is None else out
    flop = asymmetric(p, low_p, s, low, high, d, out)
    return Estimate(n * flop, _count_values(shapes), n * out * p)


def _ann_head(b: nn.Module, shapes: Shapes) -> Estimate:
    head = b.head
    n, high, p, _ = _map(shapes[1:])
    between = [(n, head.channels, *shapes[1][2:])]
    flop = _asymmetric(head.fusion, shapes).flop + _asymmetric(head.context, between).flop
    flop += n * (conv(p, high, head.channels, 3) + conv(p, head.channels, head.num_classes))
    return Estimate(flop, _count_values(shapes), n * head.num_classes * p)


def _bam(b: nn.Module, shapes: Shapes) -> Estimate:
    n, c, p, values = _map(shapes)
    d = c // b.reduction
    flop = conv(p, c, d) + b.num_convs * conv(p, d, d, 3) + conv(p, d, 1)
    return Estimate(n * flop, 2 * values, values)


def _ema(b: nn.Module, shapes: Shapes) -> Estimate:
    n, c, p, values = _map(shapes)
    # read for the strips, for the variance, for the output; a 3x3 kernel and a sum of each group
    return Estimate(n * (conv(p, c, 1, 3) + conv(p, c, 1)), 3 * values, values)


# class -> its estimate; for other classes, operators are counted
ESTIMATES: dict[str, Callable[[nn.Module, Shapes], Estimate]] = {
    'AFNB': _asymmetric,
    'APNB': _asymmetric,
    'ANNHeadOfMaps': _ann_head,
    'BAM': _bam,
    'CAM': _cam,
    'CBAM': _gate(3),  # for the channel gate, for the spatial gate, for the output
    'CMPESE': lambda b, shapes: Estimate(
        0, 4 * _count_values(shapes[:1]), _count_values(shapes[:1])
    ),  # both maps are read twice
    'ContextBlock': _gate(2),  # for the context, for the output
    'CoordinateAttention': _gate(2),
    'CrissCrossAttention': _criss_cross,
    'DotProductCore': _core,
    'DualAttention': _dual,
    'ECA': _gate(2),
    'EMAttention': _ema,
    'MHSA': _mhsa,
    'NonLocal2d': _non_local,
    'PAM': _pam,
    'SCSE': _gate(2),
    'SE': _gate(2),
    'SGE': _gate(1),  # a group of channels fits the cache
    'ShuffleAttention': _gate(1),  # so does a channel
    'SimAM': _gate(1),
    'SimplifiedNonLocal': _gate(2),
    'TripletAttention': _gate(2),
}
