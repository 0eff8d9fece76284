"""The length of a run, and whether data loader and learning rate schedule agree with it."""

import contextlib
import inspect
import warnings

from mmengine.config import Config
from mmengine.optim import LinearParamScheduler

from mmattn.errors import UsageError
from mmattn.log import warn

# Keys of a scheduler's state that are progress, not configuration.
_PROGRESS = ('last_step', '_global_step', '_last_value', 'base_values', 'verbose')
_COUNTS = ('max_iters', 'max_epochs', 'val_interval')


def batch_size_of(dataloader: dict) -> int:
    """The batch size in the config of a data loader, or of its batch sampler.

    Raises:
        UsageError: neither has one.
    """
    for part in dataloader, dataloader.get('batch_sampler') or {}:
        if part.get('batch_size'):
            return part['batch_size']
    raise UsageError('config key train_dataloader.batch_size is missing. Set it.')


def check_lengths(cfg: Config) -> None:
    """Refuse a training without steps, and a validation interval below 1.

    Raises:
        UsageError: names the key and its value.
    """
    for name in _COUNTS:
        value = cfg.train_cfg.get(name)
        if value is not None and (not isinstance(value, int | float) or value < 1):
            raise UsageError(f'config key train_cfg.{name}={value}: allowed are 1 and more.')


def check_batches(runner) -> None:
    """Refuse a training loader whose epoch has no batch.

    Raises:
        UsageError: with the number of images and the batch size.
    """
    loader = runner.train_dataloader
    with contextlib.suppress(TypeError):  # a loader without a length
        if len(loader):
            return
        images = len(loader.dataset) // runner.world_size
        size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
        if not images:
            raise UsageError(
                f'train_dataloader gives no batch: its data set holds {len(loader.dataset)} images '
                f'for {runner.world_size} processes. Look at it with tools/check_data.py.'
            )
        raise UsageError(
            f'train_dataloader gives no batch: {images} images make none of batch_size={size} with '
            f'drop_last=True. Set train_dataloader.batch_size={images} or less, or drop_last=False.'
        )


def states_of(schedulers: list) -> list[dict]:
    """State dicts of schedulers without functions, which the config restores."""
    return [
        {k: v for k, v in scheduler.state_dict().items() if not inspect.isroutine(v)}
        for scheduler in schedulers
    ]


def plan_of(schedulers: list) -> list[dict]:
    """Configuration of schedulers: their state without progress."""
    return [
        {k: v for k, v in state.items() if k not in _PROGRESS} for state in states_of(schedulers)
    ]


def follow_plan(runner, plan: list[dict]) -> None:
    """Make a resumed run follow the schedule of its config, if the checkpoint has another.

    Each step of a schedule depends on the one before, so it is replayed up to the current step.

    Args:
        runner: the runner, after resuming.
        plan: `plan_of` its schedulers before the checkpoint was loaded.
    """
    schedulers = runner.param_schedulers
    if plan == plan_of(schedulers) or any(hasattr(s, 'monitor') for s in schedulers):
        return
    wrapper, loop = runner.optim_wrapper, runner.train_loop
    for group in wrapper.param_groups:
        for scheduler in schedulers:
            group[scheduler.param_name] = group[f'initial_{scheduler.param_name}']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of schedulers that step before the optimizer
        schedulers = runner.build_param_scheduler(runner.cfg.param_scheduler)
        epoch_length = len(runner.train_dataloader) if loop.max_epochs > 1 else loop.max_iters
        for step in range(1, loop.iter + 1):
            for scheduler in schedulers:
                if not scheduler.by_epoch or step % epoch_length == 0:
                    scheduler.step()
    runner.param_schedulers = schedulers
    warn('param_scheduler is not that of the checkpoint: the learning rate follows the config')


def check_schedule(runner) -> None:
    """Warn if the learning rate reaches its end before the run does, or never."""
    total, length = runner.train_loop.max_iters, len(runner.train_dataloader)
    falling = []
    for scheduler in runner.param_schedulers if isinstance(runner.param_schedulers, list) else ():
        if getattr(scheduler, 'param_name', '') == 'lr' and _falls(scheduler):
            scale = length if scheduler.by_epoch else 1
            falling.append((scheduler.end * scale, scheduler.begin * scale, scheduler))
    if not falling:
        return
    end, begin, last = max(falling, key=lambda item: item[0])
    name = type(last).__name__
    unit = 'epochs' if last.by_epoch else 'steps'
    wanted = f'{total // length if last.by_epoch else total}'
    if end < total:
        warn(
            f'the learning rate ends at step {end} of {total}: from there on it stays '
            f'{_last_rate(last)}. Set the end of param_scheduler ({name}) to {wanted} {unit}, too.'
        )
    elif begin >= total:
        warn(
            f'the learning rate is still in warm-up when the run ends at step {total}: '
            f'param_scheduler ({name}) begins at step {begin}. End the warm-up earlier, and set '
            f'the end of {name} to {wanted} {unit}.'
        )
    elif end > total:
        warn(
            f'the learning rate does not come down: the run ends at step {total}, param_scheduler '
            f'({name}) at step {end}. Set its end to {wanted} {unit}, too.'
        )


def _falls(scheduler) -> bool:
    """Whether a scheduler lowers the rate to a value that it keeps after its end."""
    if isinstance(scheduler, LinearParamScheduler):
        return scheduler.end_factor < scheduler.start_factor
    return hasattr(scheduler, 'eta_min') and scheduler.end < 10**9


def _last_rate(scheduler) -> str:
    if isinstance(scheduler, LinearParamScheduler):
        return f'at {scheduler.end_factor:g} of its start'
    ratio = getattr(scheduler, 'eta_min_ratio', None)
    return f'at {ratio:g} of its start' if ratio is not None else f'{scheduler.eta_min:g}'
