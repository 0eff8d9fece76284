import pytest
import torch
from torch import nn

from mmattn import CoordinateAttention, TripletAttention
from mmattn.blocks.layers.fp32 import conv_fp32, norm_fp32
from tests.blocks.slow import draw
from tests.conftest import randomise


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('weights', [torch.float16, torch.float32, torch.float64])
def test_convolution_in_the_dtype_of_the_input(weights, bias):
    for conv, size in (nn.Conv2d, (5, 4)), (nn.Conv1d, (6,)):
        layer = randomise(conv(4, 4, 3, padding=1, groups=2, bias=bias)).to(weights)
        x = draw(2, 4, *size)
        y = conv_fp32(x, layer)
        assert y.dtype == torch.float64
        torch.testing.assert_close(y, layer.double()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('weights', [torch.bfloat16, torch.float32, torch.float64])
def test_batch_norm_in_the_dtype_of_the_input(weights):
    norm = randomise(nn.BatchNorm2d(3, eps=0.1)).to(weights).eval()
    x = draw(2, 3, 4, 5)
    y = norm_fp32(x, norm)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, norm.double()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('weights', [torch.float16, torch.bfloat16])
def test_batch_norm_in_training_moves_its_statistics(weights):
    norm, wide = (randomise(nn.BatchNorm2d(3)) for _ in range(2))
    wide.load_state_dict(norm.to(weights).state_dict())
    x = torch.randn(2, 3, 4, 5)
    y = norm_fp32(x, norm.train())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, wide.train()(x), rtol=0.05, atol=0.05)
    state = {k: v.to(wide.state_dict()[k].dtype) for k, v in norm.state_dict().items()}
    torch.testing.assert_close(state, wide.state_dict(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('cls', [CoordinateAttention, TripletAttention])
def test_blocks_train_in_half_precision(cls, dtype):
    block = cls(16).to(dtype)
    x = ((2 * torch.rand(2, 16, 20, 30) - 1) * 1000).to(dtype).requires_grad_()
    y = block(x)
    y.float().mean().backward()
    assert y.dtype == dtype and y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in block.parameters())
    assert all(v.isfinite().all() for v in block.buffers())
