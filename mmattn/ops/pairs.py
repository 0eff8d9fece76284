"""Queries, keys and rule of a pairwise block: enough to compute the weights of any query."""

from typing import NamedTuple

from torch import Tensor

from .criss_cross import criss_cross_map
from .non_local import concatenation_weights, softmax_weights
from .precision import upcast


class Pairs(NamedTuple):
    """The weight of key s for query p as a function of q[p] and k[s].

    Attributes:
        rule: 'softmax', of scale q[p] . k[s] over s; 'mean', q[p] . k[s] / S; 'relu mean',
            relu(q[p] + k[s]) / S, of one channel; 'criss-cross', softmax over the row and the
            column of p.
        q: (N, E, H, W) queries.
        k: (N, E, h, w) keys; or (N, E, S), averages over `grids`.
        scale: factor of the logits of 'softmax'.
        grids: for pooled keys, the n of each n x n grid over the map, one grid after another.
        heads: heads of each image, one after another in the batch, N is that of images times them;
            None for a block without heads.
    """

    rule: str
    q: Tensor
    k: Tensor
    scale: float = 1.0
    grids: tuple[int, ...] = ()
    heads: int | None = None

    def weights(self, queries: Tensor) -> Tensor:
        """(Q,) positions row * W + column -> (N, Q, h, w), or (N, Q, S) of pooled keys.

        With heads, (images, heads, Q, h, w).
        """
        weights = self._weights(queries)
        return weights if self.heads is None else weights.unflatten(0, (-1, self.heads))

    def each_head(self) -> list['Pairs']:
        """The pairs of one image, for each of its heads."""
        if self.heads is None:
            return [self]
        both = zip(self.q.split(1), self.k.split(1), strict=True)
        return [self._replace(q=q, k=k, heads=None) for q, k in both]

    def _weights(self, queries: Tensor) -> Tensor:
        if self.rule == 'criss-cross':
            return criss_cross_map(self.q, self.k, queries)
        q, k = self.q.flatten(2)[..., queries], self.k.flatten(2)
        if self.rule == 'mean':
            weights = upcast(q).mT @ upcast(k) / k.shape[2]
        elif self.rule == 'relu mean':
            weights = concatenation_weights(q[:, 0], k[:, 0])
        else:
            weights = softmax_weights(q, k, self.scale)
        return weights if self.grids else weights.unflatten(2, self.k.shape[2:])
