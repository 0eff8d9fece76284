import pytest
import torch

from mmattn.ops import energy, simam, simam_gate


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('rho', [None, 0.3])
@pytest.mark.parametrize('values', [1, 1 << 20])
def test_values_and_gradients_are_those_of_the_gate(values, rho, layout, monkeypatch):
    monkeypatch.setattr(energy, '_PART', values)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    factor = torch.tensor(1.0 if rho is None else rho, dtype=torch.float64, requires_grad=True)
    found = simam(x, 0.1, None if rho is None else factor)
    wanted = x + factor * (x * simam_gate(x, 0.1) - x)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, wanted)
    inputs = [x] if rho is None else [x, factor]
    weight = torch.randn_like(wanted)
    for a, b in zip(*(torch.autograd.grad(y, inputs, weight) for y in (found, wanted))):
        torch.testing.assert_close(a, b)


def test_the_gate_by_hand():
    gate = simam_gate(torch.tensor([[[[1.0, 2.0, 3.0, 6.0]]]]), 1)  # mean 3, variance 14 / 3
    wanted = torch.tensor([4.0, 1.0, 0.0, 9.0]) / (4 * (14 / 3 + 1)) + 0.5
    torch.testing.assert_close(gate, wanted.sigmoid()[None, None, None])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_half_map_is_gated_in_fp32(dtype):
    x = (1000 * torch.randn(2, 3, 7, 8)).to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype):
        found = simam(x, 1e-4)
        found.float().mean().backward()
    assert found.dtype == dtype and x.grad.isfinite().all()
    assert torch.equal(found, simam(x.detach().float(), 1e-4).to(dtype))
