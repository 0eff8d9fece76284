"""Faults that the field has shipped: each broken copy turns checks of the contract red.

Where the contract has no means to see a fault, the comparison with the authors' numbers turns red.
"""

import functools

import pytest

from mmattn import blocks
from mmattn.blocks import (
    CAM,
    MHSA,
    PAM,
    SE,
    CrissCrossAttention,
    NonLocal2d,
    TripletAttention,
)
from mmattn.blocks.base import recorded
from mmattn.ops import criss_cross, softmax_weights
from tests.blocks import contract, test_golden


class MissingSigmoid(SE):
    """The gate is the logit."""

    def _sigmoid(self, z):
        return z


class TransposedMap(CrissCrossAttention):
    """The result is read column by column: the right shape, even where H and W differ."""

    @recorded('pairwise', by='attention_map')
    def attend(self, q, k, v):
        return criss_cross(q, k, v).mT.reshape(v.shape)


class TransposedWeights(NonLocal2d):
    """The map over pairs is used the other way round: keys look at queries."""

    @recorded('pairwise', by='attention_map')
    def attend(self, theta, phi, g):
        weights = softmax_weights(theta.flatten(2), phi.flatten(2), self.scale)
        return (g.flatten(2) @ weights.to(g.dtype)).unflatten(2, theta.shape[2:])


class WrongAxis(PAM):
    """The softmax runs over the queries."""

    @recorded('pairwise', by='attention_map')
    def attend(self, q, k, v):
        weights = softmax_weights(k.flatten(2), q.flatten(2)).mT  # its columns sum to 1
        return (v.flatten(2) @ weights.mT.to(v.dtype)).unflatten(2, q.shape[2:])


class WrongAxisOfHeads(MHSA):
    """The softmax of each head runs over the queries."""

    @recorded('pairwise', by='attention_map')
    def attend(self, q, k, v):
        pairs = self.pairs(q, k, v)
        weights = softmax_weights(pairs.k.flatten(2), pairs.q.flatten(2)).mT
        return (v.flatten(2) @ weights.mT.to(v.dtype)).unflatten(2, q.shape[2:])


class QueryMinusKey(MHSA):
    """Distances have the other sign: the map is still one, of attention that looks elsewhere."""

    def _positions(self, q):
        height, width, *scales = super()._positions(q)
        return height.flip(0), width.flip(0), *scales


class WithoutGamma(CAM):
    """The context is added at full strength from the start."""

    def attend(self, x, gamma):
        return super().attend(x, 1 + 0 * gamma)


@pytest.mark.parametrize(
    'broken, red',
    [
        (MissingSigmoid, {'half', 'identity', 'recording'}),
        (TransposedMap, {'recording'}),
        (TransposedWeights, {'recording'}),
        (WrongAxis, {'learns', 'recording'}),
        (WrongAxisOfHeads, {'recording'}),
        (QueryMinusKey, set()),
        (WithoutGamma, {'identity', 'learns'}),
    ],
)
def test_broken_copy(broken, red):
    build = functools.partial(broken.build, **broken.examples[0])
    failed = set()
    for name in (
        'any_size',
        'half',
        'gradcheck',
        'copies',
        'layouts',
        'learns',
        'identity',
        'recording',
    ):
        try:
            contract.CHECKS[name](build)
        except AssertionError:
            failed.add(name)
    assert failed == red


class MeanBeforeMax(TripletAttention):
    """The two channels of the pooled images are exchanged."""

    def _gate(self, image, layers):
        return super()._gate(image.flip(1), layers)


@pytest.mark.parametrize(
    'broken, case',
    [
        (MeanBeforeMax, 'triplet_c16'),
        (WrongAxisOfHeads, 'mhsa_c32'),
        (QueryMinusKey, 'mhsa_c24_h2_scaled'),
    ],
)
def test_broken_copy_differs_from_the_authors(broken, case, monkeypatch):
    test_golden.test_authors_numbers(case)
    monkeypatch.setattr(blocks, broken.__base__.__name__, broken)
    with pytest.raises(AssertionError):
        test_golden.test_authors_numbers(case)
