"""Make a data set ready under data/.

street      generate street scenes in the Cityscapes layout and as COCO JSON
camvid      copy CamVid from --root, void labels set to 255
cityscapes  check a Cityscapes download at --root and write its train ids

Example: python tools/prepare_data.py street --images 400 60 60 --size 512 256
"""

import sys
from pathlib import Path

from mmattn.cli import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('name', choices=['street', 'camvid', 'cityscapes'])
    args.add_argument('--root', help='where the original set lies (default: data/<name>)')
    args.add_argument('--out', help='where the prepared set goes (default: data/<name>)')
    street = args.add_argument_group('street')
    street.add_argument(
        '--images', nargs=3, type=int, default=(400, 60, 60), metavar=('TRAIN', 'VAL', 'TEST')
    )
    street.add_argument('--size', nargs=2, type=int, default=(512, 256), metavar=('W', 'H'))
    street.add_argument('--seed', type=int, default=0)
    street.add_argument('--overwrite', action='store_true', help='replace a street set')
    args = args.parse_args(argv)

    def task() -> None:
        home = Path('data') / args.name
        if args.name == 'street':
            from mmattn.datasets.street import SPLITS, generate

            out = Path(args.out or args.root or home)
            images = dict(zip(SPLITS, args.images))
            generate(out, images=images, size=args.size, seed=args.seed, overwrite=args.overwrite)
        elif args.name == 'camvid':
            from mmattn.datasets.camvid import prepare_camvid

            out = Path(args.out or home)
            prepare_camvid(args.root or home, out)
        else:
            from mmattn.datasets.cityscapes import prepare_cityscapes

            root = Path(args.root or home)
            prepare_cityscapes(root)
            out = Path(args.out or home)
            if not out.exists() and root.resolve() != out.resolve():
                out.parent.mkdir(parents=True, exist_ok=True)
                out.symlink_to(root.resolve())
                print(f'{out} -> {root}')
        print(f'done: {out} is ready')

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
