"""The config of a run: loaded, checked, and adapted to this machine."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmattn.checkpoint.read import read_checkpoint
from mmattn.config.check import check_config
from mmattn.config.leaves import replace_type
from mmattn.config.load import load_config
from mmattn.datasets.class_names import check_same_classes
from mmattn.datasets.validation import check_classes
from mmattn.errors import UsageError

from .distributed import init_process_group, world_size
from .evaluators import fit_evaluator
from .run_length import batch_size_of

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def run_folder(config, cfg: Config, work_dir) -> Path:
    """Where a run writes."""
    names = cfg.attention['names'] if cfg.get('attention') else None
    return Path(work_dir or cfg.get('work_dir') or Path('work_dirs') / run_name(config, names))


def prepare_config(
    config, options: dict, launcher: str, work_dir, attention=None, checkpoint=None, renames=False
) -> Config:
    """Read and check a config, with the blocks of a checkpoint, and fit it to this machine."""
    cfg = load_config(config, options, recorded_attention(attention, checkpoint))
    check_config(cfg, {key.split('.')[0] for key in options})
    heads = dict(class_counts(cfg.model, 'model'))
    for name in _LOADERS:
        if cfg.get(name):
            check_classes(cfg[name]['dataset'], heads, f'{name}.dataset')
    check_same_classes(cfg, heads, renames)
    for part in 'val', 'test':
        fit_evaluator(cfg, part)
    cfg.work_dir = str(run_folder(config, cfg, work_dir))
    # mmengine keeps a logger and a visualizer per name and process, with the first one's folder
    cfg.experiment_name = f'{Path(config).stem}_{time.time_ns()}'
    if 'visualizer' in cfg:
        cfg.visualizer['name'] = cfg.experiment_name
    cfg.launcher = launcher
    cfg.setdefault('resume', False)
    cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))  # as mmengine has them
    start_processes(cfg, launcher)
    return cfg


def recorded_attention(given: str | None, checkpoint: str | Path | None) -> str | dict | None:
    """What `--attention` says, or else what the checkpoint was trained with."""
    recorded = None
    if checkpoint:
        recorded = read_checkpoint(checkpoint).get('meta', {}).get('attention')
    if given and recorded and recorded['names'] != given:
        raise UsageError(
            f'--attention {given}: checkpoint {checkpoint} was trained with {recorded["names"]}. '
            'Leave --attention out.'
        )
    return recorded or given


def class_counts(cfg: dict, where: str) -> Iterator[tuple[str, int]]:
    """Config key and value of every `num_classes` of the heads."""
    for name, part in cfg.items():
        if isinstance(part, dict):
            yield from class_counts(part, f'{where}.{name}')
        elif isinstance(part, list | tuple):
            parts = {f'{name}[{i}]': one for i, one in enumerate(part) if isinstance(one, dict)}
            yield from class_counts(parts, where)
        elif name == 'num_classes' and 'head' in where:
            yield f'{where}.{name}', part


def run_name(config: str | Path, attention: str | None) -> str:
    """What a run is called: the config's name, and the blocks added to it."""
    names = [] if attention in (None, 'none') else attention.split(',')
    return '_'.join([Path(config).stem, *names])


def replace_sync_bn(cfg: Config) -> int:
    """SyncBN wants several GPUs; elsewhere plain BN, of the same weights, takes its place."""
    if torch.cuda.is_available() and cfg.launcher != 'none':
        return 0
    cfg.pop('sync_bn', None)
    return sum(replace_type(cfg.model, name, 'BN') for name in ('SyncBN', 'MMSyncBN'))


def start_processes(cfg: Config, launcher: str) -> None:
    """mmengine's distributed start-up wants CUDA; the process group is ours, on CPUs by gloo."""
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
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU: mixed precision is not faster on a CPU. Leave it out.')
    cfg.optim_wrapper['type'] = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_lr(cfg: Config, enable: bool) -> None:
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
