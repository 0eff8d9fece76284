"""From a config file to a checked config, a network, a runner."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import nn

from mmattn.blocks.base import registered_blocks
from mmattn.checkpoint.load import load_weights
from mmattn.checkpoint.plain_values import plain_part, without_tensors
from mmattn.checkpoint.read import read_checkpoint
from mmattn.config.check import check_config
from mmattn.config.leaves import dataset_leaves, replace_type
from mmattn.config.load import load_config, parse_options
from mmattn.datasets.class_names import check_checkpoint_classes, check_same_classes
from mmattn.datasets.validation import build, check_classes
from mmattn.errors import DataError, UsageError
from mmattn.plugins import report

from .distributed import Ranks, meet
from .evaluators import fit_evaluator
from .out_of_memory import is_out_of_memory
from .run_length import batch_size_of
from .runner import BUILD_ERRORS, Runner

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def build_model(
    config: str | Path,
    checkpoint: str | Path,
    options: dict | list[str] | None = None,
    attention: str | None = None,
    device: str | None = None,
) -> tuple[nn.Module, Config]:
    """The network of a config with the weights of a checkpoint, in eval mode.

    On a device, 'cpu' or 'cuda:0', or on the best.
    """
    model, cfg = build_network(config, options, attention, checkpoint)
    content = read_checkpoint(checkpoint)
    meta = content.get('meta', {})
    load_weights(model, content['state_dict'], checkpoint, meta.get('blocks'))
    heads = dict(class_counts(cfg.model, 'model'))
    check_checkpoint_classes(cfg, heads, meta, checkpoint, renames=True)
    model.cfg = cfg
    return model.to(device or get_device()).eval(), cfg


def build_network(
    config: str | Path,
    options: dict | list[str] | None = None,
    attention: str | None = None,
    checkpoint: str | Path | None = None,
) -> tuple[nn.Module, Config]:
    """The network of a config, with weights that mean nothing yet.

    It has the blocks that the checkpoint, if any, was trained with.
    """
    from mmengine.registry import MODELS

    options = parse_options(options)
    cfg = prepare_config(config, options, 'none', None, attention, checkpoint, renames=True)
    drop_pretrained(cfg.model)
    _fit_norm(cfg)
    with config_errors(cfg):
        return MODELS.build(cfg.model), cfg


def dataset_meta(cfg: Config) -> dict:
    """Classes, palette and whatever else the test data of a config say about themselves."""
    found = build(next(dataset_leaves(cfg.test_dataloader['dataset']))).metainfo
    return without_tensors(plain_part(found, 'metainfo'))


# ---- the steps ---------------------------------------------------------------------------------
@contextlib.contextmanager
def connected(
    launcher, config, options, attention, checkpoint, work_dir, *, training: bool = True
) -> Iterator[Ranks | None]:
    """The processes of a run, which leave a word on how it ends; None if there is but this one."""
    if launcher == 'none':
        yield None
        return
    part = '' if training else 'test'
    name = run_name(config, attention)  # until the config is read, if it can be
    ranks = Ranks(Path(work_dir or Path('work_dirs') / name) / part, training)
    with ranks.reported():
        cfg = load_config(config, parse_options(options), _attention(attention, checkpoint))
        ranks.folder = run_folder(config, cfg, work_dir) / part
        ranks.join(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}))
        yield ranks


def run_folder(config, cfg: Config, work_dir) -> Path:
    """Where a run writes."""
    names = cfg.attention['names'] if cfg.get('attention') else None
    return Path(work_dir or cfg.get('work_dir') or Path('work_dirs') / run_name(config, names))


def prepare_config(
    config, options: dict, launcher: str, work_dir, attention=None, checkpoint=None, renames=False
) -> Config:
    """Read and check a config, with the blocks of a checkpoint, and fit it to this machine."""
    cfg = load_config(config, options, _attention(attention, checkpoint))
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
    _use_launcher(cfg, launcher)
    return cfg


def _attention(given: str | None, checkpoint: str | Path | None) -> str | dict | None:
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


def report_blocks(model: nn.Module, cfg: Config) -> None:
    """Log what blocks the network has; raises what they say against the size of the images."""
    if not is_main():
        return
    with config_errors(cfg):
        found = report(model.module if is_model_wrapper(model) else model, image_size(cfg))
    if found.rows:
        lines, warnings = str(found).split('\nwarning: ', 1)[0], found.warnings
        print_log(f'attention:\n{lines}', logger='current')
        for text in warnings:
            print_log(text, logger='current', level=logging.WARNING)


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the images in training: the crop, or else the scale, padded."""
    size, divisor = (512, 512), cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    for step in next(dataset_leaves(cfg.train_dataloader['dataset'])).get('pipeline', []):
        if isinstance(step.get('scale'), list | tuple) and isinstance(step['scale'][0], int):
            size = step['scale'][::-1]
        size = step.get('crop_size', size)
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def _fit_norm(cfg: Config) -> int:
    """SyncBN wants several GPUs; elsewhere plain BN, of the same weights, takes its place."""
    if torch.cuda.is_available() and cfg.launcher != 'none':
        return 0
    cfg.pop('sync_bn', None)
    return sum(replace_type(cfg.model, name, 'BN') for name in ('SyncBN', 'MMSyncBN'))


def _use_launcher(cfg: Config, launcher: str) -> None:
    """mmengine's distributed start-up wants CUDA; the process group is ours, on CPUs by gloo."""
    if launcher == 'none':
        return
    meet(launcher, cfg.env_cfg.get('dist_cfg', {}))
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


def world_size(cfg: Config) -> int:
    """How many processes train."""
    counts = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
    return int(os.environ.get(counts.get(cfg.launcher, ''), 1))


def build_runner(cfg: Config, *loops: str) -> Runner:
    """A runner with what it otherwise builds on first use: the data of its loops, the optimizer."""
    count = _fit_norm(cfg)
    if count and is_main():
        print_log(f'SyncBN needs several GPUs: BN in {count} places of the config instead')
    with config_errors(cfg):
        runner = Runner.from_cfg(cfg)
        for loop in loops:
            getattr(runner, loop)
        if 'train_loop' in loops:
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


_NOT_SAID = torch.AcceleratorError, torch.distributed.DistError  # of a device, of other processes


@contextlib.contextmanager
def config_errors(cfg: Config, until: Callable[[], bool] = lambda: False):
    """What a class says against its arguments is the config's error, until something is true."""
    try:
        yield
    except (*BUILD_ERRORS, RuntimeError, FileNotFoundError) as error:
        if until() or is_out_of_memory(error) or isinstance(error, _NOT_SAID):
            raise
        whole = isinstance(error, OSError) or not error.args  # a KeyError would be in quotes
        text = str(error if whole else error.args[0]).strip() or type(error).__name__
        if text.startswith('Cannot infer the rule'):
            text += (
                " Write rule='greater', or 'less', next to the save_best or monitor that names it."
            )
        raise UsageError(f'config {cfg.filename} cannot be built: {text}') from error


def run_loop(job: Callable):
    """Run a loop; what a data worker or a block raised comes back as the user's error it is."""
    try:
        return job()
    except (AssertionError, AttributeError, ValueError, OSError, RuntimeError) as error:
        text = str(error)
        if 'failed to load image' in text or 'cannot identify image' in text:
            raise DataError(text.strip().splitlines()[-1].split(': ', 1)[-1]) from error
        if isinstance(error, ValueError) and text.split(': ')[0] in registered_blocks():
            raise UsageError(f'{text}.') from error  # such as a batch too small for its norm
        raise


def drop_pretrained(cfg: dict) -> None:
    """Fetch no weights that a checkpoint is about to replace."""
    for value in cfg.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, dict):
                drop_pretrained(item)
    if isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg'].get('type') == 'Pretrained':
        cfg['init_cfg'] = None


def is_main() -> bool:
    return int(os.environ.get('RANK', 0)) == 0 and get_dist_info()[0] == 0
