"""What the forward pass of a block costs at least: arithmetic, and traffic to and from memory.

Derived here from the equations that each block's header names, for exact algorithms that keep no
map over pairs of positions and fold what is linear. A block reads its inputs and writes its output;
a gate reads its map as often as its equation needs values of all positions before the next step.
Whatever runs over C numbers, not over the map, is left out.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mmattn.plugins.flops import flop_counter

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class Floor:
    """Attributes:
    flop: two for a multiplication with an addition.
    numbers: values read and values written.
    """

    flop: float
    numbers: float

    def ms(self, itemsize: int, gflops: float, gb_per_s: float) -> float:
        """Milliseconds on a machine of such speed; the values have `itemsize` bytes."""
        return max(self.flop / gflops, self.numbers * itemsize / gb_per_s) / 1e6


def softmax_pairs(p: int, s: int, e: int, v: int) -> Floor:
    """p queries, s keys of e channels and values of v: NL eq. 2 and ANN eq. 5."""
    return Floor(2 * p * s * (e + v), (p + s) * (e + v))


def linear_pairs(p: int, s: int, c: int) -> Floor:
    """(v k^T) q in place of v (k^T q), all of c channels: NL eq. 4."""
    return Floor(2 * c * c * (p + s), 2 * c * (p + s))


def sorted_pairs(p: int, s: int, c: int) -> Floor:
    """relu(a + b) of NL eq. 5 as sums over sorted keys: two running sums and one look-up each."""
    return Floor(c * (3 * s + 2 * p), c * (p + s))


def cross(h: int, w: int, e: int, v: int) -> Floor:
    """Row and column of each position, itself once: CCNet eq. 1-2."""
    return Floor(2 * h * w * (h + w - 1) * (e + v), 2 * h * w * (e + v))


def conv(p: int, c_in: int, c_out: int, kernel: int = 1) -> float:
    """FLOP of a convolution at p positions."""
    return 2 * p * c_in * c_out * kernel**2


def asymmetric(p: int, low_p: int, s: int, low: int, high: int, d: int, out: int) -> float:
    """FLOP of ANN section 3.2-3.3, folded: values are pooled, and multiplied with the output
    projection and their half of the bottleneck, before they are summed at p positions."""
    projected = conv(p, high, d) + (conv(low_p, low, d) if low_p else 0)
    return projected + 2 * p * s * (d + out) + conv(p, high, out)


def floor(block: nn.Module, shapes: Shapes) -> Floor:
    """Of a block, and of what else a case measures, for inputs of these shapes."""
    return FLOORS.get(type(block).__name__, counted)(block, shapes)


def counted(block: nn.Module, shapes: Shapes) -> Floor:
    """Convolutions and products as torch counts them; inputs read and output written, once."""
    with flop_counter() as counter, torch.no_grad():
        twin = copy.deepcopy(block).to('meta', torch.float32)
        y = twin(*(torch.empty(shape, device='meta') for shape in shapes))
    return Floor(counter.get_total_flops(), _numbers(shapes) + y.numel())


def _gate(passes: int) -> Callable[[nn.Module, Shapes], Floor]:
    return lambda block, shapes: Floor(0, passes * _numbers(shapes[:1]))


def _numbers(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


def _map(shapes: Shapes) -> tuple[int, int, int, int]:
    """Batch, channels, positions and values of the first input."""
    n, c, *size = shapes[0]
    return n, c, torch.Size(size).numel(), _numbers(shapes[:1])


def _non_local(b: nn.Module, shapes: Shapes) -> Floor:
    n, c, p, values = _map(shapes)
    d = b.inter_channels
    s = (shapes[0][2] // 2) * (shapes[0][3] // 2) if b.sub_sample else p
    outer = 2 * conv(p, c, d)  # g and the way out
    flop = {
        'gaussian': outer + softmax_pairs(p, s, c, d).flop,
        'embedded_gaussian': 2 * outer + softmax_pairs(p, s, d, d).flop,
        'dot_product': 2 * outer + linear_pairs(p, s, d).flop,
        'concatenation': outer + 2 * conv(p, c, 1) + sorted_pairs(p, s, d).flop,
    }[b.mode]
    return Floor(n * flop, 2 * values)


def _core(b: nn.Module, shapes: Shapes) -> Floor:
    n, c, p, _ = _map(shapes)
    least = linear_pairs(p, p, c)
    return Floor(n * least.flop, n * least.numbers)


def _pam(b: nn.Module, shapes: Shapes) -> Floor:
    n, c, p, values = _map(shapes)
    e = b.query_project.out_channels
    return Floor(n * (conv(p, c, 2 * e + c) + softmax_pairs(p, p, e, c).flop), 2 * values)


def _cam(b: nn.Module, shapes: Shapes) -> Floor:
    n, c, p, values = _map(shapes)
    return Floor(n * 4 * c * c * p, 3 * values)  # all positions before the first sum of channels


def _dual(b: nn.Module, shapes: Shapes) -> Floor:
    return Floor(_pam(b.pam, shapes).flop + _cam(b.cam, shapes).flop, 3 * _numbers(shapes))


def _criss_cross(b: nn.Module, shapes: Shapes) -> Floor:
    n, c, h, w = shapes[0]
    e = b.query_conv.out_channels
    once = conv(h * w, c, 2 * e + c) + cross(h, w, e, c).flop
    return Floor(b.recurrence * n * once, b.recurrence * 2 * _numbers(shapes))


def _asymmetric(b: nn.Module, shapes: Shapes) -> Floor:
    """APNB of one map, AFNB of a low and a high one."""
    n, high, p, _ = _map(shapes[-1:])
    low, low_p = (0, 0) if b.share_key_query else _map(shapes)[1:3]
    s = sum(k * k for k in b.arguments['key_pool_scales'])
    d, out = (b.arguments[name] for name in ('channels', 'out_channels'))
    d, out = high // 2 if d is None else d, high if out is None else out
    flop = asymmetric(p, low_p, s, low, high, d, out)
    return Floor(n * flop, _numbers(shapes) + n * out * p)


def _ann_head(b: nn.Module, shapes: Shapes) -> Floor:
    head = b.head
    n, high, p, _ = _map(shapes[1:])
    between = [(n, head.channels, *shapes[1][2:])]
    flop = _asymmetric(head.fusion, shapes).flop + _asymmetric(head.context, between).flop
    flop += n * (conv(p, high, head.channels, 3) + conv(p, head.channels, head.num_classes))
    return Floor(flop, _numbers(shapes) + n * head.num_classes * p)


def _bam(b: nn.Module, shapes: Shapes) -> Floor:
    n, c, p, values = _map(shapes)
    d = c // b.reduction
    return Floor(n * (conv(p, c, d) + b.num_convs * conv(p, d, d, 3) + conv(p, d, 1)), 3 * values)


# class: its floor; all others are counted
FLOORS: dict[str, Callable[[nn.Module, Shapes], Floor]] = {
    'AFNB': _asymmetric,
    'APNB': _asymmetric,
    'ANNHeadOfMaps': _ann_head,
    'BAM': _bam,
    'CAM': _cam,
    'CBAM': _gate(4),  # for the channel gate, for the spatial gate, for the output; one written
    'CMPESE': lambda b, shapes: Floor(0, 5 * _numbers(shapes[:1])),  # both read twice
    'ContextBlock': _gate(3),  # for the context, for the output; one written
    'CrissCrossAttention': _criss_cross,
    'DotProductCore': _core,
    'DualAttention': _dual,
    'NonLocal2d': _non_local,
    'PAM': _pam,
    'SCSE': _gate(3),
    'SE': _gate(3),
    'SGE': _gate(4),  # for the means, for the similarity, for the output; one written
    'ShuffleAttention': _gate(3),
    'SimplifiedNonLocal': _gate(3),
}
