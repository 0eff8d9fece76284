"""Run a trained network over an image or a folder: label maps and overlays as PNG.

Example: python tools/infer.py configs/ccnet_r18_street.py best.pth photos/ --out-dir out
"""

import sys

from mmattn.cli import config_options, parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('config', help='config file')
    args.add_argument('checkpoint', help='.pth or .safetensors')
    args.add_argument('source', metavar='IMAGE_OR_DIR', help='an image, or a folder of images')
    args.add_argument('--out-dir', default='work_dirs/infer', help='default: %(default)s')
    config_options(args, launcher=False)
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.engine.infer import infer

        written = infer(
            args.config,
            args.checkpoint,
            args.source,
            out_dir=args.out_dir,
            attention=args.attention,
            options=args.cfg_options,
        )
        print(f'done: {len(written)} images, labels and overlays are in {args.out_dir}')

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
