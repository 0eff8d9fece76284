"""Criss-cross attention on a map of more than 2^31 numbers, where 32-bit offsets would overflow."""

import torch
from torch import Tensor

from mmattn.ops import criss_cross

from .bench import TOLERANCE, Bench

_FULL = (1, 2100, 2048, 64, 512)  # N, H, W, channels of queries, of values
_SMALL = (1, 5, 7, 3, 5)
_FREE = 60e9  # bytes on the device; values, result and their gradients take 18 GB


def measure(bench: Bench) -> None:
    """Values and gradients of single pixels, computed again in fp64 from their row and column."""
    n, height, width, e, c = _SMALL if bench.small else _FULL
    dtype = torch.bfloat16
    if not bench.small and torch.cuda.mem_get_info(bench.device)[0] < _FREE:
        bench.row('note', text=f'the large map was left out: it needs {_FREE / 1e9:.0f} GB')
        return
    scale = 2**0.5 / e**0.25
    q, k, v = (
        torch.randn(n, height, width, channels, device=bench.device, dtype=dtype)
        .mul_(factor)
        .permute(0, 3, 1, 2)
        .requires_grad_()
        for channels, factor in ((e, scale), (e, scale), (c, 1))
    )
    out = criss_cross(q, k, v)
    for i, j in (height - 1, width - 1), (0, 0), (height // 2, width // 3):
        grad = torch.zeros_like(v)  # of this pixel alone
        grad[0, :, i, j] = torch.randn(c, device=bench.device, dtype=dtype)
        grads = torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)
        wanted = _pixel(q, k, v, grad, i, j)
        found = dict(out=out[0, :, i, j], q=grads[0][0, :, i, j].clone())
        for name, values in zip(('k', 'v'), grads[1:], strict=True):
            found[f'{name} row'] = values[0, :, i].clone()
            found[f'{name} column'] = values[0, :, :, j].clone()
            values[0, :, i] = values[0, :, :, j] = 0
        grads[0][0, :, i, j] = 0
        found['elsewhere'] = torch.tensor(float(sum(t.count_nonzero() for t in grads)))
        wanted['elsewhere'] = torch.tensor(0.0)
        bench.check(
            f'criss-cross {height}x{width}x{c} at {i}, {j}', found, wanted, TOLERANCE[dtype]
        )
        del grads, grad


def _pixel(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, i: int, j: int) -> dict[str, Tensor]:
    """The result at a pixel of the first image and its gradients, in fp64 on the CPU."""

    def lines(x: Tensor) -> list[Tensor]:
        return [
            t.detach().double().cpu().requires_grad_() for t in (x[0, :, i], x[0, :, :, j])
        ]  # (channels, W), (channels, H)

    query = q[0, :, i, j].detach().double().cpu().requires_grad_()
    k_lines, v_lines = lines(k), lines(v)
    logits = [query @ line for line in k_lines]
    itself = torch.zeros_like(logits[1])
    itself[i] = float('inf')  # the row has the pixel itself
    weights = torch.cat([logits[0], logits[1] - itself]).softmax(0)
    out = torch.cat(v_lines, 1) @ weights
    inputs = [query, *k_lines, *v_lines]
    grads = torch.autograd.grad(out, inputs, grad[0, :, i, j].double().cpu())
    results = dict(zip(('q', 'k row', 'k column', 'v row', 'v column'), grads, strict=True))
    for name in 'k', 'v':  # each line of the map's gradient has the pixel itself
        results[f'{name} column'][:, i] = results[f'{name} row'][:, j]
    return dict(out=out.detach()) | results
