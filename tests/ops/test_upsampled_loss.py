"""Loss, accuracy and gradients without a map of the size of the labels, against torch's with one."""

import pytest
import torch
from torch.nn import functional as F

from mmattn.benchmarks.timing import peak_bytes
from mmattn.ops import Criterion, upsampled_cross_entropy, upsampled_loss, upsampled_losses

# N, C, h, w, H, W: up, down, not at all, from and to a single pixel, narrow
SIZES = [
    (2, 5, 6, 7, 23, 29), (1, 3, 9, 8, 4, 5), (2, 4, 6, 5, 6, 5), (1, 2, 1, 1, 7, 3), (1, 3, 4, 5, 1, 1),
    (1, 19, 3, 40, 24, 320),
]  # fmt: skip


def draw(n, channels, height, width, *size, classes=None, dtype=torch.float64, ignored=0.3):
    logits = 3 * torch.randn(n, channels, height, width, dtype=dtype)
    labels = torch.randint(classes or channels, (n, *size))
    labels[torch.rand(labels.shape) < ignored] = 255
    return logits, labels


def with_maps(logits, labels, weights, class_weight, criterion):
    """The definition: losses of pixels, their sum, and the number of right ones."""
    align_corners = criterion.align_corners
    up = F.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=align_corners)
    valid = labels != 255
    right = int((up.topk(1, 1).indices[:, 0] == labels)[valid].sum())
    if criterion.sigmoid:
        target = torch.zeros_like(up)
        if up.shape[1] == 1:
            target[:, 0] = (labels == 1).to(up)
        else:
            target.scatter_(1, labels.where(valid, 0)[:, None], 1)
        losses = F.binary_cross_entropy_with_logits(
            up, target, reduction='none', pos_weight=class_weight
        )
        losses = losses.sum(1) * valid
    else:
        losses = F.cross_entropy(up, labels, class_weight, reduction='none', ignore_index=255)
    total = (losses if weights is None else losses * weights).sum()
    return losses.detach(), total, right


@pytest.fixture(params=[1, 1 << 18])
def block(request, monkeypatch):
    """A row at a time, and all."""
    monkeypatch.setattr(upsampled_loss, '_BLOCK', request.param)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_equals_the_definition(size, align_corners, weighted, block):
    torch.manual_seed(0)
    for sigmoid, channels in (False, size[1]), (True, size[1]), (True, 1):
        logits, labels = draw(size[0], channels, *size[2:], classes=max(channels, 2))
        criterion = Criterion(255, align_corners, sigmoid)
        weights = class_weight = None
        if weighted:
            weights = torch.rand(labels.shape, dtype=torch.float64)
            if channels == 1 or not sigmoid:
                class_weight = 0.5 + torch.rand(channels, dtype=torch.float64)
        found, wanted = (logits.clone().requires_grad_() for _ in range(2))
        total, right = upsampled_cross_entropy(found, labels, weights, class_weight, criterion)
        losses, expected, hits = with_maps(wanted, labels, weights, class_weight, criterion)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
        assert right == hits and not right.requires_grad
        grads = [torch.autograd.grad(t, x, torch.tensor(0.7).double())[0]
                 for t, x in ((total, found), (expected, wanted))]  # fmt: skip
        torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-12)
        alone = upsampled_losses(logits, labels, class_weight, criterion)
        torch.testing.assert_close(alone, losses, rtol=1e-12, atol=1e-12)


def test_with_labels_of_a_byte_in_half_precision_and_compiled():
    logits, labels = draw(2, 5, 6, 7, 23, 29, dtype=torch.float32)
    wanted = upsampled_cross_entropy(logits, labels)
    for found in (
        upsampled_cross_entropy(logits, labels.byte()),
        torch.compile(upsampled_cross_entropy, backend='aot_eager', fullgraph=True)(logits, labels),
    ):
        torch.testing.assert_close(found, wanted)
    for dtype in torch.float16, torch.bfloat16:
        half = logits.to(dtype).requires_grad_()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            total, right = upsampled_cross_entropy(half, labels)
        same, hits = upsampled_cross_entropy(half.detach().float(), labels)
        assert total.dtype == torch.float32 and total == same and right == hits
        (grad,) = torch.autograd.grad(total, half)
        assert grad.dtype == dtype and grad.isfinite().all()


def test_no_map_of_the_size_of_the_labels():
    logits, labels = draw(2, 19, 64, 128, 512, 1024, dtype=torch.float32)
    logits.requires_grad_()

    def step(loss):
        return lambda: loss(logits, labels).backward()

    def plain(x, y):
        return F.cross_entropy(F.interpolate(x, y.shape[1:]), y, ignore_index=255)

    ours = peak_bytes(step(lambda x, y: upsampled_cross_entropy(x, y)[0]))
    assert 10 * ours < peak_bytes(step(plain))


def test_without_a_labelled_pixel():
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    total, right = upsampled_cross_entropy(logits, torch.full((1, 8, 9), 255))
    assert total == 0 and right == 0
    assert not torch.autograd.grad(total, logits)[0].any()


@pytest.mark.parametrize('label', [3, -1, 254])
def test_a_label_that_is_no_class_is_named(label):
    labels = torch.zeros(1, 8, 9).long()
    labels[0, 4, 5] = label
    with pytest.raises(IndexError, match=f'label {label}: allowed are 0 to 2, and ignore_index'):
        upsampled_cross_entropy(torch.randn(1, 3, 4, 5), labels)


def test_class_weights_of_several_binary_losses_are_refused():
    logits, labels = draw(1, 3, 4, 5, 8, 9)
    with pytest.raises(ValueError, match='with sigmoid and 3 channels'):
        upsampled_cross_entropy(logits, labels, None, torch.ones(3), Criterion(sigmoid=True))
