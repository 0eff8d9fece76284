"""Asymmetric non-local attention: all positions attend to pooled keys and values.

Linear maps are applied to the few pooled positions rather than to all: the projections of values
and output, and the half of the bottleneck that takes the context. Biases stay correct, as the
weights of a query, and those of pooling, sum to 1.

Source: Asymmetric Non-local Neural Networks for Semantic Segmentation, ICCV 2019,
    arXiv 1908.07678, eq. 5-8.
Reference code: open-mmlab/mmsegmentation, mmseg/models/decode_heads/ann_head.py. Differs from it
    in: a query scale above 1 works; there the context is interpolated back to the size of the map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmattn.ops import (
    Pairs,
    is_channels_last,
    project,
    project_and_attend,
    pyramid_pool,
    softmax_attention,
)

from ..base import PairwiseBlock, recorded, zero
from .conv_norm_act import ConvNormAct, apply_norm_act, foldable, has_hooks, run_folded
from .scale import Scale


class AsymmetricStage(nn.Module):
    """W_o softmax(q^T pool(k) / sqrt(d)) pool(v), keys as MMSegmentation's `SelfAttentionBlock`.

    Args:
        low_in_channels: C of the map that gives keys and values.
        high_in_channels: C of the map that gives queries.
        channels: d, channels of queries, keys and values.
        out_channels: channels of the context.
        share_key_query: one projection for both; it is in the state dict under both names.
        query_scale: factor of the max-pooling of queries.
        key_pool_scales: n of each n x n grid of pooled keys and values.
        conv_cfg, norm_cfg, act_cfg: configs of the key and query projections.
    """

    def __init__(
        self,
        low_in_channels: int,
        high_in_channels: int,
        channels: int,
        out_channels: int,
        share_key_query: bool,
        query_scale: int,
        key_pool_scales: Sequence[int],
        conv_cfg: dict | None,
        norm_cfg: dict | None,
        act_cfg: dict | None,
    ) -> None:
        super().__init__()
        options = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.query_scale, self.key_pool_scales = query_scale, key_pool_scales
        self.scale = channels**-0.5
        self.key_project = ConvNormAct(low_in_channels, channels, 1, **options)
        self.query_project = (
            self.key_project
            if share_key_query
            else ConvNormAct(high_in_channels, channels, 1, **options)
        )
        self.value_project = nn.Conv2d(low_in_channels, channels, 1)
        self.out_project = nn.Conv2d(channels, out_channels, 1)

    def project(self, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """-> queries (N, d, H, W), keys (N, d, S), and values (N, out, S) after W_o."""
        if self.query_project is self.key_project and high is low:
            q = k = _run_twice(self.query_project, low)
        else:
            q, k = run_folded(self.query_project, high), run_folded(self.key_project, low)
        if self.query_scale > 1:
            q = F.max_pool2d(q, self.query_scale)
        pooled = pyramid_pool(low, self.key_pool_scales)[..., None]  # (N, C, S, 1)
        v = self.out_project(self.value_project(pooled))
        return q, pyramid_pool(k, self.key_pool_scales), v.flatten(2)


def _run_twice(layer: ConvNormAct, x: Tensor) -> Tensor:
    """layer(x), with the running statistics of the norm updated as by two equal runs."""
    norm = layer.norm
    if not isinstance(norm, nn.modules.batchnorm._NormBase):
        if not isinstance(norm, (nn.GroupNorm, type(None))):
            layer(x)  # an unknown norm may keep statistics of any kind
        return run_folded(layer, x)
    if not (norm.training and norm.track_running_stats):
        return run_folded(layer, x)
    momentum = norm.momentum
    try:
        if momentum is None:  # the mean over all batches
            norm.momentum = 2 / (float(norm.num_batches_tracked) + 2)
        else:
            norm.momentum = 1 - (1 - momentum) ** 2
        y = run_folded(layer, x)
    finally:
        norm.momentum = momentum
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        norm.num_batches_tracked.add_(1)
    return y


class AsymmetricBlock(PairwiseBlock):
    """Base of APNB and AFNB: stages whose contexts are summed, and the 1x1 bottleneck."""

    kind = 'pairwise, pooled keys'
    plugin_memory = 'keep'
    share_key_query: bool
    bottleneck_act: bool

    def __init__(
        self,
        low_in_channels: int,
        high_in_channels: int,
        channels: int,
        out_channels: int,
        query_scales: Sequence[int],
        key_pool_scales: Sequence[int],
        conv_cfg: dict | None,
        norm_cfg: dict | None,
        act_cfg: dict | None,
        init: str,
    ) -> None:
        super().__init__(low_in_channels, init)
        self._check_whole(
            high_in_channels=high_in_channels, channels=channels, out_channels=out_channels
        )
        for name, scales in ('query_scales', query_scales), ('key_pool_scales', key_pool_scales):
            self._check(len(scales) > 0, f'{name}={scales!r}, allowed at least one')
            for scale in scales:
                self._check_whole(**{name: scale})
        self._check(
            init == 'paper' or out_channels == high_in_channels,
            f"{out_channels=} with init='identity', allowed the channels of the input, "
            f'{high_in_channels}',
        )
        options = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.high_in_channels = high_in_channels
        self.stages = nn.ModuleList(
            AsymmetricStage(
                low_in_channels,
                high_in_channels,
                channels,
                out_channels,
                self.share_key_query,
                scale,
                tuple(key_pool_scales),
                act_cfg=act_cfg,
                **options,
            )
            for scale in query_scales
        )
        self.bottleneck = ConvNormAct(
            out_channels + high_in_channels,
            out_channels,
            1,
            act_cfg=act_cfg if self.bottleneck_act else None,
            **options,
        )
        if init == 'identity':
            self.rho = Scale(0)
        self.start()

    def start(self) -> None:
        if self.init == 'paper':  # with rho = 0 it would only delay learning
            for stage in self.stages:
                zero(stage.out_project)

    @recorded('pairwise', by='attention_map')
    def attend(self, q: Tensor, k: Tensor, v: Tensor, stage: AsymmetricStage) -> Tensor:
        """(N, d, H, W), (N, d, S), (N, out, S) -> (N, out, H, W)."""
        return softmax_attention(q.flatten(2), k, v, stage.scale).unflatten(2, q.shape[2:])

    def pairs(self, q: Tensor, k: Tensor, v: Tensor, stage: AsymmetricStage) -> Pairs:
        return Pairs('softmax', q, k, stage.scale, stage.key_pool_scales)

    def fuse(self, high: Tensor, low: Tensor) -> Tensor:
        """bottleneck([sum of the contexts ; high])."""
        conv = self.bottleneck.conv
        fold = foldable(conv) and not has_hooks(self.bottleneck)
        if fold:
            width = conv.in_channels - self.high_in_channels  # channels of the context
            of_context, of_high = conv.weight.flatten(1).split([width, self.high_in_channels], 1)
        y, context = None, None
        for stage in self.stages:
            self._check_stage(stage, high, low)
            q, k, v = stage.project(high, low)
            if fold:
                v = of_context @ v
            if fold and y is None and stage.query_scale == 1:
                if self._recorder is not None:
                    self.attend(q, k, v, stage)
                y = project_and_attend(high, of_high, conv.bias, q, k, v, stage.scale)
                continue
            prior = self.attend(q, k, v, stage)
            if stage.query_scale > 1:
                prior = F.interpolate(
                    prior, size=high.shape[2:], mode='bilinear', align_corners=False
                )
            context = prior if context is None else context + prior
        if fold:
            if y is None:
                y = project(high, of_high, conv.bias, last=is_channels_last(high))
            y = apply_norm_act(self.bottleneck, y if context is None else y + context, high)
        else:
            y = self.bottleneck(torch.cat([context.to(high.dtype), high], 1))
        return high + self.rho(y).to(high.dtype) if self.init == 'identity' else y.to(high.dtype)

    def _check_stage(self, stage: AsymmetricStage, high: Tensor, low: Tensor) -> None:
        if min(high.shape[2:]) < stage.query_scale:
            self._check(
                False,
                f'input {tuple(high.shape)} with query scale {stage.query_scale}, '
                f'allowed H, W from {stage.query_scale}',
            )
        norms = [stage.query_project.norm, stage.key_project.norm, self.bottleneck.norm]
        for norm, x in zip(norms, (high, low, high), strict=True):
            self._check_batch(norm, x, 'a batch norm')
