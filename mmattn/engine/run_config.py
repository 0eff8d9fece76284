"""The config of a run: loaded, checked, and adapted to this machine."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from mmattn.checkpoint.read import Checkpoint
from mmattn.config.check import check_config
from mmattn.config.leaves import class_heads, replace_type
from mmattn.datasets.class_names import check_same_classes
from mmattn.datasets.validation import check_classes
from mmattn.errors import UsageError

from .distributed import init_process_group, world_size
from .evaluators import align_evaluator
from .execution import amp_dtype
from .run_length import batch_size_of

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def run_name(config: str | Path, attention: str | None, data: str | None = None) -> str:
    """The name of a run: the config's, followed by the data set and the blocks added to it."""
    names = [] if attention in (None, 'none') else attention.split(',')
    return '_'.join([Path(config).stem, *([data] if data else []), *names])


def run_folder(cfg: Config, work_dir: str | Path | None) -> Path:
    """The folder that a run writes into: `work_dir`, or the config's, or one named like the run."""
    names = cfg.attention['names'] if cfg.get('attention') else None
    data = cfg.data_set['name'] if cfg.get('data_set') else None
    name = run_name(cfg.filename, names, data)
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


def recorded_data_set(
    given: str | None, checkpoint: Checkpoint | None, *, resumed: bool = False
) -> str | dict | None:
    """The data set to put into a config: that of `--data`, or else that of the checkpoint.

    Raises:
        UsageError: a training that is resumed was on another.
    """
    recorded = checkpoint.meta.get('data_set') if checkpoint else None
    if given and recorded and resumed and recorded['name'] != given:
        raise UsageError(
            f'--data {given}: checkpoint {checkpoint.path} was trained on {recorded["name"]}. '
            'Leave --data out.'
        )
    return given or recorded


def added_parts(cfg: Config) -> dict:
    """What `--attention` and `--data` added to a config, as a checkpoint records it."""
    added = {}
    if cfg.get('attention'):
        added['attention'] = json.loads(json.dumps(cfg.attention))
    if data := cfg.get('data_set'):
        added['data_set'] = dict(name=data['name'], classes=list(data['classes']))
    return added


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
    for key, head in class_heads(cfg, where):
        if 'num_classes' in head:
            yield f'{key}.num_classes', head['num_classes']


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


def use_amp(cfg: Config, amp: bool | str) -> None:
    """Train in mixed precision: float16 with a loss scale, or bfloat16 without.

    Args:
        cfg: changed.
        amp: 'float16' or 'bfloat16'; True for float16.

    Raises:
        UsageError: the device lacks the dtype.
    """
    wrapper = cfg.optim_wrapper
    if amp_dtype(amp, get_device()) == 'bfloat16':
        wrapper['type'] = 'mmattn.BFloat16OptimWrapper'
        for key in 'loss_scale', 'dtype', 'use_fsdp':  # of mmengine's AmpOptimWrapper
            wrapper.pop(key, None)
        return
    wrapper['type'] = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')
    if amp == 'float16' and 'dtype' in wrapper:
        wrapper['dtype'] = amp


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
