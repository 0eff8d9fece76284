"""The main job on generated data: makes street scenes, trains CCNet and FCN on them, evaluates,
publishes the weights, draws predictions, and prints what was measured and where it lies.

Example: python tools/demo.py
"""

import sys

from mmattn.cli.common import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('--out-dir', default='work_dirs/demo', help='default: %(default)s')
    args.add_argument('--data', default='data/street', help='default: %(default)s')
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.cli.demo import demo

        demo(args.out_dir, args.data)

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
