import pytest
import torch
from mmseg.models.decode_heads import CCHead as Theirs

from mmattn import CCHead
from tests.conftest import randomise


def heads(dtype, **changes):
    """Ours and MMSegmentation's with one state dict, drawn at random, gamma included."""
    settings = dict(in_channels=24, channels=16, num_classes=5, norm_cfg=dict(type='BN'))
    settings |= dict(dropout_ratio=0, recurrence=2) | changes
    theirs, ours = randomise(Theirs(**settings)).to(dtype), CCHead(**settings).to(dtype)
    assert theirs.cca.gamma.scale != 0
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'changes', [{}, dict(recurrence=1), dict(concat_input=False), dict(norm_cfg=None)]
)
def test_equals_mmsegmentation(dtype, tolerance, training, changes):
    ours, theirs = (head.train(training) for head in heads(dtype, **changes))
    features = torch.randn(2, 24, 9, 6, dtype=dtype)
    outputs, gradients = [], []
    weight = torch.randn(2, 5, 9, 6, dtype=dtype)
    for head in ours, theirs:
        x = features.clone().requires_grad_()
        y = head([x])
        (y * weight).sum().backward()
        outputs.append(y)
        gradients.append(x.grad)
    for mine, other in (outputs, gradients):
        scale = other.abs().max().clamp(min=1)
        torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=tolerance)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters()):
        if name == 'cca.key_conv.bias':  # zero in exact arithmetic: both hold rounding noise
            continue
        scale = other.grad.abs().max().clamp(min=1)
        torch.testing.assert_close(
            mine.grad / scale, other.grad / scale, rtol=0, atol=tolerance, msg=name
        )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    ours, _ = heads(torch.float64)
    x = torch.randn(1, 24, 9, 6)
    expected = ours.eval()([x.double()])
    out = ours.to(dtype)([x.to(dtype)])
    assert out.dtype == dtype
    assert (out.double() - expected).abs().max() < 0.1 * expected.abs().max()


def test_feature_before_the_classifier_is_what_forward_classifies():
    ours, _ = heads(torch.float64)
    x = [torch.randn(1, 24, 4, 4, dtype=torch.float64)]
    assert torch.equal(ours.eval()(x), ours.conv_seg(ours._forward_feature(x)))


def test_refused_arguments():
    with pytest.raises(ValueError, match='recurrence=0'):
        heads(torch.float32, recurrence=0)
    with pytest.raises(ValueError, match='in_channels=4'):
        CCHead(in_channels=8, channels=4, num_classes=2)
