"""Non-local aggregation over all pairs of positions, without a map over the pairs.

Source: Non-local Neural Networks, CVPR 2018, arXiv 1711.07971, eq. 1-6.

Memory that each form allocates in addition to its result, for P queries and S keys of C values:

- softmax: a few rows of the map at a time, in forward and backward, which recomputes them. Torch's
  fused kernels are used where they support the tensors, and ours on GPUs for values in half
  precision that are too wide for them; else `SelfAttention` or `_RowAttention`.
- dot product: by associativity, one matrix of E x C.
- concatenation: two sorted lists and their running sums, of the size of the values.

Exported programs hold torch's attention operator, or for concatenation the map over pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmattn.torch_compat import HAS_NARROW_ATTENTION, is_compiling, is_exporting

from .memory import require
from .precision import disable_autocast, upcast
from .self_attention import SelfAttention

_MATH = 0  # torch.nn.attention.SDPBackend.MATH, which builds the map
_ROWS = 1 << 22  # elements of the map at a time: 16 MB in fp32, which fit into the cache
_COLUMNS = 512  # columns of a wide product at a time
_CHANNELS = 64  # channels at a time in running sums, which fit into the cache
# Up to this many channels of values torch's kernels for other than equal widths keep a result in
# registers; for more they read and write it once per tile of keys.
_WIDE = 128
_MIN_PAIRS = 1 << 22  # fewer take less time than the launch of a kernel


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """o[p] = sum_s softmax_s(scale * q[p] . k[s]) v[s], the (embedded) Gaussian of eq. 2-3.

    Logits and softmax are computed in fp32 or wider, so half precision does not overflow. Never
    allocates the (P, S) map. Fastest where the channels of q, k, v are adjacent in memory.

    Args:
        q: (N, E, P) queries.
        k: (N, E, S) keys. If they are q itself, the same tensor, half of the logits are computed.
        v: (N, C, S) values.
        scale: factor of the logits.

    Returns:
        (N, C, P) in the dtype of v.

    Raises:
        MemoryError: less memory is free than the result and copies of q, k and v take.
    """
    result = v.shape[0] * v.shape[1] * q.shape[2]
    require(_bytes(v, result, q.numel(), k.numel(), v.numel()), v, 'softmax attention')
    with disable_autocast(q):
        same_dtype = q.dtype == k.dtype == v.dtype and q.shape[0] > 0
        if same_dtype and _wide(q, k, v):
            # imports Triton, which may be missing and takes a second
            from .attention_triton import fused_available, softmax_attention_fused

            channels_last = [_adjacent(t.mT) for t in (q, k, v)]
            if fused_available(*channels_last):
                return softmax_attention_fused(*channels_last, scale).mT
        if same_dtype and k is q and _by_symmetry(q, v):
            return SelfAttention.apply(q, v, scale)
        if same_dtype and (q.shape[1] == v.shape[1] or not v.is_cpu or is_compiling()):
            heads = [_adjacent(t.mT).unsqueeze(1) for t in (q, k, v)]  # (N, 1, P or S, E or C)
            if is_compiling() or _fused(*heads, scale):
                return _fused_attention(*heads, scale)
        return _RowAttention.apply(upcast(q), upcast(k), v, scale)


def _by_symmetry(x: Tensor, v: Tensor) -> bool:
    """Whether `SelfAttention` is the fastest; torch's kernel multiplies in half precision."""
    on_cpu = v.is_cpu and not is_compiling()
    return on_cpu and (x.shape[1] != v.shape[1] or upcast(v) is v)


def _adjacent(x: Tensor) -> Tensor:
    """x with stride 1 in its last axis, which is all that the kernels require."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _wide(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether our kernel for wide values in half precision is worth a try."""
    if not v.is_cuda or v.element_size() != 2 or is_exporting():  # an export keeps sizes open
        return False
    aligned = q.shape[1] % 16 == 0 and v.shape[1] % 16 == 0  # else loads are of single numbers
    many = q.shape[0] * q.shape[2] * k.shape[2] >= _MIN_PAIRS
    return aligned and many and v.shape[1] > _WIDE


def _bytes(like: Tensor, *elements: int) -> int:
    return sum(elements) * like.element_size()


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    """Whether torch has a kernel for these tensors that does not build the map."""
    if HAS_NARROW_ATTENTION and q.dtype == torch.float16 and q.is_cpu:
        return False
    return torch._fused_sdp_choice(q, k, v, scale=scale) != _MATH


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's attention on (N, 1, positions, channels) -> (N, C, P)."""
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    q = q.detach()
    # CPU only: the check is cheaper than the passes it saves; on a GPU it would synchronise, and
    # fake tensors have no values
    can_check = type(q) is Tensor and q.is_cpu and not is_compiling()
    if can_check and q.sum().isfinite():
        return out[:, 0].mT
    # fused kernels treat a non-finite query row as masked; propagate NaN instead
    nan = (q - q).sum(-1, keepdim=True)  # or 0
    if is_compiling():
        out = out + nan
    else:
        out.data.add_(nan)  # without autograd, which saves `out` and would save the sum as well
    return out[:, 0].mT


def softmax_weights(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    """softmax over s of scale * q[p] . k[s]: (N, E, P), (N, E, S) -> (N, P, S), rows sum to 1."""
    with disable_autocast(q):
        q = upcast(q) if scale == 1 else upcast(q) * scale
        return (q.mT @ upcast(k)).softmax(-1)


class _RowAttention(torch.autograd.Function):
    """`softmax_attention` by blocks of queries, for any widths, dtypes, layouts and devices.

    Saves only q, k and v for backward.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        out = v.new_empty(len(v), q.shape[2], v.shape[1])
        for n, rows, weights in _row_blocks(q, k, scale):
            torch.mm(weights.to(v.dtype), v[n].mT, out=out[n, rows])
        return out.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        wide_v, grad = upcast(v), upcast(grad)
        q_grad, k_grad, v_grad = (t.new_zeros(t.mT.shape) for t in (q, k, wide_v))  # (N, S, C)
        for n, rows, weights in _row_blocks(q, k, ctx.scale):
            grad_rows = grad[n, :, rows].mT  # (R, C)
            v_grad[n].addmm_(weights.mT, grad_rows)
            weights_grad = _by_columns(grad_rows, wide_v[n], torch.empty_like(weights))
            logits_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
            if ctx.scale != 1:
                logits_grad *= ctx.scale
            torch.mm(logits_grad, k[n].mT, out=q_grad[n, rows])
            k_grad[n].addmm_(logits_grad.mT, q[n, :, rows].mT)
        return q_grad.mT, k_grad.mT, v_grad.mT.to(v.dtype), None


def _row_blocks(q, k, scale):
    """Yield image, queries and their map rows (R, S), which the next iteration overwrites."""
    positions, keys = q.shape[2], k.shape[2]
    count = max(1, _ROWS // keys)
    for n in range(len(q)):
        scaled = q[n].mT if scale == 1 else q[n].mT * scale  # (P, E)
        buffer = q.new_empty(min(count, positions), keys)
        for first in range(0, positions, count):
            rows = slice(first, min(first + count, positions))
            weights = buffer[: rows.stop - first]
            _by_columns(scaled[rows], k[n], weights)
            yield n, rows, torch.softmax(weights, -1, out=weights)


def _by_columns(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> Tensor:
    """a @ b into out, or added to it: (R, C), (C, S) -> (R, S), by column blocks, for speed."""
    for first in range(0, b.shape[1], _COLUMNS):
        part = slice(first, first + _COLUMNS)
        if add:
            out[:, part].addmm_(a, b[:, part])
        else:
            torch.mm(a, b[:, part], out=out[:, part])
    return out


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o[p] = sum_s (q[p] . k[s]) v[s] / S, eq. 4 with the normalisation below it.

    Computed as (v k^T) q or v (k^T q), whichever takes fewer multiplications; the first needs no
    map over pairs. Summed in fp32 or wider.

    Args:
        q: (N, E, P) queries.
        k: (N, E, S) keys.
        v: (N, C, S) values.

    Returns:
        (N, C, P) in the dtype of v.

    Raises:
        MemoryError: less memory is free than the result and a copy of k take.
    """
    width, positions, values = q.shape[1], k.shape[2], v.shape[1]
    require(_bytes(v, v.shape[0] * values * q.shape[2], k.numel()), v, 'dot-product attention')
    with disable_autocast(q):
        wide_q, wide_k = upcast(q), upcast(k) / positions
        if width * values * (positions + q.shape[2]) <= positions * q.shape[2] * (width + values):
            out = (upcast(v) @ wide_k.mT) @ wide_q  # (N, C, E) @ (N, E, P)
        else:
            out = upcast(v) @ (wide_k.mT @ wide_q)  # (N, C, S) @ (N, S, P)
        return out.to(v.dtype)


def concatenation_attention(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """o[p] = sum_s relu(a[p] + b[s]) v[s] / S, eq. 5-6 with w_f [theta ; phi] = a + b.

    Query p sees the keys with b[s] > -a[p]: with the keys in descending order of b, the first few.
    Their sum is read from running sums, which takes O(S log S + P log S + (P + S) C). Summed in
    fp32 or wider.

    Args:
        a: (N, P), queries times their part of the weight vector of eq. 5.
        b: (N, S), keys times theirs.
        v: (N, C, S) values.

    Returns:
        (N, C, P) in the dtype of v.

    Raises:
        MemoryError: less memory is free than twice the result takes.
    """
    require(_bytes(v, 2 * v.shape[0] * v.shape[1] * a.shape[1]), v, 'concatenation attention')
    with disable_autocast(a):
        a, b = upcast(a), upcast(b)
        if is_exporting():  # ONNX and the like have no sorted search
            return (concatenation_weights(a, b) @ upcast(v).mT).mT.to(v.dtype)
        return _SortedRelu.apply(a, b, v)


def concatenation_weights(a: Tensor, b: Tensor) -> Tensor:
    """relu(a[p] + b[s]) / S: (N, P), (N, S) -> (N, P, S)."""
    return (upcast(a)[:, :, None] + upcast(b)[:, None, :]).relu() / b.shape[1]


class _SortedRelu(torch.autograd.Function):
    """`concatenation_attention`; saves only its inputs for backward.

    The gradient of v is the same sum with queries and keys exchanged.
    """

    @staticmethod
    def forward(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
        images = zip(a, b, upcast(v), strict=True)
        means = [_relu_mean(a1, b1, v1)[0].to(v.dtype) for a1, b1, v1 in images]
        return torch.stack(means) if means else v.new_empty(0, v.shape[1], a.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, v = ctx.saved_tensors
        grads = []
        for a1, b1, v1, grad1 in zip(a, b, upcast(v), upcast(grad), strict=True):
            v_sum = _relu_mean(a1, b1, v1)[1]
            v_grad, grad_sum = _relu_mean(b1, a1, grad1, len(b1))
            grads.append(((grad1 * v_sum).sum(0), (v1 * grad_sum).sum(0), v_grad))
        if not grads:  # an empty batch
            return tuple(torch.zeros_like(t) for t in (a, b, v))
        a_grad, b_grad, v_grad = (torch.stack(images) for images in zip(*grads, strict=True))
        return a_grad / b.shape[1], b_grad / b.shape[1], v_grad.to(v.dtype)


def _relu_mean(a: Tensor, b: Tensor, v: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """sum_s relu(a[p] + b[s]) v[s] / count, and the sum of v over the same s.

    By summation by parts: only differences of b enter, all of one sign, so a common offset between
    a and b causes no cancellation.

    Args:
        a: (P).
        b: (S).
        v: (C, S).
        count: divisor of the first result; S if None.

    Returns:
        2 (C, P).
    """
    keys = len(b)
    count = keys if count is None else count
    sorted_b, order = b.sort(descending=True)
    num_seen = torch.searchsorted(-sorted_b, a)  # keys that each query sees
    margin = (a + sorted_b[(num_seen - 1).clamp(min=0)]) / count  # (P)
    margin = torch.where(num_seen > 0, margin, 0)
    steps = -sorted_b.diff() / count  # (S - 1)
    out, v_sum = v.new_empty(2, len(v), len(a))
    for first in range(0, len(v), _CHANNELS):
        part = slice(first, first + _CHANNELS)
        sums = F.pad(v[part, order].cumsum(1), (1, 0))  # at n: sum of the first n
        areas = F.pad(sums[:, 1:-1] * steps, (2, 0))
        # a non-finite value reaches all queries, as 0 times infinity does in the formula
        areas[:, 0] = 0 * sums[:, -1]
        torch.index_select(sums, 1, num_seen, out=v_sum[part])
        areas = areas.cumsum(1).index_select(1, num_seen)
        torch.addcmul(areas, v_sum[part], margin, out=out[part])
    return out, v_sum
