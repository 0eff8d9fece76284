"""Read all data of a config once: what is wrong with them, and what they hold.

Every image is decoded, every label map counted. Printed per data set: the share of each class, what
is ignored, what never occurs, every problem; for COCO's format boxes by category and size; at the
end class weights for loss_decode. The exit code is 3 if there is a problem.

Example: python tools/check_data.py configs/ccnet_r50_cityscapes.py --json data.json
"""

import sys

from mmattn.cli.common import image_options, parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('config', help='config file')
    args.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE',
        help='change the config, e.g. train_dataloader.dataset.data_root=DIR',
    )  # fmt: skip
    args.add_argument('--json', metavar='OUT', help='write all problems and all digits there, too')
    image_options(args)
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.datasets.audit import survey

        survey(args.config, options=args.cfg_options, json_path=args.json)

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
