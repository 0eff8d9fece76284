"""Machine code of the criss-cross kernels, compiled for GPUs that are not there."""

import pytest
import torch

from mmattn.ops import criss_cross_triton
from tests.ops.triton_inspect import SHARED_LIMIT, can_compile_kernels, compile_only

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_compile_kernels(), reason="needs Triton and NVIDIA's assembler in its wheel"
    ),
]


def step(dtype, height=97, width=97, needed=(True, True, True)):
    """Forward and backward at the width of CCNet; on meta tensors, so only compiled."""
    q, v = (torch.empty(2, height, width, c, dtype=dtype, device='meta') for c in (64, 512))
    out, lse = criss_cross_triton._forward(q, q, v)
    criss_cross_triton._backward(out, q, q, v, out, lse, list(needed))


def assert_fits(launches, capability):
    for launch in launches:
        assert not launch.spills, launch
        assert launch.shared <= SHARED_LIMIT[capability], launch


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_no_spills_and_matrix_instructions(dtype):
    with compile_only(90) as launches:
        step(dtype)
        keys = {launch.key for launch in launches}
        step(dtype, 96, 112)  # multiples of 16, for which Triton specialises on its own
        step(dtype, 33, 50)
    assert len(launches) == 27 and len(keys) == 9
    assert {launch.key for launch in launches} == keys, 'a size was compiled for'
    assert_fits(launches, 90)
    assert_fits(launches, 86)  # the least shared memory
    for launch in launches:
        assert (launch.matrix > 0) == (launch.name != 'delta'), launch
        if launch.name in ('pair_grad', 'value_grad'):
            assert launch.fma < 50, launch  # products are not on the other units
    owned = {launch.constants['SLICE'] for launch in launches if launch.name == 'attend'}
    assert owned == {256 if dtype == torch.bfloat16 else 128}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_forward_on_the_oldest_capability(dtype):
    with compile_only(80) as launches:
        step(dtype, needed=(False, False, False))
    assert len(launches) == 2 and all(launch.matrix for launch in launches)
    assert_fits(launches, 80)


def test_precision_of_fp32_can_be_chosen(monkeypatch):
    monkeypatch.setattr(criss_cross_triton, 'FP32_PRECISION', 'ieee')
    with compile_only(90) as launches:
        step(torch.float32, needed=(False, False, False))
    assert all(launch.fma > 1000 and not launch.matrix for launch in launches)
    assert_fits(launches, 90)
