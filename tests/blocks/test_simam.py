import pytest
import torch
from torch import nn

from mmattn import SimAM
from mmattn.benchmarks.timing import saved_bytes
from mmattn.ops import energy
from tests.blocks.slow import agree, draw, drawn, means, parameters


def formula(block, x):
    """Each value against the mean and the variance of the others of its channel."""
    rho = block.rho.scale if block.rho is not None else 1
    others = max(x.shape[2] * x.shape[3] - 1, 1)
    mean, rows = means(x), []
    for i in range(x.shape[2]):
        row = []
        for j in range(x.shape[3]):
            variance = sum(
                (x[:, :, a, b] - mean) ** 2 for a in range(x.shape[2]) for b in range(x.shape[3])
            )
            energy = (
                4
                * (variance / others + block.e_lambda)
                / ((x[:, :, i, j] - mean) ** 2 + 2 * (variance / others + block.e_lambda))
            )
            gated = x[:, :, i, j] / (1 + (-1 / energy).exp())
            row.append(x[:, :, i, j] + rho * (gated - x[:, :, i, j]))
        rows.append(torch.stack(row, 2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize('compiling', [False, True])
@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('e_lambda', [1e-4, 0.1, 3])
@pytest.mark.parametrize('size', [(4, 3), (1, 5), (1, 2), (1, 1)])
def test_formula(size, e_lambda, init, compiling, monkeypatch):
    monkeypatch.setattr(energy, 'is_compiling', lambda: compiling)
    agree(drawn(SimAM(3, e_lambda=e_lambda, init=init)), formula, draw(2, 3, *size))


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('values', [1, 40, 1 << 20])
def test_in_parts(values, layout, monkeypatch):
    monkeypatch.setattr(energy, '_PART', values)
    x = draw(5, 3, 2, 3).to(memory_format=layout)
    agree(drawn(SimAM(init='identity')), formula, x)


def test_no_image():
    x = torch.zeros(0, 3, 4, 5, requires_grad=True)
    y = SimAM(init='identity')(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape


@pytest.mark.parametrize('init', ['paper', 'identity'])
def test_only_two_numbers_a_channel_are_kept(init):
    block = SimAM(8, init=init)
    assert saved_bytes(block, [torch.randn(2, 8, 16, 16)], block.parameters()) == 2 * 2 * 8 * 4


def test_one_pixel_has_the_gate_of_the_mean():
    x = torch.randn(2, 4, 1, 1)
    torch.testing.assert_close(SimAM()(x), x * torch.tensor(0.5).sigmoid())


@pytest.mark.parametrize('init', ['paper', 'identity'])
def test_constant_channels(init):
    x = draw(2, 3, 4, 5)
    x[:, 1], x[1, 2] = 3, 0
    agree(drawn(SimAM(3, init=init)), formula, x)


def test_a_far_mean_does_not_cancel():
    x = draw(2, 3, 6, 7) + 2**12
    torch.testing.assert_close(SimAM()(x.float()), SimAM()(x).float(), rtol=1e-3, atol=0)


def test_keys_and_parameters():
    assert parameters(SimAM) == 0 and not SimAM(8).state_dict()
    state = SimAM(8, init='identity').state_dict()
    assert {k: v.item() for k, v in state.items()} == {'rho.scale': 0}


def test_without_channels_it_takes_any_number():
    block = SimAM()
    for channels in 1, 5:
        assert block(torch.randn(2, channels, 3, 4)).shape == (2, channels, 3, 4)
    with pytest.raises(ValueError, match=r'SimAM: input \(3, 4\), allowed \(N, C, H, W\)'):
        block(torch.randn(3, 4))


@pytest.mark.parametrize('value', [0, -1e-4, float('inf'), float('nan'), '1e-4', True, None])
def test_refused_lambda(value):
    with pytest.raises(ValueError, match='SimAM: e_lambda=.*, allowed finite numbers above 0'):
        SimAM(8, e_lambda=value)


def test_it_can_stand_in_a_network_without_a_parameter():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), SimAM(4, e_lambda=0.1))
    x = torch.randn(2, 3, 6, 7)
    steps = [torch.compile(model, fullgraph=True, backend='aot_eager')(x), model(x)]
    torch.testing.assert_close(*steps)
