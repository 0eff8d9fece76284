"""What the command lines of the tools share: argument parsing that loads nothing heavy."""

import argparse
import os
import sys
from collections.abc import Callable

from mmattn.errors import run_tool

_MEGAPIXELS = 'MMATTN_MAX_MEGAPIXELS'  # read by mmattn.datasets.image_io, which loads OpenCV


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is the tool's docstring."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument('-v', '--verbose', action='store_true', help='show the traceback of an error')
    return made


def network(args: argparse.ArgumentParser) -> None:
    """Add `config` and `checkpoint`, as `mmattn.zoo.load_model` takes them."""
    args.add_argument('config', help="config file, or a model's name: mmattn.zoo.list_models()")
    args.add_argument(
        'checkpoint',
        nargs='?',
        help='.pth or .safetensors, a folder of published weights, or an address; default: what is '
        'published under the name',
    )


def config_options(args: argparse.ArgumentParser, *, launcher: bool = True) -> None:
    """Add `--attention`, `--cfg-options`, and `--launcher` with what torchrun passes along."""
    args.add_argument(
        '--attention',
        metavar='NAME[,NAME]',
        help='add blocks where their authors have them: configs/_base_/attention/NAME.py; '
        'a checkpoint remembers its own',
    )
    args.add_argument(
        '--cfg-options',
        nargs='+',
        metavar='KEY=VALUE',
        help='change the config, e.g. train_dataloader.batch_size=2',
    )
    image_options(args)
    if launcher:
        args.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
        args.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)


def rehearsal_option(args: argparse.ArgumentParser) -> None:
    """Add `--no-rehearsal`."""
    args.add_argument(
        '--no-rehearsal',
        action='store_true',
        help='begin at once, without a trial of one small step or of the test of one image',
    )


def image_options(args: argparse.ArgumentParser) -> None:
    """Add `--max-megapixels`, which holds for every image, label map and frame of a video."""
    args.add_argument(
        '--max-megapixels',
        type=_megapixels,
        metavar='N',
        help='how large an image may be (default: 100): a small file can declare a size that takes '
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


def run(task: Callable[[], None], args: argparse.Namespace) -> int:
    """Run a tool's work and return its exit code."""
    rank = getattr(args, 'local_rank', None)
    if rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(rank))
    sys.stdout.reconfigure(line_buffering=True)
    limit = getattr(args, 'max_megapixels', None)
    if limit is None:
        return run_tool(task, verbose=args.verbose)
    before = os.environ.get(_MEGAPIXELS)
    os.environ[_MEGAPIXELS] = f'{limit:g}'  # which workers inherit
    try:
        return run_tool(task, verbose=args.verbose)
    finally:
        os.environ.pop(_MEGAPIXELS)
        if before is not None:
            os.environ[_MEGAPIXELS] = before
