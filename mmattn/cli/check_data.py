"""Read all data of a config once and report every problem and statistics.

Every image is decoded, every label map counted. Printed for each data set: the share of each class,
the share of ignored pixels, classes that never occur, and every problem; for COCO's format boxes by
category and size; at the end class weights for loss_decode. The exit code is 3 if there is a
problem.

Example: python tools/check_data.py configs/ccnet_r50_cityscapes.py --json data.json
"""

from .common import CONFIG_HELP, add_data_option, add_image_options, make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE',
        help='override config values, e.g. train_dataloader.dataset.data_root=DIR',
    )  # fmt: skip
    parser.add_argument(
        '--json', metavar='OUT',
        help='also write all problems, and the figures in full precision, to this JSON file',
    )  # fmt: skip
    add_data_option(parser)
    add_image_options(parser)
    args = parser.parse_args(argv)

    def task() -> None:
        from mmattn.datasets.audit import audit

        audit(args.config, options=args.cfg_options, data=args.data, json_path=args.json)

    return run(task, args)
