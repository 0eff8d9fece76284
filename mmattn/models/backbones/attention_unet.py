"""U-Net whose skip connections are gated by the decoder map one level below.

Source: Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018, arXiv 1804.03999.
Reference code: ozan-oktay/Attention-Gated-Networks, models/networks/unet_CT_single_att_dsv_3D.py.
    Differs from it in: the U-Net is mmseg's, in 2-d; the lowest map gates as it is, without a 1x1
    convolution of its own; no deep supervision but by auxiliary heads.
"""

from collections.abc import Sequence

from mmengine.model import ModuleDict
from mmseg.models.backbones import UNet
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmattn.blocks import AttentionGate
from mmattn.registry import MODELS


@MODELS.register_module()
class AttentionUNet(UNet):
    """mmseg's UNet with an `AttentionGate` on skip connections.

    A skip connection is gated by the map that enters the decoder block with it, before that is
    upsampled. The state dict is that of the stock network plus `gates.STAGE.*`, which its
    checkpoints lack; with `gate=dict(init='identity')` the network then is the stock one.

    (N, C, H, W) -> a list of the lowest map and the decoder's, coarse to fine, as the stock one; H
    and W are multiples of its downsampling.

    Args:
        base_channels, num_stages, strides, downsamples: arguments of `mmseg.UNet`.
        gated_stages: numbers from 1, the finest, of the encoder stages whose skip connection is
            gated; all but the last, which has none, if None. The authors leave out stage 1.
        gate: arguments of `AttentionGate`, except its channels; default: sub_sample 2, or 1 where
            the next stage is as large; with projection, whose norm is that of the network.
        norm_cfg, with_cp: arguments of `mmseg.UNet`; they hold for the gates, too.
        **kwargs: other arguments of `mmseg.UNet`.

    Raises:
        ValueError: an unknown stage, or what `AttentionGate` refuses.
    """

    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 64,
        num_stages: int = 5,
        strides: Sequence[int] = (1, 1, 1, 1, 1),
        enc_num_convs: Sequence[int] = (2, 2, 2, 2, 2),
        dec_num_convs: Sequence[int] = (2, 2, 2, 2),
        downsamples: Sequence[bool] = (True, True, True, True),
        *,
        gated_stages: Sequence[int] | None = None,
        gate: dict | None = None,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        **kwargs,
    ) -> None:
        norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
        super().__init__(
            in_channels,
            base_channels,
            num_stages,
            strides,
            enc_num_convs,
            dec_num_convs,
            downsamples,
            norm_cfg=norm_cfg,
            with_cp=with_cp,
            **kwargs,
        )
        self.with_cp = with_cp
        stages = range(1, num_stages) if gated_stages is None else sorted(set(gated_stages))
        if not stages or not set(stages) <= set(range(1, num_stages)):
            allowed = ', '.join(map(str, range(1, num_stages))) or 'none: one stage has no skip'
            raise ValueError(f'AttentionUNet: {gated_stages=}, allowed {allowed}')
        gate = dict(gate or {})
        if gate.get('project', True):
            gate.setdefault('norm_cfg', norm_cfg)
        self.gates = ModuleDict()
        for stage in stages:
            channels = base_channels * 2 ** (stage - 1)
            is_halved = strides[stage] != 1 or downsamples[stage - 1]
            options = dict(sub_sample=2 if is_halved else 1) | gate
            self.gates[str(stage)] = AttentionGate(channels, 2 * channels, **options)

    def forward(self, x: Tensor) -> list[Tensor]:
        self._check_input_divisible(x)
        skips = []
        for encode in self.encoder:
            x = encode(x)
            skips.append(x)
        outputs = [x]
        for index in reversed(range(len(self.decoder))):
            skip, stage = skips[index], str(index + 1)
            if stage in self.gates:
                skip = self._gate(stage, skip, x)
            x = self.decoder[index](skip, x)
            outputs.append(x)
        return outputs

    def _gate(self, stage: str, skip: Tensor, x: Tensor) -> Tensor:
        if self.with_cp and skip.requires_grad:
            return checkpoint(self.gates[stage], skip, x, use_reentrant=False)
        return self.gates[stage](skip, x)
