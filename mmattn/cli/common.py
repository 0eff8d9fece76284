"""Argument parsing and exit codes that all commands share; loads nothing heavy."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from mmattn.errors import run_tool

CONFIG_HELP = 'config file, or a model name of mmattn.list_models()'
AMP_DTYPES = ('float16', 'bfloat16')
# command -> sub-command -> module of this package
SUB_COMMANDS = {'data': {'import': 'import_data', 'browse': 'browse_data'}}
_MEGAPIXELS = 'MMATTN_MAX_MEGAPIXELS'  # read by mmattn.datasets.image_limits, which loads Pillow


def make_parser(doc: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with `-v` whose description is the docstring of the command's module.

    Args:
        doc: docstring, with examples that call `tools/*.py`.
        prog: name of the program in usage and examples, such as `mmattn train`; default: that of
            the script.
    """
    if prog is not None:
        doc = re.sub(r'\bpython tools/(\w+)\.py', lambda m: f'mmattn {command_name(m[1])}', doc)
        doc = re.sub(r'\btools/(\w+)\.py', lambda m: f'-m mmattn {command_name(m[1])}', doc)
    parser = _Parser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '-v', '--verbose', action='store_true', help='show the traceback of an error'
    )
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser for which the word after `--amp` is its value only if it is one of its choices."""

    def parse_known_args(self, args=None, namespace=None):
        args = list(sys.argv[1:] if args is None else args)
        for index, (word, following) in enumerate(pairwise(args)):
            if word == '--amp' and following not in AMP_DTYPES:
                args[index] = f'--amp={AMP_DTYPES[0]}'
        return super().parse_known_args(args, namespace)


def command_name(module: str) -> str:
    """Name of a command from that of its module: `check_data` is `check-data`."""
    for command, parts in SUB_COMMANDS.items():
        for name, part in parts.items():
            if part == module:
                return f'{command} {name}'
    return module.replace('_', '-')


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `config` and `checkpoint`, as `mmattn.load_model` takes them."""
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='.pth or .safetensors file, folder of published weights, or URL; default: the weights '
        'published under the model name',
    )


def add_config_options(parser: argparse.ArgumentParser, *, launcher: bool = True) -> None:
    """Add `--attention`, `--cfg-options`, and `--launcher` with the rank that torchrun passes."""
    parser.add_argument(
        '--attention',
        metavar='NAME[,NAME]',
        help='add attention blocks at the places that their authors chose, files of '
        'configs/_base_/attention; a checkpoint records its own',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        metavar='KEY=VALUE',
        help='override config values, e.g. train_dataloader.batch_size=2',
    )
    add_image_options(parser)
    if launcher:
        parser.add_argument(
            '--launcher',
            choices=['none', 'pytorch', 'slurm', 'mpi'],
            default='none',
            help='launcher of a distributed run; pytorch for torchrun; default: %(default)s',
        )
        parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add `--data`."""
    parser.add_argument(
        '--data',
        metavar='NAME',
        help='use this data set instead of that of the config: configs/NAME.py, which `mmattn data '
        'import NAME` writes, or one of configs/_base_/datasets; a checkpoint records its own',
    )


def add_network_options(parser: argparse.ArgumentParser, *, training: bool = False) -> None:
    """Add `--amp`, `--channels-last`, `--compile` and, for inference, `--fuse-conv-bn`."""
    parser.add_argument(
        '--amp',
        nargs='?',
        const=True,
        default=False,
        choices=AMP_DTYPES,
        help='mixed precision: float16, the default, on a GPU, or bfloat16 on a GPU or a CPU',
    )
    parser.add_argument(
        '--channels-last',
        action='store_true',
        help='store kernels and images in channels_last (NHWC)',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile backbone, neck and heads by torch.compile, which takes minutes at the start',
    )
    if not training:
        parser.add_argument(
            '--fuse-conv-bn',
            action='store_true',
            help='fold batch norms into the convolutions before them',
        )


def add_rehearsal_option(parser: argparse.ArgumentParser) -> None:
    """Add `--no-rehearsal`."""
    parser.add_argument(
        '--no-rehearsal',
        action='store_true',
        help='skip the rehearsal: one small training step and the test of one image before the run',
    )


def add_data_check_option(parser: argparse.ArgumentParser) -> None:
    """Add `--skip-data-check`."""
    parser.add_argument(
        '--skip-data-check',
        action='store_true',
        help='skip the check of the data files, e.g. where it rejects data that are right',
    )


def add_show_options(parser: argparse.ArgumentParser) -> None:
    """Add `--show` and `--wait-time`."""
    parser.add_argument(
        '--show',
        action='store_true',
        help='show the pictures in a window, where there is a display',
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2.0,
        metavar='SECONDS',
        help='time that a picture of --show stays; 0: until a key is pressed; default: %(default)s',
    )


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add `--max-megapixels`, the limit for every image, label map and video frame."""
    parser.add_argument(
        '--max-megapixels',
        type=_megapixels,
        metavar='N',
        help='size limit of an image (default: 100); a small file can declare a size that takes '
        'all memory',
    )


def _megapixels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f'{text} is no number of megapixels, such as 200')
    return value


def _with_safe_files(task: Callable[[], None]) -> None:
    from mmattn.config import safe_files

    safe_files.install()
    task()


def run(task: Callable[[], None], args: argparse.Namespace) -> int:
    """Run the work of a command and return its exit code."""
    rank = getattr(args, 'local_rank', None)
    if rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(rank))
    sys.stdout.reconfigure(line_buffering=True)
    if hasattr(args, 'config'):
        task = partial(_with_safe_files, task)
    limit = getattr(args, 'max_megapixels', None)
    if limit is None:
        return run_tool(task, verbose=args.verbose)
    previous = os.environ.get(_MEGAPIXELS)
    os.environ[_MEGAPIXELS] = f'{limit:g}'  # inherited by data loading workers
    try:
        return run_tool(task, verbose=args.verbose)
    finally:
        os.environ.pop(_MEGAPIXELS)
        if previous is not None:
            os.environ[_MEGAPIXELS] = previous
