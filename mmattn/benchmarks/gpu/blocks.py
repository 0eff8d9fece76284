"""Every block on the device against itself in fp64 on the CPU: values and gradients."""

import copy

import torch
from torch import Tensor, nn

from mmattn import blocks
from mmattn.blocks import AttentionBlock

from .bench import DTYPES, TOLERANCE, Bench, distance
from .contenders import FORMATS

_SIZE = (6, 7)  # H and W
_COMPILED = ('CrissCrossAttention', 'PAM', 'SE', 'CBAM', 'NonLocal2d')
# how much larger our error may be than that of the same block and dtype on a CPU; gradients get a
# looser bound, as rounding flips a few ReLUs near zero
_MAX_ERROR_RATIO = dict(out=4, input=10, weights=10)

Tensors = dict[str, Tensor]


def measure(bench: Bench) -> None:
    """One check for each block, example of its arguments, dtype and memory format."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    cases = [
        (name, number, cls.build(**arguments))
        for name, cls in vars(blocks).items()
        if _is_block(cls)
        for number, arguments in enumerate(cls.examples[: 1 if bench.small else None])
    ]
    for name, number, block in cases:
        _check(bench, f'{name} {number}', block)
    chosen = _COMPILED[2:3] if bench.small else _COMPILED
    for name, number, block in cases:
        if name in chosen and number == 0 and bench.has_time(15, f'{name} compiled'):
            _check(bench, f'{name} compiled', block, compiled=True)


def _is_block(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, AttentionBlock) and '_abbr_' in vars(value)


def _check(bench: Bench, name: str, block: AttentionBlock, compiled: bool = False) -> None:
    _draw_weights(block.train())
    inputs = [torch.randn(shape) for shape in block.input_shapes(2, *_SIZE)]
    grad = torch.randn_like(block(*inputs))
    for dtype in ('fp32',) if compiled else ('fp32', 'bf16'):
        exact = copy.deepcopy(block).to(DTYPES[dtype])
        x, g = [t.to(DTYPES[dtype]) for t in inputs], grad.to(DTYPES[dtype])
        wanted = _results(copy.deepcopy(exact).double(), [t.double() for t in x], g.double())
        on_cpu = _results(copy.deepcopy(exact), x, g)
        limits = {
            key: max(TOLERANCE[DTYPES[dtype]], _MAX_ERROR_RATIO[key] * distance(value, wanted[key]))
            for key, value in on_cpu.items()
        }
        for layout, form in list(FORMATS.items())[: 1 if compiled else None]:
            label = f'block {name} {dtype} {layout}'
            with bench.attempt(label):
                there = copy.deepcopy(exact).to(bench.device).to(memory_format=form)
                moved = [t.to(bench.device).contiguous(memory_format=form) for t in x]
                found = _results(_compile(bench, there) if compiled else there, moved, g, there)
                bench.check(label, found, wanted, limits)


def _compile(bench: Bench, block: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(block, backend='eager' if bench.small else 'inductor')


def _results(
    run: nn.Module, inputs: list[Tensor], grad: Tensor, block: nn.Module | None = None
) -> Tensors:
    """Output, and gradients of the inputs and of all weights, each as one vector."""
    x = [t.detach().requires_grad_() for t in inputs]
    weights = list((block or run).parameters())
    out = run(*x)
    found = torch.autograd.grad(out, [*x, *weights], grad.to(out.device), allow_unused=True)
    grads = [
        torch.zeros_like(t) if g is None else g for g, t in zip(found, [*x, *weights], strict=True)
    ]
    results = dict(out=out.detach(), input=_joined(grads[: len(x)]))
    return results | (dict(weights=_joined(grads[len(x) :])) if weights else {})


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _draw_weights(block: nn.Module) -> None:
    """All weights at random, scaled so that layers keep the size of values."""
    with torch.no_grad():
        for value in block.parameters():
            value.normal_()
            if value.dim() > 1 and value[0].numel() > 1:
                value.div_(value[0].numel() ** 0.5)
