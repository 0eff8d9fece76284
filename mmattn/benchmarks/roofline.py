"""Lower bounds for the forward pass of a block: arithmetic and memory traffic, as a roofline.

Derived from the equations that each block's header names, for exact algorithms that store no map
over pairs of positions and fold linear operations. A block reads its inputs and writes its output;
a gate reads its map as often as its equation needs values of all positions before the next step.
Operations on C numbers instead of the map are left out.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mmattn.plugins.flops import flop_counter

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class LowerBound:
    """Arithmetic and traffic that no implementation can do without.

    Attributes:
        flop: floating-point operations, two for a multiplication with an addition.
        values: values read and written.
    """

    flop: float
    values: float

    def ms(self, itemsize: int, gflops: float, gb_per_s: float) -> float:
        """Milliseconds on a machine of this throughput; values have `itemsize` bytes."""
        return max(self.flop / gflops, self.values * itemsize / gb_per_s) / 1e6


def softmax_pairs(p: int, s: int, e: int, v: int) -> LowerBound:
    """p queries, s keys of e channels, s values of v channels: NL eq. 2 and ANN eq. 5."""
    return LowerBound(2 * p * s * (e + v), (p + s) * (e + v))


def linear_pairs(p: int, s: int, c: int) -> LowerBound:
    """(v k^T) q instead of v (k^T q), all with c channels: NL eq. 4."""
    return LowerBound(2 * c * c * (p + s), 2 * c * (p + s))


def sorted_pairs(p: int, s: int, c: int) -> LowerBound:
    """relu(a + b) of NL eq. 5 as sums over sorted keys: two running sums, one look-up each."""
    return LowerBound(c * (3 * s + 2 * p), c * (p + s))


def cross(h: int, w: int, e: int, v: int) -> LowerBound:
    """Row and column of each position, the position once: CCNet eq. 1-2."""
    return LowerBound(2 * h * w * (h + w - 1) * (e + v), 2 * h * w * (e + v))


def conv(p: int, c_in: int, c_out: int, kernel: int = 1) -> float:
    """FLOP of a convolution at p positions."""
    return 2 * p * c_in * c_out * kernel**2


def asymmetric(p: int, low_p: int, s: int, low: int, high: int, d: int, out: int) -> float:
    """FLOP of ANN sections 3.2 and 3.3, folded: values are pooled, and multiplied with the output
    projection and their half of the bottleneck, before they are summed at p positions."""
    projected = conv(p, high, d) + (conv(low_p, low, d) if low_p else 0)
    return projected + 2 * p * s * (d + out) + conv(p, high, out)


def lower_bound(block: nn.Module, shapes: Shapes) -> LowerBound:
    """Lower bound for a block (or another benchmarked module) at these input shapes."""
    return LOWER_BOUNDS.get(type(block).__name__, count_operators)(block, shapes)


def count_operators(block: nn.Module, shapes: Shapes) -> LowerBound:
    """Convolutions and products as torch counts them; inputs read and output written once."""
    with flop_counter() as counter, torch.no_grad():
        twin = copy.deepcopy(block).to('meta', torch.float32)
        y = twin(*(torch.empty(shape, device='meta') for shape in shapes))
    return LowerBound(counter.get_total_flops(), _count_values(shapes) + y.numel())


def _gate(passes: int) -> Callable[[nn.Module, Shapes], LowerBound]:
    return lambda block, shapes: LowerBound(0, passes * _count_values(shapes[:1]))


def _count_values(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def _map(shapes: Shapes) -> tuple[int, int, int, int]:
    """Batch, channels, positions and values of the first input."""
    n, c, *size = shapes[0]
    return n, c, torch.Size(size).numel(), _count_values(shapes[:1])


def _non_local(b: nn.Module, shapes: Shapes) -> LowerBound:
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
    return LowerBound(n * flop, 2 * values)


def _core(b: nn.Module, shapes: Shapes) -> LowerBound:
    n, c, p, _ = _map(shapes)
    pairs = linear_pairs(p, p, c)
    return LowerBound(n * pairs.flop, n * pairs.values)


def _pam(b: nn.Module, shapes: Shapes) -> LowerBound:
    n, c, p, values = _map(shapes)
    e = b.query_project.out_channels
    return LowerBound(n * (conv(p, c, 2 * e + c) + softmax_pairs(p, p, e, c).flop), 2 * values)


def _mhsa(b: nn.Module, shapes: Shapes) -> LowerBound:
    n, c, p, values = _map(shapes)
    (h, w), d = shapes[0][2:], b.head_channels
    head = softmax_pairs(p, p, d, b.out_channels // b.heads).flop + 2 * p * (h + w) * d
    flop = conv(p, c, b.qkv.out_channels) + b.heads * head
    return LowerBound(n * flop, values + n * b.out_channels * p // b.stride**2)


def _cam(b: nn.Module, shapes: Shapes) -> LowerBound:
    n, c, p, values = _map(shapes)
    # the map is read twice: all positions come before the first sum over channels
    return LowerBound(n * 4 * c * c * p, 3 * values)


def _dual(b: nn.Module, shapes: Shapes) -> LowerBound:
    return LowerBound(
        _pam(b.pam, shapes).flop + _cam(b.cam, shapes).flop, 3 * _count_values(shapes)
    )


def _criss_cross(b: nn.Module, shapes: Shapes) -> LowerBound:
    n, c, h, w = shapes[0]
    e = b.query_conv.out_channels
    once = conv(h * w, c, 2 * e + c) + cross(h, w, e, c).flop
    return LowerBound(b.recurrence * n * once, b.recurrence * 2 * _count_values(shapes))


def _asymmetric(b: nn.Module, shapes: Shapes) -> LowerBound:
    """APNB of one map, AFNB of a low and a high one."""
    n, high, p, _ = _map(shapes[-1:])
    low, low_p = (0, 0) if b.share_key_query else _map(shapes)[1:3]
    s = sum(k * k for k in b.arguments['key_pool_scales'])
    d, out = (b.arguments[name] for name in ('channels', 'out_channels'))
    d, out = high // 2 if d is None else d, high if out is None else out
    flop = asymmetric(p, low_p, s, low, high, d, out)
    return LowerBound(n * flop, _count_values(shapes) + n * out * p)


def _ann_head(b: nn.Module, shapes: Shapes) -> LowerBound:
    head = b.head
    n, high, p, _ = _map(shapes[1:])
    between = [(n, head.channels, *shapes[1][2:])]
    flop = _asymmetric(head.fusion, shapes).flop + _asymmetric(head.context, between).flop
    flop += n * (conv(p, high, head.channels, 3) + conv(p, head.channels, head.num_classes))
    return LowerBound(flop, _count_values(shapes) + n * head.num_classes * p)


def _bam(b: nn.Module, shapes: Shapes) -> LowerBound:
    n, c, p, values = _map(shapes)
    d = c // b.reduction
    flop = conv(p, c, d) + b.num_convs * conv(p, d, d, 3) + conv(p, d, 1)
    return LowerBound(n * flop, 3 * values)


def _ema(b: nn.Module, shapes: Shapes) -> LowerBound:
    n, c, p, values = _map(shapes)
    # read for the strips, for the variance, for the output; a 3x3 kernel and a sum of each group
    return LowerBound(n * (conv(p, c, 1, 3) + conv(p, c, 1)), 4 * values)


# class -> its lower bound; for other classes, operators are counted
LOWER_BOUNDS: dict[str, Callable[[nn.Module, Shapes], LowerBound]] = {
    'AFNB': _asymmetric,
    'APNB': _asymmetric,
    'ANNHeadOfMaps': _ann_head,
    'BAM': _bam,
    'CAM': _cam,
    'CBAM': _gate(4),  # for the channel gate, for the spatial gate, for the output; one written
    'CMPESE': lambda b, shapes: LowerBound(
        0, 5 * _count_values(shapes[:1])
    ),  # both maps are read twice
    'ContextBlock': _gate(3),  # for the context, for the output; one written
    'CoordinateAttention': _gate(3),
    'CrissCrossAttention': _criss_cross,
    'DotProductCore': _core,
    'DualAttention': _dual,
    'EMAttention': _ema,
    'MHSA': _mhsa,
    'NonLocal2d': _non_local,
    'PAM': _pam,
    'SCSE': _gate(3),
    'SE': _gate(3),
    'SGE': _gate(4),  # for the means, for the similarity, for the output; one written
    'ShuffleAttention': _gate(3),
    'SimAM': _gate(3),  # for mean and variance, for the output; one written
    'SimplifiedNonLocal': _gate(3),
    'TripletAttention': _gate(3),
}
