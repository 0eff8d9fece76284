"""Each decode head beside MMSegmentation's of the same name and weights."""

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models import decode_heads as stock
from mmseg.structures import SegDataSample

import mmattn
from tests.conftest import randomise

_ONE = dict(in_channels=24, in_index=3)
_TWO = dict(in_channels=[12, 24], in_index=[2, 3])
ARGUMENTS = {
    'CCHead': [_ONE, dict(_ONE, recurrence=1), dict(_ONE, concat_input=False)],
    'ANNHead': [
        dict(_TWO, project_channels=6),
        dict(_TWO, project_channels=6, key_pool_scales=(1, 2), query_scales=(1, 1)),
    ],
    'DAHead': [dict(_ONE, pam_channels=4)],
    'NLHead': [
        _ONE,
        dict(_ONE, mode='dot_product', reduction=4),
        dict(_ONE, mode='gaussian', concat_input=False),
        dict(_ONE, use_scale=False),
    ],
    'GCHead': [
        _ONE,
        dict(_ONE, ratio=1 / 2, pooling_type='avg', fusion_types=('channel_mul', 'channel_add')),
    ],
}
CASES = [
    (name, dict(arguments, **norm))
    for name, choices in ARGUMENTS.items()
    for arguments in choices
    for norm in (dict(norm_cfg=dict(type='BN')), dict(norm_cfg=None))
]
SIMPLE = [(name, choices[0]) for name, choices in ARGUMENTS.items()]


def heads(name, dtype=torch.float64, **changes):
    """Ours and MMSegmentation's with one state dict, drawn at random, gammas included."""
    settings = dict(channels=16, num_classes=5, dropout_ratio=0.1, norm_cfg=dict(type='BN'))
    settings |= changes
    theirs = randomise(getattr(stock, name)(**settings)).to(dtype)
    ours = getattr(mmattn, name)(**settings).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for head in ours, theirs:
        head.dropout.p = 0.0  # ratios are random, the rest is compared
    return ours, theirs


def features(dtype, batch=2):
    """Four maps of a backbone, the last two with the channels that the cases take."""
    sizes = [(4, 36, 24), (8, 18, 12), (12, 9, 6), (24, 9, 6)]
    return [torch.randn(batch, *size, dtype=dtype) for size in sizes]


def labels(batch=2):
    values = torch.randint(0, 5, (batch, 1, 18, 12))
    values[:, :, :3] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=v)) for v in values]


def close(mine, other, tolerance, name=None):
    scale = other.abs().max().clamp(min=1)
    torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name, changes', CASES)
def test_equals_mmsegmentation(name, changes, training, dtype, tolerance):
    ours, theirs = (head.train(training) for head in heads(name, dtype, **changes))
    given, truth = features(dtype), labels()
    found = []
    for head in ours, theirs:
        x = [t.clone().requires_grad_() for t in given]
        y = head(x)
        losses = head.loss_by_feat(y, truth)
        sum(v for k, v in losses.items() if 'loss' in k).backward()
        grads = [t.grad for t in x if t.grad is not None]
        found.append([*(y if isinstance(y, tuple) else [y]), *losses.values(), *grads])
    assert len(found[0]) == len(found[1]) > 3
    for mine, other in zip(*found, strict=True):
        close(mine, other, tolerance)
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for key, p in ours.named_parameters():
        close(p.grad / largest, gradients.pop(key) / largest, tolerance, key)
    assert not gradients
    for key, mine in ours.named_buffers():  # running statistics have moved alike
        close(mine, theirs.get_buffer(key), tolerance, key)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name, changes', SIMPLE)
def test_half_precision(name, changes, dtype):
    ours, _ = heads(name, **changes)
    given = features(torch.float64, batch=1)
    expected = ours.eval()(given)
    out = ours.to(dtype)([x.to(dtype) for x in given])
    expected, out = (y[0] if isinstance(y, tuple) else y for y in (expected, out))
    assert out.dtype == dtype
    assert (out.double() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize('name, changes', [case for case in SIMPLE if case[0] != 'DAHead'])
def test_feature_before_the_classifier_is_what_forward_classifies(name, changes):
    ours, _ = heads(name, **changes)
    given = features(torch.float64, batch=1)
    assert torch.equal(ours.eval()(given), ours.conv_seg(ours._forward_feature(given)))


@pytest.mark.parametrize('name, changes', SIMPLE)
def test_the_attention_takes_part(name, changes):
    """A head whose block was skipped would pass for a while: gammas start at 0."""
    from mmattn.blocks import AttentionBlock

    ours, _ = heads(name, **changes)
    given = features(torch.float64)
    first = ours.eval()(given)
    blocks = [m for m in ours.modules() if isinstance(m, AttentionBlock)]
    assert blocks
    for block in blocks:
        randomise(block)
        second = ours(given)
        pairs = zip(*((y if isinstance(y, tuple) else [y]) for y in (first, second)), strict=True)
        assert any((a - b).abs().max() > 1e-3 for a, b in pairs)
        first = second


def test_ann_head_without_dropout_and_with_query_scales():
    settings = dict(_TWO, project_channels=6, channels=16, num_classes=5, query_scales=(1, 2))
    head = mmattn.ANNHead(dropout_ratio=0, **settings).eval()
    assert head(features(torch.float32)).shape == (2, 5, 9, 6)


@pytest.mark.parametrize(
    'name, changes, message',
    [
        ('CCHead', dict(_ONE, recurrence=0), 'recurrence=0'),
        ('CCHead', dict(_ONE, channels=4), 'in_channels=4'),
        ('NLHead', dict(_ONE, mode='cosine'), "mode='cosine'"),
        ('NLHead', dict(_ONE, reduction=0), 'reduction=0'),
        ('GCHead', dict(_ONE, ratio=1 / 99), 'ratio='),
        ('GCHead', dict(_ONE, pooling_type='max'), "pooling_type='max'"),
        ('DAHead', dict(_ONE, pam_channels=0), 'channels=0'),
        ('ANNHead', dict(_ONE, project_channels=6), 'in_channels=24, allowed two'),
        ('ANNHead', dict(_TWO, in_index=3, project_channels=6), 'in_index=3, allowed two'),
        ('ANNHead', dict(_TWO, project_channels=0), 'channels=0'),
    ],
)
def test_refused_arguments(name, changes, message):
    settings = dict(channels=16, num_classes=5) | changes
    with pytest.raises(ValueError, match=message):
        getattr(mmattn, name)(**settings)
