"""Non-finite losses and gradients: detected before they change a weight, and traced to a cause."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import torch
from mmengine.dist import get_dist_info
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmattn.checkpoint.plain_values import iter_tensors
from mmattn.errors import NonFiniteError
from mmattn.torch_compat import check_finite_

from .history import log_number
from .late_values import LateValues, is_late
from .model_wrappers import unwrap_ddp
from .optimizer import gradient_scaler
from .resume.rng import get_rng_state, set_rng_state

_SHOWN = 5  # samples named in an error


class NonFiniteDetector:
    """Makes an optimizer wrapper check loss and gradients of every step before it changes a weight.

    With a gradient scaler only the loss is checked: the scaler itself skips a step whose gradient
    is not finite.

    On a GPU with a fused optimizer nothing waits for the check: the device skips the step that is
    not finite and all that follow, and the host learns of it in the next step (`poll`), or before
    anything is saved or validated (`flush`).

    Args:
        wrapper: optimizer wrapper, changed in place.
        on_nonfinite: called with 'loss' or 'gradient norm', the value if that is not finite, None
            where it is not known, and the iteration.

    Attributes:
        iteration: the current step, from 1; set before each step.
    """

    def __init__(
        self, wrapper: OptimWrapper, on_nonfinite: Callable[[str, float | None, int], None]
    ) -> None:
        self.wrapper, self.on_nonfinite, self.iteration = wrapper, on_nonfinite, 1
        self._backward, self._step = wrapper.backward, wrapper.step
        self._late = LateValues()
        self._state: Tensor | None = None  # (2): the loss that is not finite, or 0; 1 if anything
        # methods made of functions, as schedulers expect
        wrapper.backward = MethodType(
            lambda _, loss, **kwargs: self._checked_backward(loss, **kwargs), wrapper
        )
        wrapper.step = MethodType(lambda _, **kwargs: self._checked_step(**kwargs), wrapper)
        if type(wrapper)._clip_grad is OptimWrapper._clip_grad:
            wrapper._clip_grad = MethodType(_clip_grad, wrapper)

    def poll(self) -> None:
        """Read the result of the step before, once this step is queued."""
        if self._state is not None:
            self._report(self._late.exchange(self.iteration, self._state))

    def flush(self) -> None:
        """Read all results; waits for the device."""
        self._report(self._late.take())
        if self._state is not None:
            self._report((self.iteration, self._state.tolist()))

    def _report(self, result: tuple[int, list[float]] | None) -> None:
        iteration, (loss, found) = result or (0, (0.0, 0.0))
        if not math.isfinite(loss):
            self.on_nonfinite('loss', loss, iteration)
        if found:
            self.on_nonfinite('gradient norm', None, iteration)

    def _checked_backward(self, loss: Tensor, **kwargs) -> None:
        self._backward(loss, **kwargs)
        if not self._reads_late(loss.device):
            value = loss.item()  # after the backward pass is queued, so that a GPU does not idle
            if not math.isfinite(value):
                self.on_nonfinite('loss', value, self.iteration)
            return
        loss = loss.detach().float().reshape(())
        if self._state is None:
            self._state = loss.new_zeros(2)
        is_bad = ~loss.isfinite()
        self._state[0] = torch.where(is_bad, loss, self._state[0])
        self._state[1] = torch.maximum(is_bad.float(), self._state[1])

    def _checked_step(self, **kwargs) -> None:
        optimizer = self.wrapper.optimizer
        groups = optimizer.param_groups
        gradients = [p.grad for group in groups for p in group['params'] if p.grad is not None]
        scaled = gradient_scaler(self.wrapper) is not None
        if self._state is None:
            norm = 0.0 if scaled else _nonfinite_norm(gradients)
            if not math.isfinite(norm):
                self.on_nonfinite('gradient norm', norm, self.iteration)
        elif scaled:
            # the scaler looks at the gradients alone: one that is nan lets it skip the step
            gradients[0].add_(torch.where(self._state[1] > 0, math.nan, 0.0))
        else:
            found = self._state[1]
            check_finite_(gradients, found)
            optimizer.found_inf, optimizer.grad_scale = found, None
        self._step(**kwargs)

    def _reads_late(self, device: torch.device) -> bool:
        if not is_late(device):
            return False
        groups = self.wrapper.optimizer.param_groups
        return all(g.get('fused') and all(p.device == device for p in g['params']) for g in groups)


def _clip_grad(wrapper: OptimWrapper) -> None:
    """`OptimWrapper._clip_grad`, which logs the norm without waiting for it."""
    groups = wrapper.optimizer.param_groups
    parameters = [p for group in groups for p in group['params'] if p.grad is not None]
    norm = wrapper.clip_func(parameters, **wrapper.clip_grad_kwargs) if parameters else None
    if norm is not None:
        log_number(wrapper.message_hub, f'train/{wrapper.grad_name}', norm)


def _nonfinite_norm(gradients: list[Tensor]) -> float:
    """Largest absolute gradient if one is not finite, else 0."""
    if not gradients:
        return 0.0
    found = gradients[0].new_zeros(1, dtype=torch.float32)
    check_finite_(gradients, found)
    if not found.item():
        return 0.0
    norms = torch._foreach_norm(gradients, math.inf)
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]).max().item()


def raise_nonfinite(runner, quantity: str, value: float | None, step: int) -> None:
    """Raise an error that names losses, module, parameters and samples; write `nonfinite.json`.

    Args:
        runner: the runner of the training.
        quantity: 'loss' or 'gradient norm'.
        value: its value, nan or inf; None where it is not known.
        step: the iteration, from 1: the current one or the one before.

    Raises:
        NonFiniteError: always.
    """
    model = unwrap_ddp(runner.model)
    batch, rng_state = runner.guard.step(step)
    names = sample_names(batch)
    shown = 'not finite' if value is None else value
    record = dict(what=quantity, value=str(shown), iteration=step, samples=names)
    if not _has_sync_bn(model):
        record.update(_replay_step(model, batch, get_rng_state(rng_state), quantity))
    losses = ', '.join(f'{k}={v:.4g}' for k, v in record.get('losses', {}).items())
    text = f'{quantity} is {shown} at iteration {step}' + (f': {losses}' if losses else '')
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
