"""The config of a run: loaded, checked, and adapted to this machine."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmattn.checkpoint.read import Checkpoint
from mmattn.config.check import check_config
from mmattn.config.leaves import replace_type
from mmattn.datasets.class_names import check_same_classes
from mmattn.datasets.validation import check_classes
from mmattn.errors import UsageError

from .distributed import init_process_group, world_size
from .evaluators import align_evaluator
from .run_length import batch_size_of

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def run_name(config: str | Path, attention: str | None) -> str:
    """The name of a run: the config's, followed by the blocks added to it."""
    names = [] if attention in (None, 'none') else attention.split(',')
    return '_'.join([Path(config).stem, *names])


def run_folder(cfg: Config, work_dir: str | Path | None) -> Path:
    """The folder that a run writes into: `work_dir`, or the config's, or one named like the run."""
    names = cfg.attention['names'] if cfg.get('attention') else None
    name = run_name(cfg.filename, names)
    return Path(work_dir or cfg.get('work_dir') or Path('work_dirs') / name)


def recorded_attention(given: str | None, checkpoint: Checkpoint | None) -> str | dict | None:
    """The attention to add to a config: that of the checkpoint, or else that of `--attention`.

    Raises:
        UsageError: both are there and differ.
    """
    recorded = checkpoint.meta.get('attention') if checkpoint else None
    if given and recorded and recorded['names'] != given:
        raise UsageError(
            f'--attention {given}: checkpoint {checkpoint.path} was trained with '
            f'{recorded["names"]}. Leave --attention out.'
        )
    return recorded or given


def prepare_config(
    cfg: Config,
    options: dict,
    launcher: str = 'none',
    work_dir: str | Path | None = None,
    renames: bool = False,
) -> Config:
    """Check a loaded config, and adapt it to this machine.

    Args:
        cfg: the config with all options merged in; it is changed.
        options: these options, by dotted keys.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        work_dir: see `run_folder`.
        renames: accept class names that all differ from each other, see `check_same_classes`.

    Returns:
        the same config.

    Raises:
        UsageError, DataError: the config is wrong or inconsistent.
    """
    check_config(cfg, {key.split('.')[0] for key in options})
    heads = dict(class_counts(cfg.model, 'model'))
    for name in _LOADERS:
        if cfg.get(name):
            check_classes(cfg[name]['dataset'], heads, f'{name}.dataset')
    check_same_classes(cfg, heads, renames)
    for split in 'val', 'test':
        align_evaluator(cfg, split)
    cfg.work_dir = str(run_folder(cfg, work_dir))
    # mmengine keeps a logger and a visualizer per name and process, with the first one's folder
    cfg.experiment_name = f'{Path(cfg.filename).stem}_{time.time_ns()}'
    if 'visualizer' in cfg:
        cfg.visualizer['name'] = cfg.experiment_name
    cfg.launcher = launcher
    cfg.setdefault('resume', False)
    cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))  # mmengine's defaults
    _start_processes(cfg, launcher)
    return cfg


def class_counts(cfg: dict, where: str) -> Iterator[tuple[str, int]]:
    """Config key and value of every `num_classes` of the heads.

    Args:
        cfg: a config, or a part of one.
        where: dotted key of that part.
    """
    for name, value in cfg.items():
        if isinstance(value, dict):
            yield from class_counts(value, f'{where}.{name}')
        elif isinstance(value, list | tuple):
            items = {f'{name}[{i}]': v for i, v in enumerate(value) if isinstance(v, dict)}
            yield from class_counts(items, where)
        elif name == 'num_classes' and 'head' in where:
            yield f'{where}.{name}', value


def replace_sync_bn(cfg: Config) -> int:
    """Replace SyncBN, which needs several GPUs, by BN, which has the same weights elsewhere.

    Returns:
        the number of places in the config.
    """
    if torch.cuda.is_available() and cfg.launcher != 'none':
        return 0
    cfg.pop('sync_bn', None)
    return sum(replace_type(cfg.model, name, 'BN') for name in ('SyncBN', 'MMSyncBN'))


def _start_processes(cfg: Config, launcher: str) -> None:
    """Start the process group and configure DDP; mmengine's own start-up needs CUDA."""
    if launcher == 'none':
        return
    init_process_group(launcher, cfg.env_cfg.get('dist_cfg', {}))
    if torch.cuda.is_available():
        return
    cfg.env_cfg['dist_cfg'] = dict(backend='gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def use_amp(cfg: Config) -> None:
    """Train in mixed precision.

    Raises:
        UsageError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU: mixed precision is not faster on a CPU. Leave it out.')
    cfg.optim_wrapper['type'] = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def add_val_loss(cfg: Config) -> None:
    """Compute the losses of the network at each validation, too.

    Raises:
        UsageError: the training does not validate.
    """
    if cfg.get('val_cfg') is None:
        raise UsageError(
            '--val-loss: the training does not validate. Leave out --no-validate, or give the '
            'config val_cfg, val_dataloader and val_evaluator.'
        )
    hooks = cfg.get('custom_hooks') or []
    if not any('ValidationLossHook' in str(hook.get('type')) for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='mmattn.ValidationLossHook')]


def scale_lr(cfg: Config, enable: bool) -> None:
    """Scale the learning rate by the batch size, or warn that it may have to be scaled.

    Raises:
        UsageError: the config has no base batch size.
    """
    base = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    if enable and not base:
        raise UsageError(
            '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size. Set it.'
        )
    batch = batch_size_of(cfg.train_dataloader) * world_size(cfg)
    if enable:
        cfg.auto_scale_lr['enable'] = True
    elif base and base != batch:
        print_log(
            f'the batch is {batch}, the learning rate of the config is for {base}: '
            'consider --auto-scale-lr',
            level=logging.WARNING,
        )
