"""Forms of our operations: by the precision of fp32 products, and without kernels in Triton."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch

from mmattn.ops import attention_triton, criss_cross_triton

Context = Callable[[], contextlib.AbstractContextManager]


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """As where there is no Triton: criss-cross by products, attention by torch's kernels."""
    with contextlib.ExitStack() as stack:
        for module in attention_triton, criss_cross_triton:
            stack.enter_context(mock.patch.object(module, 'fused_available', lambda *_: False))
        yield


@contextlib.contextmanager
def with_tf32() -> Iterator[None]:
    """Products of fp32 matrices as products of TF32, which torch leaves off."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def precisions(dtype: str) -> dict[str, Context]:
    """Suffix of a name -> context of the kernels, for each way to multiply the dtype."""
    if dtype != 'fp32':
        return {'': contextlib.nullcontext}
    patch = partial(mock.patch.object, criss_cross_triton, 'FP32_PRECISION')
    return {f' {name}': partial(patch, name) for name in ('tf32x3', 'ieee')}
