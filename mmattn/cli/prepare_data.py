"""Prepare a data set under data/.

street      generate street scenes in the Cityscapes layout and as COCO JSON
camvid      copy CamVid from --root, void labels set to 255
cityscapes  check a Cityscapes download at --root, write its train ids and instances as COCO JSON
ade20k      check a download of ADE20K, the folder ADEChallengeData2016, at --root
coco        check a download of COCO 2017 at --root
bccd        copy BCCD from --root, boxes as COCO JSON
dsb2018     copy the 256x256 images of DSB 2018 from --root, masks as COCO JSON and label maps

With --cache, cityscapes, camvid, ade20k and coco get a copy of their images that decodes fast, in a
folder next to the set, such as data/cityscapes_cache. Training and testing read it where it is
there, with the same pixels. What is to be written is said first.

Example: python tools/prepare_data.py street --images 400 60 60 --size 512 256
"""

import argparse
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from mmattn.errors import UsageError

from .common import make_parser, run

_CACHED = ('cityscapes', 'camvid', 'ade20k', 'coco')  # sets that --cache is for


def prepare(name: str) -> Callable:
    """The function `prepare_<name>` of the data set's module."""
    return getattr(import_module(f'mmattn.datasets.{name}'), f'prepare_{name}')


def _command(args: argparse.Namespace) -> str:
    """The command that writes the cache again."""
    options = [(flag, getattr(args, flag)) for flag in ('root', 'out', 'cache')]
    words = [word for flag, value in options if value for word in (f'--{flag}', value)]
    return shlex.join(['python', 'tools/prepare_data.py', args.name, *words])


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        'name', choices=['street', 'camvid', 'cityscapes', 'ade20k', 'coco', 'bccd', 'dsb2018'],
        help='data set to prepare',
    )  # fmt: skip
    parser.add_argument('--root', help='folder of the original data set (default: data/<name>)')
    parser.add_argument('--out', help='folder of the prepared data set (default: data/<name>)')
    parser.add_argument(
        '--cache', nargs='?', const='bmp', choices=['bmp', 'webp', 'png'],
        help='also write a lossless copy of the images; bmp, the default, decodes fastest, webp is '
        'smallest',
    )  # fmt: skip
    street = parser.add_argument_group('street')
    street.add_argument(
        '--images', nargs=3, type=int, default=(400, 60, 60), metavar=('TRAIN', 'VAL', 'TEST'),
        help='number of scenes in each split; default: 400 60 60',
    )  # fmt: skip
    street.add_argument(
        '--size', nargs=2, type=int, default=(512, 256), metavar=('W', 'H'),
        help='image size in pixels; default: 512 256',
    )  # fmt: skip
    street.add_argument(
        '--seed', type=int, default=0, help='seed for the scenes; default: %(default)s'
    )
    street.add_argument('--overwrite', action='store_true', help='replace an existing street set')
    args = parser.parse_args(argv)

    def task() -> None:
        home = Path('data') / args.name
        root, out = Path(args.root or home), Path(args.out or home)
        if args.cache and args.name not in _CACHED:
            raise UsageError(f'--cache is for {", ".join(_CACHED)}. Leave it out for {args.name}.')
        if args.name == 'street':
            from mmattn.datasets.street import SPLITS, generate

            out = Path(args.out or root)
            images = dict(zip(SPLITS, args.images))
            generate(out, images=images, size=args.size, seed=args.seed, overwrite=args.overwrite)
        elif args.name in ('cityscapes', 'ade20k', 'coco'):  # large: linked, not copied
            elsewhere = root.resolve() != out.resolve()
            if root.is_dir() and elsewhere and (out.exists() or out.is_symlink()):
                raise UsageError(f'{out} is there, but is not {root}. Remove it or set --out.')
            prepare(args.name)(root)
            if elsewhere:
                out.parent.mkdir(parents=True, exist_ok=True)
                try:
                    out.symlink_to(root.resolve())
                    print(f'{out} -> {root}')
                except (OSError, NotImplementedError) as error:  # exFAT, SMB, Google Drive
                    loaders = 'train_dataloader', 'val_dataloader', 'test_dataloader'
                    roots = ' '.join(f'{x}.dataset.data_root={root.resolve()}' for x in loaders)
                    print(
                        f'{out} cannot be a link to {root} ({error}). Train with '
                        f'--cfg-options {roots}'
                    )
                    out = root
        else:
            prepare(args.name)(root, out)
        if args.cache:
            from mmattn.datasets.write_cache import write_cache

            write_cache(args.name, out, args.cache, command=_command(args))
        print(f'done: {out} is ready')

    return run(task, args)
