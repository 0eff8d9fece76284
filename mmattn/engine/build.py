"""Building a runner, and turning what a config breaks in it into errors of the user."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmattn.blocks.base import registered_blocks
from mmattn.errors import DataError, UsageError
from mmattn.torch_compat import AcceleratorError, DistError

from .distributed import DistributedRun, is_main
from .out_of_memory import is_out_of_memory
from .run_config import replace_sync_bn, run_folder, run_name
from .runner import BUILD_ERRORS, Runner


@contextlib.contextmanager
def distributed_run(
    config: str | Path, options, subfolder: str = '', training: bool = True
) -> Iterator[DistributedRun | None]:
    """The processes of a run, which report how it ends; None without a launcher.

    Call `join_processes` inside, once the config is loaded.

    Args:
        config: path of the config.
        options: `TrainOptions` or `TestOptions`.
        subfolder: where in the work dir to report.
        training: False for a test, which is not resumed.
    """
    if options.launcher == 'none':
        yield None
        return
    # until the config is loaded, which may fail
    folder = Path(
        options.work_dir or Path('work_dirs') / run_name(config, options.attention, options.data)
    )
    run = DistributedRun(folder / subfolder, training)
    with run.report_exit():
        yield run


def join_processes(run: DistributedRun | None, cfg: Config, options, subfolder: str = '') -> None:
    """Meet the other processes of a run, see `distributed_run`."""
    if run:
        run.work_dir = run_folder(cfg, options.work_dir) / subfolder
        run.join(options.launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}))


def build_runner(cfg: Config, *loops: str) -> Runner:
    """A runner whose data loaders and optimizer are built now, not on first use.

    Args:
        cfg: config of the run.
        loops: names of the loops to build: 'train_loop', 'val_loop', 'test_loop'.

    Raises:
        UsageError: a part of the config cannot be built.
    """
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


_NOT_OF_CONFIG = AcceleratorError, DistError


@contextlib.contextmanager
def config_errors(cfg: Config, until: Callable[[], bool] = lambda: False):
    """Raise errors of classes about their arguments as errors of the config.

    Args:
        cfg: the config that is built.
        until: from the moment on that it returns True, errors are raised unchanged.

    Raises:
        UsageError: names the config, with the text of the class.
    """
    try:
        yield
    except (*BUILD_ERRORS, RuntimeError, FileNotFoundError) as error:
        if until() or is_out_of_memory(error) or isinstance(error, _NOT_OF_CONFIG):
            raise
        whole = isinstance(error, OSError) or not error.args
        # the str of a KeyError would be in quotes
        text = str(error if whole else error.args[0]).strip() or type(error).__name__
        if text.startswith('Cannot infer the rule'):
            text += (
                " Write rule='greater', or 'less', next to the save_best or monitor that names it."
            )
        raise UsageError(f'config {cfg.filename} cannot be built: {text}') from error


def run_loop(loop: Callable):
    """Run a loop, and raise errors of data workers and of blocks as the user's errors.

    Raises:
        DataError: an image cannot be read.
        UsageError: a block refuses its input, such as a batch too small for its norm.
    """
    try:
        return loop()
    except (AssertionError, AttributeError, ValueError, OSError, RuntimeError) as error:
        text = str(error)
        if 'failed to load image' in text or 'cannot identify image' in text:
            raise DataError(text.strip().splitlines()[-1].split(': ', 1)[-1]) from error
        if isinstance(error, ValueError) and text.split(': ')[0] in registered_blocks():
            raise UsageError(f'{text}.') from error
        raise
