"""Building a runner, and turning what a config breaks in it into errors of the user."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmattn.blocks.base import registered_blocks
from mmattn.config.load import load_config, parse_options
from mmattn.errors import DataError, UsageError

from .distributed import DistributedRun, is_main
from .out_of_memory import is_out_of_memory
from .run_config import recorded_attention, replace_sync_bn, run_folder, run_name
from .runner import BUILD_ERRORS, Runner


# ---- the steps ---------------------------------------------------------------------------------
@contextlib.contextmanager
def connected(
    launcher, config, options, attention, checkpoint, work_dir, *, training: bool = True
) -> Iterator[DistributedRun | None]:
    """The processes of a run, which record how it ends; None if there is only this one."""
    if launcher == 'none':
        yield None
        return
    part = '' if training else 'test'
    name = run_name(config, attention)  # until the config is read, if it can be
    ranks = DistributedRun(Path(work_dir or Path('work_dirs') / name) / part, training)
    with ranks.report_exit():
        cfg = load_config(config, parse_options(options), recorded_attention(attention, checkpoint))
        ranks.work_dir = run_folder(config, cfg, work_dir) / part
        ranks.join(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}))
        yield ranks


def build_runner(cfg: Config, *loops: str) -> Runner:
    """A runner with what it otherwise builds on first use: the data of its loops, the optimizer."""
    count = replace_sync_bn(cfg)
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
