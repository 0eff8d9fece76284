"""Plot the score of each class for several models, as configs/metafile.yml has it.

Example: python tools/plot_classes.py fcn_r18_camvid ccnet_r18_camvid --out docs/camvid_classes.png
"""

from .common import make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('names', nargs='+', metavar='NAME', help='names of models in the metafile')
    parser.add_argument('--out', required=True, metavar='PNG', help='picture to write')
    parser.add_argument(
        '--metafile', default='configs/metafile.yml',
        help='file with the measured scores; default: %(default)s',
    )  # fmt: skip
    args = parser.parse_args(argv)

    def task() -> None:
        from mmattn.visualization.class_scores import plot_classes

        plot_classes(args.names, args.out, args.metafile)
        print(args.out)

    return run(task, args)
