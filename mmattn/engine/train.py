"""Training a config."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.logging import print_log

from mmattn.checkpoint.find import check_empty_of_weights, find_checkpoint
from mmattn.checkpoint.fingerprint import check_fingerprint, config_fingerprint
from mmattn.checkpoint.read import read_checkpoint
from mmattn.config.load import load_config, parse_options
from mmattn.datasets.class_names import check_checkpoint_classes
from mmattn.datasets.validation import check_loaders
from mmattn.errors import CheckpointError, UsageError
from mmattn.files import check_writable
from mmattn.log import warn

from .build import build_runner, config_errors, connected, run_loop
from .commands import train_command
from .distributed import DistributedRun, is_main, world_size
from .evaluators import folders_written, prepare_evaluation
from .network import report_blocks
from .options import complete
from .out_of_memory import is_out_of_memory, out_of_memory_error
from .run_config import class_counts, prepare_config, run_folder, scale_lr, use_amp
from .run_length import batch_size_of, check_batches, check_lengths
from .signals import SignalHandler, handle_signals


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `train`, and flags of `tools/train.py`.

    Attributes:
        work_dir: folder for logs and checkpoints, default `work_dirs/<config name>`.
        resume: path of the checkpoint to go on from; 'latest' for the last one in `work_dir`,
            'auto' for the same or, if there is none, a fresh start.
        init_from: path or address of weights to start from; those that do not fit are left out.
        attention: names of blocks to add, see `add_attention`; a resumed run keeps its blocks.
        amp: mixed precision, GPU only.
        auto_scale_lr: multiply the learning rate by the batch size over the config's base batch
            size.
        cfg_options: changes to the config; a dict of dotted keys, or `key=value` strings.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        seed: random seed, instead of the config's.
        validate: validate during training.
        allow_topology_change: resume with another number of processes, not bit-exactly.
        allow_config_change: resume with another config, not bit-exactly.
        rehearsal: try one small step and the validation of one image first, see `rehearse`.
        skip_data_check: do not check the data files first.
        hooks: hooks to register in addition to those of the config.
    """

    work_dir: str | Path | None = None
    resume: str | Path | None = None
    init_from: str | Path | None = None
    attention: str | None = None
    amp: bool = False
    auto_scale_lr: bool = False
    cfg_options: dict | list[str] | None = None
    launcher: str = 'none'
    seed: int | None = None
    validate: bool = True
    allow_topology_change: bool = False
    allow_config_change: bool = False
    rehearsal: bool = True
    skip_data_check: bool = False
    hooks: Iterable[Hook] = ()


def train(config: str | Path, options: TrainOptions | None = None, **fields) -> Path:
    """Train a config.

    A resumed run gives bit for bit the result of an uninterrupted one, on the same number of
    processes and threads. SIGTERM, SIGUSR1 and Ctrl-C end it after the current step, with a
    checkpoint.

    Args:
        config: path of the config file.
        options: see `TrainOptions`.
        fields: single fields of `TrainOptions`, such as `seed=0`; they replace those of `options`.

    Returns:
        the work dir.

    Raises:
        MmattnError: of the fitting kind; problems of config, data or checkpoint are raised before
            a file is written.
        Stopped: by a signal; a checkpoint is saved.
        Terminated: by a signal before the first step.
        TypeError: an unknown field; names the nearest.
    """
    options = complete(options or TrainOptions(), fields)
    with handle_signals() as listener:
        checkpoint = None if options.resume in ('latest', 'auto') else options.resume
        with connected(
            options.launcher, config, options.cfg_options, options.attention, checkpoint,
            options.work_dir,
        ) as ranks:  # fmt: skip
            if ranks:
                listener.check_peers = ranks.raise_peer_failure
            return _train(config, options, listener, ranks)


def _train(
    config: str | Path, options: TrainOptions, listener: SignalHandler, ranks: DistributedRun | None
) -> Path:
    cfg_options = parse_options(options.cfg_options)
    resume, init_from = options.resume, options.init_from
    if resume and init_from:
        raise UsageError('--resume and --init-from exclude each other: the first has all weights.')
    found = None
    if resume:
        folder = run_folder(
            config, load_config(config, cfg_options, options.attention), options.work_dir
        )
        found = find_checkpoint(folder) if resume in ('latest', 'auto') else Path(resume)
        if found is None and resume == 'latest':
            raise CheckpointError(
                f'nothing to resume in {folder}: no valid checkpoint. Use --resume auto to start '
                'fresh.'
            )
        if found is None:
            check_empty_of_weights(folder)
            print_log(f'no checkpoint in {folder}, starting at 0')
    cfg = prepare_config(
        config, cfg_options, options.launcher, options.work_dir, options.attention, found
    )
    if cfg.get('resume') and not resume and not init_from:  # as a config of the packages may say
        resume = cfg.get('load_from') or 'auto'
        return _train(config, replace(options, resume=resume), listener, ranks)
    check_lengths(cfg)
    batch = batch_size_of(cfg.train_dataloader)
    meta = read_checkpoint(found).get('meta', {}) if found else {}
    seed = meta.get('seed') if options.seed is None else options.seed
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
    if options.amp:
        use_amp(cfg)
    validate = options.validate and cfg.get('val_cfg') is not None
    if not validate:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    work_dir = Path(cfg.work_dir)
    cfg.resume = bool(found)
    if found:
        cfg.load_from = str(found)
    if init_from:
        cfg.load_from = str(init_from)
    course = config_fingerprint(cfg)
    if found:
        why = check_fingerprint(
            meta,
            course,
            world_size(cfg),
            batch,
            topology=options.allow_topology_change,
            config=options.allow_config_change,
        )
        if why:
            warn(f'exactness not guaranteed because {"; ".join(why)}')
        if not options.allow_config_change:
            check_checkpoint_classes(cfg, dict(class_counts(cfg.model, 'model')), meta, found)
    check_writable(work_dir)
    for key, folder in folders_written(cfg, 'val') if validate else ():
        check_writable(folder, key)
    if is_main():
        check_loaders(cfg, 'train', *(['val'] if validate else []), skip=options.skip_data_check)
    scale_lr(cfg, options.auto_scale_lr)
    runner = (
        build_runner(cfg, 'train_loop', 'val_loop') if validate else build_runner(cfg, 'train_loop')
    )
    check_batches(runner)
    if validate:
        prepare_evaluation(runner, 'val')
    runner.fingerprint, runner.rehearsal = course, options.rehearsal
    runner.guard.signal_handler = listener
    for hook in options.hooks:
        runner.register_hook(hook)
    if ranks:
        ranks.runner = runner
    if not cfg.resume:
        runner.load_mode = 'partial' if init_from else 'plain'
    runner.train_command = train_command(
        config, cfg_options, seed, options.amp, options.auto_scale_lr, options.attention, init_from
    )
    report_blocks(runner.model, cfg)
    batches = getattr(runner.train_loop, 'batches', None)
    try:
        with config_errors(cfg, until=lambda: listener.started):
            run_loop(runner.train)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory_error(runner, error) from error
        known = batches and batches.worker_error(error)
        if known:
            raise known from error
        raise
    finally:
        if batches:
            batches.close()
    return work_dir
