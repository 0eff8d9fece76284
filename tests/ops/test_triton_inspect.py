"""The helper that compiles kernels sees what it is meant to see."""

import pytest
import torch

from tests.ops.triton_inspect import SHARED_LIMIT, can_compile_kernels, compile_only

if not can_compile_kernels():
    pytest.skip("needs Triton and NVIDIA's assembler in its wheel", allow_module_level=True)

import triton
import triton.language as tl


@triton.jit
def _square(x, out, size, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    rows = tl.arange(0, SIZE)
    places = rows[:, None] * size + rows[None, :]
    values = tl.load(x + places)
    tl.store(out + places, tl.dot(values, values, input_precision=PRECISION))


def square(size=32, *, width=None, dtype=torch.float32, precision='tf32', **options):
    x = torch.empty(size, size, dtype=dtype, device='meta')
    _square[(1,)](x, x, width or size, size, precision, **options)


@pytest.mark.parametrize('capability', [80, 90])
def test_matrix_instructions_are_counted(capability):
    with compile_only(capability) as launches:
        square(precision='tf32')
        square(precision='ieee')
        square(dtype=torch.bfloat16)
    tensor_cores, plain, half = launches
    assert tensor_cores.matrix and not tensor_cores.fma
    assert plain.fma >= 32**3 / 128 and not plain.matrix  # one per product and thread
    assert half.matrix and not half.fma
    for launch in launches:
        assert not launch.spills
        assert 0 < launch.registers <= 255
        assert 0 < launch.shared <= SHARED_LIMIT[capability]


def test_spilled_registers_are_seen():
    with compile_only() as launches:
        square(precision='ieee', num_warps=1, maxnreg=32)
    assert launches[0].spills and launches[0].stack and launches[0].local


def test_launches_that_share_a_compilation_have_one_key():
    with compile_only() as launches:
        for width in 32, 64, 33:  # Triton specialises for multiples of 16
            square(width=width)
    assert [launch.key == launches[0].key for launch in launches] == [True, True, False]
    assert launches[0].name == '_square'
    assert launches[0].constants == {'SIZE': 32, 'PRECISION': 'tf32'}


def test_the_context_leaves_triton_as_it_was():
    from triton.runtime import driver

    before = triton.JITFunction.run, driver._active, triton.knobs.cache.dir
    with pytest.raises(KeyError), compile_only():
        raise KeyError
    assert (triton.JITFunction.run, driver._active, triton.knobs.cache.dir) == before
