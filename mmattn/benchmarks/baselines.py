"""Baselines of the benchmark, and which of them belong to which case."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from mmattn.blocks import AttentionBlock

from . import authors_operations as authors
from . import library_modules as library
from .authors_operations import Forward


@dataclass(frozen=True)
class Baseline:
    """Another implementation of a block.

    Attributes:
        label: its origin, as shown in the table.
        make: our block -> a callable with the same weights, dtype, device and mode.
        pair_values: our block, first input -> number of values that maps over pairs of positions
            hold at once in a forward pass; a backward pass is taken to need twice as many.
        package: package that must be installed; without it the baseline is left out.
        restated: whether somebody's operations are restated on our weights, rather than run as
            published; the table marks these by a *.
        comparable: whether it does the same work, so that it counts in ratios.
    """

    label: str
    make: Callable[[nn.Module], Forward]
    pair_values: Callable[[nn.Module, Tensor], int] | None = None
    package: str = 'torch'
    restated: bool = False
    comparable: bool = True

    @property
    def name(self) -> str:
        """The label, marked by a * if it is restated."""
        return f'{self.label}*' if self.restated else self.label

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


def _pairs(maps: float) -> Callable[[nn.Module, Tensor], int]:
    return lambda b, x: maps * len(x) * x.shape[2:].numel() ** 2


def _mmcv_pairs(b: AttentionBlock, x: Tensor) -> int:
    """Logits and weights; with 'concatenation' both sides repeated over all pairs, and joined."""
    return _pairs(4 * b.inter_channels if b.mode == 'concatenation' else 2)(b, x)


def _mhsa_pairs(b: AttentionBlock, x: Tensor) -> int:
    return 4 * b.heads * _pairs(1)(b, x)


def _library(label: str, make: Callable, pair_values: Callable | None = None) -> Baseline:
    return Baseline(label, make, pair_values, package=label)


def _restated(make: Callable, label: str = 'authors', **options) -> Baseline:
    return Baseline(label, make, restated=True, **options)


# name of a case, or its block -> its baselines
BASELINES: dict[str, list[Baseline]] = {
    'AFNB': [_library('mmseg', library.afnb)],
    'ANNHead': [_library('mmseg', library.ann_head)],
    'APNB': [_library('mmseg', library.apnb)],
    'AttentionGate': [_restated(authors.attention_gate)],
    'BAM': [_restated(authors.bam)],
    'CAM': [_library('mmseg', library.cam)],
    'CBAM': [_restated(authors.cbam)],
    'CMPESE': [_restated(authors.cmpese)],
    'ContextBlock': [
        _library('mmcv', library.context_block),
        _library('timm', library.context_block_timm),
    ],
    'CoordinateAttention': [
        _restated(authors.coordinate_attention),
        _library('timm', library.coordinate_attention_timm),
    ],
    'CrissCrossAttention': [_library('mmcv', library.criss_cross)],
    'DualAttention': [_library('mmseg', library.dual_attention, _pairs(2))],
    'ECA': [_restated(authors.eca), _library('timm', library.eca_timm)],
    'EMAttention': [_restated(authors.ema)],
    'LSK': [_restated(authors.lsk)],
    'LSKA': [_restated(authors.lska)],
    'Mask R-CNN R50 + GC': [
        _library('mmdet', library.mask_rcnn_with_mmcv_plugins),
        Baseline('without', library.without_attention, comparable=False),
    ],
    'MHSA': [
        _restated(authors.mhsa, pair_values=_mhsa_pairs),
        _library('timm', library.mhsa_timm, _mhsa_pairs),
    ],
    'NonLocal2d': [_library('mmcv', library.non_local, _mmcv_pairs)],
    'NonLocal2d concatenation 128x256': [
        Baseline('dot_prod', library.dot_product_mode, comparable=False)
    ],
    'NonLocal2d dot_product core': [_library('mmcv', library.dot_product_core, _pairs(1))],
    'NonLocal2d embedded_gaussian': [
        _library('mmcv', library.non_local, _mmcv_pairs),
        _library('timm', library.non_local_timm, _pairs(2)),
        Baseline('sdpa', library.non_local_sdpa),
    ],
    'NonLocal2d gaussian': [
        _library('mmcv', library.non_local, _mmcv_pairs),
        Baseline('sdpa', library.non_local_sdpa),
    ],
    'PAM': [_library('mmseg', library.pam, _pairs(2)), Baseline('sdpa', library.pam_sdpa)],
    'ResidualAttention': [_restated(authors.residual_attention, 'port')],
    'SCSE': [_restated(authors.scse)],
    'SE': [_restated(authors.se), _library('timm', library.se_timm)],
    'SGE': [_restated(authors.sge)],
    'ShuffleAttention': [_restated(authors.shuffle_attention)],
    'SimAM': [_restated(authors.simam)],
    'SimplifiedNonLocal': [_restated(authors.simplified_non_local, 'formula')],
    'SKConv2d': [_restated(authors.sk, 'formula')],
    'SpatialTransformer': [_restated(authors.spatial_transformer, 'tutorial')],
    'TripletAttention': [_restated(authors.triplet_attention)],
}
