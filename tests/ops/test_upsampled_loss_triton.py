"""Losses by kernels against those by blocks; functions named check_* run in `test_kernels`."""

import pytest
import torch

from mmattn.ops import Criterion, upsampled_cross_entropy, upsampled_loss, upsampled_losses
from mmattn.ops.upsampled_loss_triton import fused_available, logits_grad, pixel_losses
from tests.ops.triton_checks import DEVICE, INTERPRETED, child, run_checks
from tests.ops.triton_inspect import can_compile_kernels, compile_only

# N, C, h, w, H, W: several tiles of classes and of pixels, up and down, single pixels
SHAPES = [(2, 5, 3, 4, 7, 70), (1, 35, 2, 3, 5, 9), (1, 3, 7, 6, 4, 5), (2, 2, 1, 1, 3, 2)]


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(upsampled_loss, '_KERNEL_DEVICES', ('cpu', 'cuda'))


def results(logits, labels, weights, class_weight, criterion):
    x = logits.clone().requires_grad_()
    total, right = upsampled_cross_entropy(x, labels, weights, class_weight, criterion)
    (grad,) = torch.autograd.grad(total, x)
    losses = upsampled_losses(logits, labels, class_weight, criterion)
    return [t.cpu() for t in (total, right, grad, losses)]


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def check_equals_blocks(shape, align_corners, monkeypatch):
    torch.manual_seed(0)
    n, c, h, w, height, width = shape
    for sigmoid, channels in (False, c), (True, c), (True, 1):
        logits = 3 * torch.randn(n, channels, h, w)
        labels = torch.randint(max(channels, 2), (n, height, width))
        labels[torch.rand(labels.shape) < 0.3] = 255
        class_weight = None if sigmoid and channels > 1 else 0.5 + torch.rand(channels)
        arguments = [logits, labels, torch.rand(labels.shape), class_weight]
        found = []
        for devices in (), ('cpu', 'cuda'):
            monkeypatch.setattr(upsampled_loss, '_KERNEL_DEVICES', devices)
            moved = [t if t is None else t.to(DEVICE) for t in arguments]
            found.append(results(*moved, Criterion(255, align_corners, sigmoid)))
        assert found[0][1] == found[1][1]
        torch.testing.assert_close(*found, rtol=2e-6, atol=2e-6)


def check_they_are_taken(kernels, monkeypatch):
    logits = torch.randn(1, 3, 4, 5, device=DEVICE)
    labels = torch.randint(3, (1, 8, 10), device=DEVICE)
    assert fused_available(logits) and not fused_available(logits.double())
    monkeypatch.setattr(upsampled_loss, '_Rows', None)
    upsampled_cross_entropy(logits, labels)
    upsampled_cross_entropy(logits.half(), labels.byte())


@pytest.mark.slow
@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_kernels(device):
    run_checks(__file__, device)


def test_triton_is_optional():
    child(
        '-c',
        'import sys; sys.modules["triton"] = None\n'
        'import torch\n'
        'from mmattn.ops.upsampled_loss_triton import fused_available\n'
        'assert not fused_available(torch.zeros(1, 2, 3, 4))',
    )


@pytest.mark.skipif(INTERPRETED or not can_compile_kernels(), reason='needs a Triton that compiles')
def test_compiled_for_sm_90():
    def meta(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device='meta')

    wide, factor = meta(2, 19, 64, 1024), meta(2, 512, 1024)
    index, rows = meta(2, 512, 1024, dtype=torch.int32), meta(512, dtype=torch.int32)
    with compile_only() as launches:
        for sigmoid in False, True:
            _, normal, _ = pixel_losses(wide, index, rows, meta(512), sigmoid)
            logits_grad(wide, index, normal, factor, rows, meta(512), sigmoid)
    assert len(launches) == 4 and not any(launch.spills for launch in launches)
