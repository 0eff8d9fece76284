"""Non-finite losses and gradients: detected before the optimizer step and traced to a cause."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import torch
from mmengine.dist import get_dist_info
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn

from mmattn.checkpoint.plain_values import iter_tensors
from mmattn.errors import NonFiniteError

from .model_wrappers import unwrap_ddp
from .resume.rng import set_rng_state

_SHOWN = 5  # samples named in an error


def detect_nonfinite(wrapper: OptimWrapper, on_nonfinite: Callable[[str, float], None]) -> None:
    """Make an optimizer wrapper check loss and gradients before it changes a weight.

    With a gradient scaler only the loss is checked: the scaler itself skips a step whose gradient
    is not finite.

    Args:
        wrapper: optimizer wrapper, changed in place.
        on_nonfinite: called with 'loss' or 'gradient norm' and the value if that is not finite.
    """
    backward, step = wrapper.backward, wrapper.step

    def checked_backward(self: OptimWrapper, loss: Tensor, **kwargs) -> None:
        backward(loss, **kwargs)
        value = loss.item()  # after the backward pass is queued, so that a GPU does not idle
        if not math.isfinite(value):
            on_nonfinite('loss', value)

    def checked_step(self: OptimWrapper, **kwargs) -> None:
        if not isinstance(wrapper, AmpOptimWrapper):
            norm = _nonfinite_norm(wrapper)
            if not math.isfinite(norm):
                on_nonfinite('gradient norm', norm)
        step(**kwargs)

    wrapper.backward = MethodType(checked_backward, wrapper)
    wrapper.step = MethodType(checked_step, wrapper)  # mmengine's schedulers expect a method


def _nonfinite_norm(wrapper: OptimWrapper) -> float:
    """Largest absolute gradient if a sum of gradients is not finite; else 0, as sums are fast."""
    groups = wrapper.optimizer.param_groups
    gradients = [p.grad for group in groups for p in group['params'] if p.grad is not None]
    if not gradients:
        return 0.0
    sums = torch.stack([g.sum().float().to(gradients[0].device) for g in gradients])
    if sums.isfinite().all():
        return 0.0
    norms = torch._foreach_norm(gradients, math.inf)
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]).max().item()


def raise_nonfinite(runner, quantity: str, value: float) -> None:
    """Raise an error that names losses, module, parameters and samples; write `nonfinite.json`.

    Args:
        runner: the runner of the training.
        quantity: 'loss' or 'gradient norm'.
        value: its value, nan or inf.

    Raises:
        NonFiniteError: always.
    """
    guard = runner.guard
    model = unwrap_ddp(runner.model)
    step = runner.iter + 1
    names = sample_names(guard.batch)
    record = dict(what=quantity, value=str(value), iteration=step, samples=names)
    if not _has_sync_bn(model):
        record.update(_replay_step(model, guard.batch, guard.rng_state, quantity))
    losses = ', '.join(f'{k}={v:.4g}' for k, v in record.get('losses', {}).items())
    text = f'{quantity} is {value} at iteration {step}' + (f': {losses}' if losses else '')
    if record.get('module') is not None:
        text += f'; first non-finite output: {record["module"] or "the network itself"}'
    if record.get('parameters'):
        text += f'; first in {record["parameters"][0]}'
    text += f'; samples {", ".join(names[:_SHOWN])}' if names else ''
    path = Path(runner.work_dir) / 'nonfinite.json'
    if runner.rank == 0:
        path.write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
    raise NonFiniteError(
        f'{text}. No weight was changed. Look at these samples, lower the learning rate or clip '
        f'gradients; details are in {path}.'
    )


def sample_names(batch) -> list[str]:
    """Ids of the samples of a batch, or their file names if they have no id."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    names = []
    for sample in samples or []:
        name = sample.get('img_id', None)
        path = sample.get('img_path', None)
        names.append(str(name if name is not None else Path(path).name if path else '?'))
    return names


def _has_sync_bn(model: nn.Module) -> bool:
    """Whether a forward pass waits for other processes, which may not make one."""
    distributed = get_dist_info()[1] > 1
    return distributed and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def _replay_step(model: nn.Module, batch, rng_state: Tensor, quantity: str) -> dict:
    """Run the step again with the same randomness, checking the output of every module.

    Returns:
        `losses`, and `module` (first with a non-finite output, if any) or `parameters` (those with
        a non-finite gradient, in the order of the backward pass).
    """
    nonfinite: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def check_output(module: nn.Module, _, output) -> None:
        if not nonfinite and any(
            value.is_floating_point() and not value.isfinite().all()
            for _, value in iter_tensors(output)
        ):
            nonfinite.append(names[module])

    handles = [module.register_forward_hook(check_output) for module in names]
    set_rng_state(rng_state)
    try:
        data = model.data_preprocessor(batch, True)
        losses = model._run_forward(data, mode='loss')
        total, parts = model.parse_losses(losses)
        if quantity != 'loss':
            model.zero_grad()
            total.backward()
    finally:
        for handle in handles:
            handle.remove()
    record = dict(losses={k: float(v) for k, v in parts.items()})
    if quantity == 'loss':
        if nonfinite:
            record['module'] = nonfinite[0]
        return record
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    parameters = [k for k, gradient in gradients.items() if not gradient.isfinite().all()]
    return dict(record, parameters=parameters[::-1])  # a backward pass reaches the last ones first
