"""Losses and gradients that are not finite: found before the optimizer step, with their cause."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import torch
from mmengine.dist import get_dist_info
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from mmattn.checkpoint.plain_values import tensors
from mmattn.errors import NonFiniteError

from .resume.rng import set_rng_state

_SHOWN = 5


# ---- numbers -----------------------------------------------------------------------------------
def detect_nonfinite(wrapper: OptimWrapper, found: Callable[[str, float], None]) -> None:
    """Have an optimizer wrapper look at loss and gradients before it changes a weight.

    Under a gradient scaler a gradient that is not finite skips the step: that is its work.

    Args:
        wrapper: changed.
        found: called with 'loss' or 'gradient norm' and its value, if that is not finite.
    """
    backward, step = wrapper.backward, wrapper.step

    def watched_backward(self: OptimWrapper, loss: Tensor, **kwargs) -> None:
        backward(loss, **kwargs)
        value = loss.item()  # behind the backward pass, so that a GPU does not wait between
        if not math.isfinite(value):
            found('loss', value)

    def watched_step(self: OptimWrapper, **kwargs) -> None:
        if not isinstance(wrapper, AmpOptimWrapper):
            norm = _norm(wrapper)
            if not math.isfinite(norm):
                found('gradient norm', norm)
        step(**kwargs)

    wrapper.backward = MethodType(watched_backward, wrapper)
    wrapper.step = MethodType(watched_step, wrapper)  # a method, as mmengine's schedulers want it


def _norm(wrapper: OptimWrapper) -> float:
    """The largest gradient where a sum of gradients is not finite; else 0: sums are fast."""
    groups = wrapper.optimizer.param_groups
    gradients = [p.grad for group in groups for p in group['params'] if p.grad is not None]
    if not gradients:
        return 0.0
    sums = torch.stack([g.sum().float().to(gradients[0].device) for g in gradients])
    if sums.isfinite().all():
        return 0.0
    norms = torch._foreach_norm(gradients, math.inf)
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]).max().item()


def raise_nonfinite(runner, what: str, value: float) -> None:
    """Raise what a loss or gradient that is not finite means: which loss, module and samples."""
    hook = runner.guard
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    step = runner.iter + 1
    facts = dict(what=what, value=str(value), iteration=step, samples=samples(hook.batch))
    if not _synchronises(model):
        facts.update(_again(model, hook.batch, hook.randomness, what))
    losses = ', '.join(f'{k}={v:.4g}' for k, v in facts.get('losses', {}).items())
    text = f'{what} is {value} at iteration {step}' + (f': {losses}' if losses else '')
    if facts.get('module') is not None:
        text += f'; first non-finite output: {facts["module"] or "the network itself"}'
    if facts.get('parameters'):
        text += f'; first in {facts["parameters"][0]}'
    shown = facts['samples'][:_SHOWN]
    text += f'; samples {", ".join(shown)}' if shown else ''
    path = Path(runner.work_dir) / 'nonfinite.json'
    if runner.rank == 0:
        path.write_text(json.dumps(facts, indent=1) + '\n', encoding='utf-8')
    raise NonFiniteError(
        f'{text}. No weight was changed. Look at these samples, lower the learning rate or clip '
        f'gradients; details are in {path}.'
    )


def samples(batch) -> list[str]:
    """What the samples of a batch are called: ids, or else file names."""
    found = batch.get('data_samples') if isinstance(batch, dict) else None
    names = []
    for sample in found or []:
        name = sample.get('img_id', None)
        path = sample.get('img_path', None)
        names.append(str(name if name is not None else Path(path).name if path else '?'))
    return names


def _synchronises(model: nn.Module) -> bool:
    """Whether a forward pass waits for other processes, which may not come."""
    many = get_dist_info()[1] > 1
    return many and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def _again(model: nn.Module, batch, randomness: Tensor, what: str) -> dict:
    """Run the step again with the same randomness, watching every module."""
    first: list[str] = []
    paths = {module: path for path, module in model.named_modules()}

    def look(module: nn.Module, _, output) -> None:
        if not first and any(
            value.is_floating_point() and not value.isfinite().all() for _, value in tensors(output)
        ):
            first.append(paths[module])

    handles = [module.register_forward_hook(look) for module in paths]
    set_rng_state(randomness)
    try:
        data = model.data_preprocessor(batch, True)
        losses = model._run_forward(data, mode='loss')
        total, parts = model.parse_losses(losses)
        if what != 'loss':
            model.zero_grad()
            total.backward()
    finally:
        for handle in handles:
            handle.remove()
    found = dict(losses={k: float(v) for k, v in parts.items()})
    if what == 'loss':
        if first:
            found['module'] = first[0]
        return found
    bad = [k for k, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return dict(found, parameters=bad[::-1])  # a backward pass meets the last ones first


def _finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())
