"""Run a trained network over an image, a folder, a glob pattern or a video: pictures as PNG or MP4,
label maps as PNG, detections as JSON in COCO's format.

Examples:
  python tools/infer.py configs/ccnet_r18_street.py best.pth photos/ --out-dir out
  python tools/infer.py ann_r50_512x1024_40k_cityscapes 'photos/*.jpg'
"""

import sys

from mmattn.cli.common import config_options, network, parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    network(args)
    args.add_argument('source', metavar='SOURCE', help='image, folder, glob pattern or video')
    args.add_argument('--out-dir', default='work_dirs/infer', help='default: %(default)s')
    args.add_argument(
        '--score', type=float, default=0.3, help='least score that is drawn; default: %(default)s'
    )
    args.add_argument('--device', help='cpu, cuda:0, ...; default: the best')
    config_options(args, launcher=False)
    args = args.parse_intermixed_args(argv)

    def task() -> None:
        from mmattn.errors import DataError
        from mmattn.inference.infer import infer

        done = infer(
            args.config,
            args.checkpoint,
            args.source,
            out_dir=args.out_dir,
            attention=args.attention,
            options=args.cfg_options,
            score=args.score,
            device=args.device,
        )
        total, network = done.seconds
        print(
            f'done: {done.images} images in {total:.1f} s, {network:.1f} s of it in the network; '
            f'they are in {args.out_dir}'
        )
        if done.failed:
            every = [
                why if source in why else f'{source}: {why}' for source, why in done.failed.items()
            ]
            raise DataError(f'{len(every)} left out, the others are done:', every)

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
