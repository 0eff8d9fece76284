import pytest
import torch

from mmattn import CrissCrossAttention
from mmattn.ops import criss_cross
from tests.blocks.test_memory import kept
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


@pytest.mark.parametrize('gamma', [0.0, 0.3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('recurrence', [1, 2])
def test_gradients_are_those_of_the_formula(recurrence, layout, gamma):
    """The factor is multiplied into the values; all gradients stay, that of gamma at 0 too."""
    block = randomise(CrissCrossAttention(16, recurrence=recurrence)).double()
    torch.nn.init.constant_(block.gamma.scale, gamma)
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
    leaves = [x.requires_grad_(), *block.parameters()]
    y, expected = block(x), x
    for _ in range(recurrence):
        convs = block.query_conv, block.key_conv, block.value_conv
        expected = expected + block.gamma(criss_cross(*(conv(expected) for conv in convs)))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    assert y.is_contiguous(memory_format=layout)
    weight = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, weight)
    assert found[1:][[k for k, _ in block.named_parameters()].index('gamma.scale')] != 0
    for a, b in zip(found, torch.autograd.grad(expected, leaves, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_saves_the_projections_alone():
    """The context before the factor is not among what is saved for backward."""
    block, x = randomise(CrissCrossAttention(64)), torch.randn(1, 64, 20, 17, requires_grad=True)
    _, nbytes = kept(block, [x])
    weights = (2 * 8 + 64) * 64
    # x, queries, keys, values; weights as they are and joined, the factor
    assert nbytes <= 4 * ((64 + 2 * 8 + 64) * 20 * 17 + 2 * weights + 2 * 80 + 1)


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
