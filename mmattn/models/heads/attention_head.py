"""Base of CCHead, NLHead and GCHead: an FCN head with attention between its convolutions."""

import torch
from mmseg.models.decode_heads import FCNHead
from torch import Tensor


class AttentionHead(FCNHead):
    """conv3x3 -> attention -> conv3x3 -> [concat with input, conv3x3] -> classifier.

    Args:
        **kwargs: arguments of `mmseg.models.FCNHead`, except `num_convs`, which is 2.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(num_convs=2, **kwargs)

    def attend(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> same shape."""
        raise NotImplementedError

    def _forward_feature(self, inputs: list[Tensor]) -> Tensor:
        """Feature maps of the backbone -> (N, channels, H, W), the input of the classifier."""
        x = self._transform_inputs(inputs)
        feats = self.convs[1](self.attend(self.convs[0](x)))
        if self.concat_input:
            feats = self.conv_cat(torch.cat([x, feats], dim=1))
        return feats
