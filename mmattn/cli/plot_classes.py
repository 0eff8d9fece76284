"""Draw the measured figures of several models, class by class, from configs/metafile.yml.

Example: python tools/plot_classes.py fcn_r18_camvid ccnet_r18_camvid --out docs/camvid_classes.png
"""

import sys

from mmattn.cli.common import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('names', nargs='+', metavar='NAME', help='models of the metafile')
    args.add_argument('--out', required=True, metavar='PNG', help='the picture')
    args.add_argument('--metafile', default='configs/metafile.yml', help='default: %(default)s')
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.visualization.class_scores import plot_classes

        plot_classes(args.names, args.out, args.metafile)
        print(args.out)

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
