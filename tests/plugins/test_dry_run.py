"""A run without values: what it makes of operators that need some."""

import torch
from mmcv.ops import PSAMask, nms
from torch import nn

from mmattn.plugins.dry_run import dry_run


class Compiled(nn.Module):
    """A compiled operator that writes where it is told to, or one that returns what it found."""

    def __init__(self, returns=False):
        super().__init__()
        self.conv, self.returns = nn.Conv2d(3, 9, 1), returns
        self.mask = PSAMask('collect', (3, 3))

    def forward(self, x):
        x = self.mask(self.conv(x))
        if self.returns:
            nms(x[0, :4].T, x[0, 0], 0.5)
        return x


def test_compiled_operators_meet_no_tensors_without_values():
    found = dry_run(Compiled(), {}, (64, 64))
    assert found.reason == '' and found.total.macs == 64 * 64 * 27
    assert dry_run(Compiled(returns=True), {}, (4, 4)).reason == 'nms needs values'
    image = torch.rand(1, 3, 4, 4)
    assert Compiled()(image).abs().sum() > 0  # they are themselves again


class Filling(nn.Module):
    """A head of ultralytics: anchors of a stride that is kept in a tensor, cached by size."""

    def __init__(self):
        super().__init__()
        self.conv, self.stride, self.anchors = nn.Conv2d(3, 4, 1), torch.tensor([8.0]), None

    def forward(self, x):
        if self.anchors is None:
            self.anchors = torch.cat([torch.full((9, 2), stride) for stride in self.stride])
        return self.conv(x).mean() * self.anchors


def test_a_single_value_of_a_tensor_is_a_symbol_that_is_not_kept():
    model = Filling()
    found = dry_run(model, {}, (8, 8))
    assert found.reason == '' and found.total.macs == 64 * 12
    assert model.anchors is None and model(torch.rand(1, 3, 8, 8)).isfinite().all()
