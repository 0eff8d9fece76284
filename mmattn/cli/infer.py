"""Run a trained network on an image, a folder, a glob pattern or a video.

Writes pictures as PNG or MP4, label maps as PNG, and detections as JSON in COCO's format.

Examples:
  python tools/infer.py configs/ccnet_r18_street.py best.pth photos/ --out-dir out
  python tools/infer.py ann_r50_512x1024_40k_cityscapes 'photos/*.jpg'
"""

from .common import (
    add_config_options,
    add_model_arguments,
    add_network_options,
    add_show_options,
    make_parser,
    run,
)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    add_model_arguments(parser)
    parser.add_argument('source', metavar='SOURCE', help='image, folder, glob pattern or video')
    parser.add_argument(
        '--out-dir', default='work_dirs/infer', help='folder for the results; default: %(default)s'
    )
    parser.add_argument(
        '--score', type=float, default=0.3,
        help='lowest score of a drawn detection; default: %(default)s',
    )  # fmt: skip
    parser.add_argument('--device', help='cpu, cuda:0, ...; default: the fastest device available')
    add_network_options(parser)
    add_show_options(parser)
    add_config_options(parser, launcher=False)
    args = parser.parse_intermixed_args(argv)

    def task() -> None:
        from mmattn.errors import DataError
        from mmattn.inference.infer import infer

        result = infer(
            args.config,
            args.checkpoint,
            args.source,
            out_dir=args.out_dir,
            attention=args.attention,
            options=args.cfg_options,
            score=args.score,
            device=args.device,
            amp=args.amp,
            channels_last=args.channels_last,
            compile=args.compile,
            fuse_conv_bn=args.fuse_conv_bn,
            show=args.show,
            wait_time=args.wait_time,
        )
        total, network = result.seconds
        print(
            f'done: {result.images} images in {total:.1f} s, {network:.1f} s of it in the network; '
            f'they are in {args.out_dir}'
        )
        if result.failed:
            failures = [
                reason if source in reason else f'{source}: {reason}'
                for source, reason in result.failed.items()
            ]
            raise DataError(f'{len(failures)} left out, the others are done:', failures)

    return run(task, args)
