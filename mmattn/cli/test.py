"""Evaluate a checkpoint on the test data of its config.

Prints the metrics and writes them to metrics/<checkpoint>.json in the work dir, with --tta to
metrics/<checkpoint>_tta.json.

Example: python tools/test.py configs/ccnet_r18_street.py work_dirs/ccnet_r18_street/best.pth
"""

from .common import (
    CONFIG_HELP,
    add_config_options,
    add_data_check_option,
    add_data_option,
    add_network_options,
    add_rehearsal_option,
    add_show_options,
    make_parser,
    run,
)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument('checkpoint', help='.pth or .safetensors file')
    parser.add_argument(
        '--work-dir', help='folder for log and metrics (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--out',
        metavar='PATH',
        help='also write all predictions: to a .pkl file, or to a folder as label maps or COCO '
        'results',
    )
    parser.add_argument(
        '--show-dir', metavar='DIR', help='also draw image, ground truth and prediction to DIR'
    )
    parser.add_argument(
        '--report',
        metavar='DIR',
        help='also write an HTML page with tables of classes, curves, confusion matrix and the '
        'worst images to a new folder DIR',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation, by `tta_pipeline` and `tta_model` of the config; default: '
        'average a segmentor over 0.5 to 1.75 times the size, as it is and mirrored; merge the '
        'boxes of a detector in the image and its mirror',
    )
    add_network_options(parser)
    add_show_options(parser)
    add_data_check_option(parser)
    add_rehearsal_option(parser)
    add_data_option(parser)
    add_config_options(parser)
    args = parser.parse_args(argv)

    def task() -> None:
        from mmattn.engine.test import TestOptions, test
        from mmattn.evaluation.report import metric_text

        metrics = test(
            args.config,
            args.checkpoint,
            TestOptions(
                work_dir=args.work_dir,
                out=args.out,
                show_dir=args.show_dir,
                report=args.report,
                show=args.show,
                wait_time=args.wait_time,
                attention=args.attention,
                data=args.data,
                cfg_options=args.cfg_options,
                launcher=args.launcher,
                tta=args.tta,
                amp=args.amp,
                channels_last=args.channels_last,
                compile=args.compile,
                fuse_conv_bn=args.fuse_conv_bn,
                skip_data_check=args.skip_data_check,
                rehearsal=not args.no_rehearsal,
            ),
        )
        for name, value in metrics.items():
            print(f'{name:24s} {metric_text(value)}')

    return run(task, args)
