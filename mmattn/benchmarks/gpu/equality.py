"""Criss-cross and softmax attention on the device against the plain formula in fp64 on the CPU."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmattn.ops import attention_triton, criss_cross, softmax_attention
from mmattn.ops.criss_cross_triton import criss_cross_fused, fused_available

from . import variants
from .bench import DTYPES, TOLERANCE, Bench
from .restated import criss_cross_core, softmax_core

Core = Callable[..., Tensor]
Tensors = dict[str, Tensor]
_NAMES = ('q', 'k', 'v')

_FULL = dict(
    shapes=[(2, 97, 97), (1, 128, 256), (1, 1, 7), (1, 65, 33)],
    widths=(64, 512),
    positions=33 * 65,
    pairwise_widths=((64, 512), (256, 256)),
    large=97 * 97,
    few=32,
)
_SMALL = dict(
    shapes=[(1, 3, 4), (1, 1, 2)],
    widths=(3, 5),
    positions=35,
    pairwise_widths=((3, 5), (4, 4)),
    large=99,
    few=4,
)


def criss_cross_equality(bench: Bench) -> None:
    """Values and gradients in three dtypes, by kernels and by products; mixed dtypes; twice."""
    _use_exact_products()
    sizes = _SMALL if bench.small else _FULL
    shapes, (e, c) = sizes['shapes'], sizes['widths']
    if not fused_available(torch.zeros(1, device=bench.device)):
        bench.row('note', text=f'no Triton kernel of criss-cross attention runs on {bench.device}')
    for shape in shapes:
        for dtype in DTYPES:
            inputs = _draw(DTYPES[dtype], (shape[0], e, *shape[1:]), (shape[0], c, *shape[1:]))
            wanted = _results(criss_cross_core, *(t.double() for t in inputs))
            inputs = [t.to(bench.device) for t in inputs]
            plain = _results(criss_cross_core, *inputs)
            for form, core, context in _forms(bench, dtype):
                name = f'criss-cross {dtype} {"x".join(map(str, shape))} {form}'
                with bench.attempt(name):
                    with context():
                        found = _results(core, *inputs)
                    bench.check(name, found, wanted, TOLERANCE[DTYPES[dtype]], plain)
    _mixed(bench, (1, *shapes[0][1:]), e, c)
    for dtype in DTYPES:
        n, height, width = shapes[0]
        inputs = _draw(DTYPES[dtype], (n, e, height, width), (n, c, height, width))
        inputs = [t.to(bench.device) for t in inputs]
        name = f'criss-cross {dtype} twice the same bits'
        with bench.attempt(name):
            first, second = (_results(criss_cross, *inputs) for _ in range(2))
            bench.check(name, first, second, 0)


def attention_equality(bench: Bench) -> None:
    """`softmax_attention`: values and gradients for all queries, and for some of a large map."""
    _use_exact_products()
    sizes = _SMALL if bench.small else _FULL
    positions, large, few = sizes['positions'], sizes['large'], sizes['few']
    for e, c in sizes['pairwise_widths']:
        for dtype in DTYPES:
            limit, label = TOLERANCE[DTYPES[dtype]], f'softmax attention {dtype} {e}/{c}'
            inputs = _draw(DTYPES[dtype], (2, e, positions), (2, c, positions))
            wanted = _results(softmax_core, *(t.double() for t in inputs))
            inputs = [t.to(bench.device) for t in inputs]
            plain = _results(softmax_core, *inputs)
            forms = [('without kernels', softmax_attention, variants.without_kernels)]
            if attention_triton.fused_available(*(t.mT for t in inputs[:3])):
                forms.append(('kernels', _fused_attention, contextlib.nullcontext))
            for form, core, context in forms:
                name = f'{label} {positions} positions {form}'
                with bench.attempt(name):
                    with context():
                        found = _results(core, *inputs)
                    bench.check(name, found, wanted, limit, plain)
            name = f'{label} {few} of {large} positions'
            with bench.attempt(name):
                _some_queries(bench, name, DTYPES[dtype], (e, c, large, few))
    e, c = sizes['pairwise_widths'][0]
    even = positions + positions % 2  # torch's product of bf16 on a CPU spreads NaN where it is odd
    for dtype in DTYPES:
        drawn = _draw(DTYPES[dtype], (1, e, even), (1, c, even))
        q, k, v = (t.to(bench.device) for t in drawn[:3])
        q[:, :, 3] = float('nan')
        name = f'softmax attention {dtype} keeps a NaN'
        with bench.attempt(name):
            found = softmax_attention(q, k, v).isnan().all(1).float()
            wanted = torch.zeros_like(found)
            wanted[:, 3] = 1
            bench.check(name, dict(out=found), dict(out=wanted), 0)


def _use_exact_products() -> None:
    """No TF32 in this part; the worker sets it back."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _draw(dtype: torch.dtype, pairs: tuple[int, ...], values: tuple[int, ...]) -> list[Tensor]:
    """q, k, v and the gradient of the result, on the CPU; logits have a deviation of 2."""
    q, k = 2**0.5 * torch.randn(2, *pairs) / pairs[1] ** 0.25
    v, grad = torch.randn(2, *values)
    return [t.to(dtype) for t in (q, k, v, grad)]


def _results(core: Core, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Tensors:
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    out = core(*inputs)
    grads = torch.autograd.grad(out, inputs, grad)
    return dict(out=out.detach()) | dict(zip(_NAMES, grads, strict=True))


def _forms(bench: Bench, dtype: str) -> list[tuple[str, Core, variants.Context]]:
    """Name, function and context of the forms that the device has."""
    kernels = fused_available(torch.zeros(1, device=bench.device, dtype=DTYPES[dtype]))
    forms: list[tuple[str, Core, Any]] = [('products', criss_cross, variants.without_kernels)]
    if kernels:
        for name, context in variants.precisions(dtype).items():
            forms.append((f'kernels{name}', _fused, context))
    return forms


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.permute(0, 2, 3, 1).contiguous() for t in (q, k, v))
    return criss_cross_fused(q, k, v).permute(0, 3, 1, 2)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_triton.softmax_attention_fused(*(t.mT.contiguous() for t in (q, k, v))).mT


def _mixed(bench: Bench, shape: tuple[int, int, int], e: int, c: int) -> None:
    """q and k in another dtype than v, as under autocast of a part of a network."""
    for pairs, values in ('fp32', 'bf16'), ('bf16', 'fp32'), ('fp32', 'fp16'):
        q, k, v, grad = _draw(torch.float32, (shape[0], e, *shape[1:]), (shape[0], c, *shape[1:]))
        q, k = (t.to(DTYPES[pairs]) for t in (q, k))
        v, grad = (t.to(DTYPES[values]) for t in (v, grad))
        wanted = _results(criss_cross_core, *(t.double() for t in (q, k, v, grad)))
        name = f'criss-cross q, k in {pairs}, v in {values}'
        limit = max(TOLERANCE[DTYPES[d]] for d in (pairs, values))
        with bench.attempt(name):
            found = _results(criss_cross, *(t.to(bench.device) for t in (q, k, v, grad)))
            bench.check(name, found, wanted, limit)


def _some_queries(
    bench: Bench, name: str, dtype: torch.dtype, sizes: tuple[int, int, int, int]
) -> None:
    """A map too large for fp64 on a CPU: the gradient of the result is 0 but for a few queries."""
    e, c, positions, few = sizes
    q, k, v, grad = _draw(dtype, (1, e, positions), (1, c, positions))
    between = 1 + torch.randperm(positions - 2)[: few - 2]
    chosen = torch.cat([torch.tensor([0, positions - 1]), between])
    sparse = torch.zeros_like(grad)
    sparse[..., chosen] = grad[..., chosen]
    some = (q[..., chosen].double(), k.double(), v.double(), sparse[..., chosen].double())
    wanted = _results(softmax_core, *some)
    inputs = [t.to(bench.device) for t in (q, k, v, sparse)]
    found = _results(softmax_attention, *inputs)
    for key in 'out', 'q':
        found[key] = found[key].cpu()[..., chosen]
    bench.check(name, found, wanted, TOLERANCE[dtype])
