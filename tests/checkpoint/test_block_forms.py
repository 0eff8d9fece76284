"""What weights do not tell: they are not loaded into a block that computes something else."""

import pytest
import torch
from torch import nn

from mmattn import SE, CrissCrossAttention
from mmattn.checkpoint.load import block_forms, load_weights
from mmattn.errors import CheckpointError


def test_only_gated_blocks_have_a_form():
    model = nn.ModuleDict(dict(a=SE(16, init='identity'), b=CrissCrossAttention(16)))
    assert block_forms(model) == {'a': 'identity'}
    assert block_forms(nn.DataParallel(model)) == {'a': 'identity'}


def test_weights_of_the_other_form_are_refused():
    paper, identity = (nn.ModuleDict(dict(se=SE(16, init=i))) for i in ('paper', 'identity'))
    weights, before = paper.state_dict(), identity.se.fc1.weight.clone()
    with pytest.raises(CheckpointError, match="x.pth .* se was trained with init='paper' .* Write"):
        load_weights(identity, weights, 'x.pth', block_forms(paper))
    assert torch.equal(identity.se.fc1.weight, before)
    load_weights(paper, identity.state_dict(), 'x.pth', block_forms(paper))
