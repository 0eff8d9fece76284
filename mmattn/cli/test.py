"""Evaluate a checkpoint on the test data of its config: prints the metrics, and writes them to
metrics/<checkpoint>.json of the work dir, with --tta to metrics/<checkpoint>_tta.json.

Example: python tools/test.py configs/ccnet_r18_street.py work_dirs/ccnet_r18_street/best.pth
"""

import sys

from mmattn.cli.common import config_options, parser, rehearsal_option, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('config', help='config file')
    args.add_argument('checkpoint', help='.pth or .safetensors')
    args.add_argument('--work-dir', help='where the record goes (default: work_dirs/<config name>)')
    args.add_argument(
        '--out',
        metavar='PATH',
        help='a .pkl for all predictions, or a folder for PNGs or COCO results',
    )
    args.add_argument('--show-dir', metavar='DIR', help='pictures of image, truth and prediction')
    args.add_argument(
        '--tta',
        action='store_true',
        help='average a segmentor over scales and flips, as `tta_pipeline` of the config says '
        '(default: 0.5 to 1.75 times the size, as it is and mirrored)',
    )
    args.add_argument(
        '--skip-data-check',
        action='store_true',
        help='do not look at the files of the data first: that refuses what you know is right',
    )
    rehearsal_option(args)
    config_options(args)
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.engine.test import TestOptions, test

        metrics = test(
            args.config,
            args.checkpoint,
            TestOptions(
                work_dir=args.work_dir,
                out=args.out,
                show_dir=args.show_dir,
                attention=args.attention,
                cfg_options=args.cfg_options,
                launcher=args.launcher,
                tta=args.tta,
                skip_data_check=args.skip_data_check,
                rehearsal=not args.no_rehearsal,
            ),
        )
        for name, value in metrics.items():
            print(f'{name:24s} {"absent" if value != value else value}')

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
