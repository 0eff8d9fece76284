"""ResNet whose outputs are gated by the next coarser one on their way to neck and heads.

Source: Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018, arXiv 1804.03999, with
    the connections to a feature pyramid in place of those to a decoder.
Reference code: ozan-oktay/Attention-Gated-Networks, models/layers/grid_attention_layer.py.
"""

from collections.abc import Sequence
from itertools import pairwise

from mmdet.models.backbones import resnet as det
from mmengine.model import ModuleDict
from mmseg.models.backbones import resnet as seg
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmattn.blocks import AttentionGate
from mmattn.registry import MODELS


class _GatedResNet:
    """A ResNet of mmdet or mmseg some of whose outputs pass an `AttentionGate`."""

    def __init__(
        self,
        depth: int,
        *,
        gated_stages: Sequence[int] | None = None,
        gate: dict | None = None,
        **kwargs,
    ) -> None:
        if depth not in self.arch_settings:
            allowed = ', '.join(map(str, self.arch_settings))
            raise ValueError(f'{type(self).__name__}: {depth=}, allowed {allowed}')
        super().__init__(depth=depth, **kwargs)
        outputs = sorted(index + 1 for index in self.out_indices)
        coarser = dict(pairwise(outputs))  # the last has none
        stages = tuple(coarser) if gated_stages is None else tuple(gated_stages)
        wrong = [stage for stage in stages if stage not in coarser]
        if wrong or not stages:
            allowed = ', '.join(map(str, coarser)) or 'none: one output has no coarser'
            raise ValueError(f'{type(self).__name__}: {gated_stages=}, allowed {allowed}')
        self.coarser = {stage: coarser[stage] for stage in sorted(set(stages))}
        self.gates = ModuleDict(
            {
                str(stage): AttentionGate(
                    self._stage_channels(stage), self._stage_channels(other), **(gate or {})
                )
                for stage, other in self.coarser.items()
            }
        )

    def _stage_channels(self, stage: int) -> int:
        return self.base_channels * 2 ** (stage - 1) * self.block.expansion

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stages = [index + 1 for index in sorted(self.out_indices)]
        maps = dict(zip(stages, super().forward(x), strict=True))
        outputs = dict(maps)
        for stage, other in self.coarser.items():
            gate, inputs = self.gates[str(stage)], (maps[stage], maps[other])
            if self.with_cp and inputs[0].requires_grad:
                outputs[stage] = checkpoint(gate, *inputs, use_reentrant=False)
            else:
                outputs[stage] = gate(*inputs)
        return tuple(outputs.values())


@MODELS.register_module()
class GatedResNet(_GatedResNet, det.ResNet):
    """mmdet's ResNet with an `AttentionGate` on outputs, gated by the next coarser output.

    The stages themselves are those of the stock network, and so are the maps that gate. The state
    dict is that of the stock network plus `gates.STAGE.*`, which its checkpoints lack; with
    `gate=dict(init='identity')` the outputs then are those of the stock network.

    Args:
        depth: 18, 34, 50, 101 or 152.
        gated_stages: numbers from 1 of the stages whose outputs are gated; those of `out_indices`
            but the last, all of them if None. What nothing reads should not be gated: parameters
            without a gradient stop distributed training.
        gate: arguments of `AttentionGate`, except its channels; default: sub_sample 2, with
            projection, init 'paper'.
        **kwargs: arguments of `mmdet.ResNet`.

    (N, 3, H, W) -> the outputs of the stock network; a gated one needs H and W from `sub_sample`.

    Raises:
        ValueError: an unknown depth or stage, or what `AttentionGate` refuses.
    """


@MODELS.register_module()
class GatedResNetV1c(_GatedResNet, seg.ResNetV1c):
    """mmseg's ResNetV1c with an `AttentionGate` on outputs, gated by the next coarser output.

    As `GatedResNet`; further arguments are those of `mmseg.ResNetV1c`.
    """
