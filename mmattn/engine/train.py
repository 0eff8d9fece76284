"""Training a config."""

from collections.abc import Iterable
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.logging import print_log

from mmattn.checkpoint.find import check_empty_of_weights, find_checkpoint
from mmattn.checkpoint.fingerprint import check_same, course_of
from mmattn.checkpoint.read import read_checkpoint
from mmattn.config.load import load_config, parse_options
from mmattn.datasets.class_names import check_checkpoint_classes
from mmattn.datasets.validation import check_loaders
from mmattn.errors import CheckpointError, UsageError
from mmattn.files import check_writable
from mmattn.log import warn

from .build import (
    build_runner,
    class_counts,
    config_errors,
    connected,
    is_main,
    prepare_config,
    report_blocks,
    run_folder,
    run_loop,
    scale_lr,
    use_amp,
    world_size,
)
from .commands import train_command
from .distributed import Ranks
from .evaluators import folders_written, prepare_evaluation
from .out_of_memory import is_out_of_memory, memory_shortage
from .run_length import batch_size_of, check_batches, check_lengths
from .signals import SignalHandler, handle_signals


def train(
    config: str | Path,
    *,
    work_dir: str | Path | None = None,
    resume: str | None = None,
    init_from: str | None = None,
    attention: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    options: dict | list[str] | None = None,
    launcher: str = 'none',
    seed: int | None = None,
    validate: bool = True,
    allow_topology_change: bool = False,
    allow_config_change: bool = False,
    rehearsal: bool = True,
    skip_data_check: bool = False,
    hooks: Iterable[Hook] = (),
) -> Path:
    """Train a config.

    A run that is resumed gives bit for bit what it would have given without a stop, on as many
    processes and threads. SIGTERM, SIGUSR1 and Ctrl-C end it behind the step, with a checkpoint.

    Args:
        config: its path.
        work_dir: where logs and checkpoints go, default `work_dirs/<config name>`.
        resume: a checkpoint to go on from, 'latest' for the one in `work_dir`, 'auto' for the same
            or a fresh start if there is none.
        init_from: weights to start from, as far as they fit.
        attention: blocks to add, see `add_attention`; a resumed run has those it began with.
        amp: mixed precision, GPU only.
        auto_scale_lr: scale the learning rate by the batch size over the config's base batch size.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        seed: overrides the config's.
        validate: off skips validation during training.
        allow_topology_change: resume with another number of processes, inexactly.
        allow_config_change: resume with another config, inexactly.
        rehearsal: try a small step and the validation of an image first, see `rehearse`.
        skip_data_check: do not look at the files of the data first.
        hooks: beside those of the config.

    Returns:
        the work dir.

    Raises:
        MmattnError: of the kind that fits; what is wrong with config, data or checkpoint is
            raised before a file is written.
        Stopped: by a signal; a checkpoint is saved.
        Terminated: by a signal before the first step.
    """
    with handle_signals() as listener:
        allowed = dict(topology=allow_topology_change, config=allow_config_change)
        checkpoint = None if resume in ('latest', 'auto') else resume
        with connected(launcher, config, options, attention, checkpoint, work_dir) as ranks:
            if ranks:
                listener.check_others = ranks.raise_if_over
            return _train(
                config, work_dir, resume, init_from, attention, amp, auto_scale_lr, options,
                launcher, seed, validate, allowed, rehearsal, skip_data_check, hooks, listener,
                ranks,
            )  # fmt: skip


def _train(
    config, work_dir, resume, init_from, attention, amp, auto_scale_lr, options, launcher, seed,
    validate, allowed: dict, rehearsal: bool, skip_data_check: bool, hooks: Iterable[Hook],
    listener: SignalHandler, ranks: Ranks | None,
) -> Path:  # fmt: skip
    options = parse_options(options)
    if resume and init_from:
        raise UsageError('--resume and --init-from exclude each other: the first has all weights.')
    found = None
    if resume:
        folder = run_folder(config, load_config(config, options, attention), work_dir)
        found = find_checkpoint(folder) if resume in ('latest', 'auto') else Path(resume)
        if found is None and resume == 'latest':
            raise CheckpointError(
                f'nothing to resume in {folder}: no valid checkpoint. Use --resume auto to start '
                'fresh.'
            )
        if found is None:
            check_empty_of_weights(folder)
            print_log(f'no checkpoint in {folder}, starting at 0')
    cfg = prepare_config(config, options, launcher, work_dir, attention, found)
    if cfg.get('resume') and not resume and not init_from:  # as a config of the packages may say
        return _train(
            config, work_dir, cfg.get('load_from') or 'auto', init_from, attention, amp,
            auto_scale_lr, options, launcher, seed, validate, allowed, rehearsal, skip_data_check,
            hooks, listener, ranks,
        )  # fmt: skip
    check_lengths(cfg)
    batch = batch_size_of(cfg.train_dataloader)
    meta = read_checkpoint(found).get('meta', {}) if found else {}
    if seed is None:
        seed = meta.get('seed')
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
    if amp:
        use_amp(cfg)
    validate = validate and cfg.get('val_cfg') is not None
    if not validate:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    work_dir = Path(cfg.work_dir)
    cfg.resume = bool(found)
    if found:
        cfg.load_from = str(found)
    if init_from:
        cfg.load_from = str(init_from)
    course = course_of(cfg)
    if found:
        why = check_same(meta, course, world_size(cfg), batch, **allowed)
        if why:
            warn(f'exactness not guaranteed because {"; ".join(why)}')
        if not allowed['config']:
            check_checkpoint_classes(cfg, dict(class_counts(cfg.model, 'model')), meta, found)
    check_writable(work_dir)
    for key, folder in folders_written(cfg, 'val') if validate else ():
        check_writable(folder, key)
    if is_main():
        check_loaders(cfg, 'train', *(['val'] if validate else []), skip=skip_data_check)
    scale_lr(cfg, auto_scale_lr)
    runner = (
        build_runner(cfg, 'train_loop', 'val_loop') if validate else build_runner(cfg, 'train_loop')
    )
    check_batches(runner)
    if validate:
        prepare_evaluation(runner, 'val')
    runner.course, runner.guard.listener, runner.rehearses = course, listener, rehearsal
    for hook in hooks:
        runner.register_hook(hook)
    if ranks:
        ranks.runner = runner
    if not cfg.resume:
        runner.start = 'partial' if init_from else 'plain'
    runner.train_command = train_command(
        config, options, seed, amp, auto_scale_lr, attention, init_from
    )
    report_blocks(runner.model, cfg)
    batches = getattr(runner.train_loop, 'batches', None)
    try:
        with config_errors(cfg, until=lambda: listener.started):
            run_loop(runner.train)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise memory_shortage(runner, error) from error
        known = batches and batches.explained(error)
        if known:
            raise known from error
        raise
    finally:
        if batches:
            batches.close()
    return work_dir
