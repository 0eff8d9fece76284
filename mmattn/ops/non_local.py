"""Non-local aggregation over all pairs of positions, with three kinds of pairwise function.

Source: Non-local Neural Networks, CVPR 2018, arXiv 1711.07971, eq. 1-6.
"""

from torch import Tensor

from .precision import widen, without_autocast


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """o[p] = sum_s softmax_s(scale * q[p] . k[s]) v[s], the (embedded) Gaussian of eq. 2-3.

    Logits and softmax are computed in fp32 or wider, so half precision does not overflow.

    Args:
        q: (N, E, P) queries.
        k: (N, E, S) keys.
        v: (N, C, S) values.
        scale: factor of the logits.

    Returns:
        (N, C, P) in the dtype of v.
    """
    with without_autocast(q):
        weights = softmax_weights(q, k, scale)
        # in this order the gradient of the weights comes out in their own layout, without a copy
        return (weights.to(v.dtype) @ v.mT).mT


def softmax_weights(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    """softmax over s of scale * q[p] . k[s]: (N, E, P), (N, E, S) -> (N, P, S), rows sum to 1."""
    with without_autocast(q):
        q = widen(q) if scale == 1 else widen(q) * scale
        return (q.mT @ widen(k)).softmax(-1)


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o[p] = sum_s (q[p] . k[s]) v[s] / S, eq. 4 with the normalisation below it.

    Whichever of (v k^T) q and v (k^T q) takes fewer multiplications is computed; where the first
    does, no map over pairs exists. Summed in fp32 or wider.

    Args:
        q: (N, E, P) queries.
        k: (N, E, S) keys.
        v: (N, C, S) values.

    Returns:
        (N, C, P) in the dtype of v.
    """
    width, positions, values = q.shape[1], k.shape[2], v.shape[1]
    with without_autocast(q):
        wide_q, wide_k = widen(q), widen(k) / positions
        if width * values * (positions + q.shape[2]) <= positions * q.shape[2] * (width + values):
            out = (widen(v) @ wide_k.mT) @ wide_q  # (N, C, E) @ (N, E, P)
        else:
            out = widen(v) @ (wide_k.mT @ wide_q)  # (N, C, S) @ (N, S, P)
        return out.to(v.dtype)


def concatenation_attention(a: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """o[p] = sum_s relu(a[p] + b[s]) v[s] / S, eq. 5-6 with w_f [theta ; phi] = a + b.

    Summed in fp32 or wider.

    Args:
        a: (N, P), what the weight vector of eq. 5 makes of the queries.
        b: (N, S), the same of the keys.
        v: (N, C, S) values.

    Returns:
        (N, C, P) in the dtype of v.
    """
    with without_autocast(a):
        pairs = concatenation_weights(a, b)
        return (pairs @ widen(v).mT).mT.to(v.dtype)


def concatenation_weights(a: Tensor, b: Tensor) -> Tensor:
    """relu(a[p] + b[s]) / S: (N, P), (N, S) -> (N, P, S)."""
    return (widen(a)[:, :, None] + widen(b)[:, None, :]).relu() / b.shape[1]
