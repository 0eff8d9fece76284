"""Training a config."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log

from mmattn.checkpoint.find import check_no_weights, open_latest
from mmattn.checkpoint.fingerprint import check_fingerprint, config_fingerprint
from mmattn.checkpoint.read import Checkpoint, open_checkpoint
from mmattn.config.load import change_config, load_config_file, parse_options
from mmattn.config.runner_keys import check_backends
from mmattn.datasets.class_names import check_checkpoint_classes
from mmattn.datasets.validation import check_loaders
from mmattn.errors import UsageError
from mmattn.files import check_writable
from mmattn.log import warn

from .build import build_runner, config_errors, distributed_run, join_processes, run_loop
from .commands import train_command
from .cpu_load import read_usage, warn_of_shortage
from .distributed import DistributedRun, is_main, world_size
from .evaluators import output_folders, prepare_evaluation
from .execution import use_flags
from .network import report_blocks, report_data_set
from .options import complete
from .out_of_memory import is_out_of_memory, out_of_memory_error
from .run_config import (
    add_val_loss,
    class_counts,
    prepare_config,
    recorded_attention,
    recorded_data_set,
    run_folder,
    scale_lr,
    use_amp,
)
from .run_length import batch_size_of, check_batches, check_lengths
from .runner import Runner
from .signals import SignalHandler, handle_signals

_SEARCHES = ('auto', 'latest')  # values of `resume` that search the work dir; they are synonyms


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of `train`, and flags of `tools/train.py`.

    Attributes:
        work_dir: folder for logs and checkpoints, default `work_dirs/<config name>`.
        resume: checkpoint to go on from: a path, or an open one; 'auto' for the last one in
            `work_dir` or, if there is none, a fresh start.
        init_from: weights to start from: a path, an address, or an open checkpoint; tensors that
            do not fit are left out.
        attention: names of blocks to add, see `add_attention`; a resumed run keeps its blocks.
        data: name of a data set to train on, see `add_data_set`; a resumed run keeps its own.
        amp: train in mixed precision: 'float16' (GPU only), with a loss scale, or 'bfloat16'; True
            for float16.
        channels_last: store kernels and images in channels_last; sets the config key
            `channels_last`, see `mmattn.models.memory_format`.
        compile: compile backbone, neck and heads by `torch.compile`; sets the config key `compile`,
            see `mmattn.models.parts`.
        auto_scale_lr: multiply the learning rate by the batch size over the config's base batch
            size.
        cfg_options: changes to the config; a dict of dotted keys, or `key=value` strings.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        seed: random seed, instead of the config's.
        validate: validate during training.
        val_loss: compute the losses at each validation, too, see `ValidationLossHook`.
        allow_topology_change: resume with another number of processes, not bit-exactly.
        allow_config_change: resume with another config, not bit-exactly.
        rehearsal: try one small step and the validation of one image first, see `rehearse`.
        skip_data_check: do not check the data files first.
        hooks: hooks to register in addition to those of the config.
    """

    work_dir: str | Path | None = None
    resume: str | Path | Checkpoint | None = None
    init_from: str | Path | Checkpoint | None = None
    attention: str | None = None
    data: str | None = None
    amp: bool | str = False
    channels_last: bool = False
    compile: bool = False
    auto_scale_lr: bool = False
    cfg_options: dict | list[str] | None = None
    launcher: str = 'none'
    seed: int | None = None
    validate: bool = True
    val_loss: bool = False
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
    usage = read_usage()
    with handle_signals() as signal_handler, distributed_run(config, options) as processes:
        if processes:
            signal_handler.check_peers = processes.raise_peer_failure
        cfg, checkpoint = _load(config, options, processes)
        runner = _build(cfg, checkpoint, config, options)
        runner.guard.signal_handler = signal_handler
        warn_of_shortage(usage, runner.model)
        if processes:
            processes.runner = runner
        _run(runner, signal_handler)
        return Path(cfg.work_dir)


def _load(
    config: str | Path, options: TrainOptions, processes: DistributedRun | None
) -> tuple[Config, Checkpoint | None]:
    """The config with options and attention merged in, and the checkpoint to resume from."""
    if options.resume and options.init_from:
        raise UsageError('--resume and --init-from exclude each other: the first has all weights.')
    cfg_options, resume = parse_options(options.cfg_options), options.resume
    config_file = load_config_file(config)

    def changed(checkpoint: Checkpoint | None) -> Config:
        attention = recorded_attention(options.attention, checkpoint)
        data = recorded_data_set(options.data, checkpoint, resumed=True)
        return change_config(copy.deepcopy(config_file), cfg_options, attention, data)

    checkpoint = _open(resume) if resume and resume not in _SEARCHES else None
    cfg = changed(checkpoint)
    join_processes(processes, cfg, options)
    if cfg.get('resume') and not resume and not options.init_from:  # in a config of the packages
        resume = cfg.get('load_from') or 'auto'
    if resume and not checkpoint:
        folder = run_folder(cfg, options.work_dir)
        checkpoint = _search(folder) if resume in _SEARCHES else _open(resume)
        if checkpoint:
            cfg = changed(checkpoint)
    return cfg, checkpoint


def _open(source: str | Path | Checkpoint) -> Checkpoint:
    return open_checkpoint(source if isinstance(source, Checkpoint) else Path(source))


def _search(folder: Path) -> Checkpoint | None:
    """The last checkpoint of a folder; None if there is none, so that the training starts fresh."""
    checkpoint = open_latest(folder)
    if checkpoint is None:
        check_no_weights(folder)
        print_log(f'nothing to resume in {folder}: starting from scratch')
    return checkpoint


def _build(
    cfg: Config, checkpoint: Checkpoint | None, config: str | Path, options: TrainOptions
) -> Runner:
    """The runner of a training, once config, data and checkpoint are checked."""
    cfg_options, init_from = parse_options(options.cfg_options), options.init_from
    prepare_config(cfg, cfg_options, options.launcher, options.work_dir)
    check_backends(cfg)
    check_lengths(cfg)
    seed = options.seed
    if seed is None and checkpoint:
        seed = checkpoint.meta.get('seed')
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
    if options.amp:
        use_amp(cfg, options.amp)
    use_flags(cfg, channels_last=options.channels_last, compile=options.compile)
    splits = ['train', 'val'] if options.validate and cfg.get('val_cfg') is not None else ['train']
    if 'val' not in splits:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    if options.val_loss:
        add_val_loss(cfg)
    cfg.resume = bool(checkpoint)
    if isinstance(init_from, Checkpoint):
        checkpoint, init_from = init_from, init_from.path
    if checkpoint or init_from:
        cfg.load_from = str(checkpoint.path if checkpoint else init_from)
    fingerprint = config_fingerprint(cfg)
    if cfg.resume:
        _check_resumable(cfg, checkpoint, fingerprint, options)
    check_writable(Path(cfg.work_dir))
    for key, folder in output_folders(cfg, 'val') if 'val' in splits else ():
        check_writable(folder, key)
    if is_main():
        check_loaders(cfg, *splits, skip=options.skip_data_check)
    scale_lr(cfg, options.auto_scale_lr)
    runner = build_runner(cfg, *[f'{split}_loop' for split in splits])
    check_batches(runner)
    if 'val' in splits:
        prepare_evaluation(runner, 'val')
    for hook in options.hooks:
        runner.register_hook(hook)
    runner.checkpoint, runner.fingerprint = checkpoint, fingerprint
    runner.rehearsal = options.rehearsal
    if not cfg.resume:
        runner.load_mode = 'partial' if init_from or cfg.get('data_set') else 'plain'
    runner.train_command = train_command(config, options, seed, init_from)
    report_data_set(cfg)
    report_blocks(runner.model, cfg)
    return runner


def _check_resumable(
    cfg: Config, checkpoint: Checkpoint, fingerprint: dict[str, str], options: TrainOptions
) -> None:
    """Refuse to resume what this run would continue differently, unless allowed."""
    meta = checkpoint.meta
    reasons = check_fingerprint(
        meta, fingerprint, world_size(cfg), batch_size_of(cfg.train_dataloader),
        topology=options.allow_topology_change, config=options.allow_config_change,
    )  # fmt: skip
    if reasons:
        warn(f'exactness not guaranteed because {"; ".join(reasons)}')
    if not options.allow_config_change:
        heads = dict(class_counts(cfg.model, 'model'))
        check_checkpoint_classes(cfg, heads, meta, checkpoint.path)


def _run(runner: Runner, signal_handler: SignalHandler) -> None:
    """Train to the end, and name the cause of an error in data workers or in memory."""
    batches = getattr(runner.train_loop, 'batches', None)
    try:
        with config_errors(runner.cfg, until=lambda: signal_handler.started):
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
