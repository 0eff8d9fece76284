import pytest
import torch

from mmattn import CrissCrossAttention
from tests.conftest import randomise


@pytest.mark.openmmlab
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_mmcv(dtype, tolerance):
    from mmcv.ops import CrissCrossAttention as Theirs

    theirs = randomise(Theirs(16)).to(dtype)
    ours = CrissCrossAttention(16).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 16, 5, 7, dtype=dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    mine, other = ours(x), theirs(y)
    torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(mine)
    (mine * weight).sum().backward()
    (other * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=tolerance, atol=tolerance)


def test_recurrence_applies_the_same_weights_again():
    once = randomise(CrissCrossAttention(16)).double()
    twice = CrissCrossAttention(16, recurrence=2).double()
    twice.load_state_dict(once.state_dict())
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    assert torch.equal(twice(x), once(once(x)))


@pytest.mark.parametrize('init', ['paper', 'identity'])
def test_both_starts_are_the_identity(init):
    x = torch.randn(2, 16, 4, 3)
    assert torch.equal(CrissCrossAttention(16, recurrence=2, init=init)(x), x)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=7), 'CrissCrossAttention: in_channels=7, allowed 8 and more'),
        (dict(in_channels=16, recurrence=0), 'recurrence=0, allowed whole numbers from 1'),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrissCrossAttention(**arguments)
