"""Write a trained network as ONNX or as a program of torch.export, with dynamic batch, height and
width, after comparing it with torch and, of segmentors, with what infer.py computes: segmentors
whole, of detectors backbone, neck and first head.

Example: python tools/export.py configs/ccnet_r18_street.py best.pth --images photos/*.jpg
"""

import sys

from mmattn.cli.common import config_options, network, parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    network(args)
    args.add_argument('--format', choices=['onnx', 'torch'], default='onnx')
    args.add_argument('--out', metavar='FILE', help='default: <config>.onnx or .pt2')
    args.add_argument(
        '--images', nargs='+', metavar='IMAGE', help='compare on these; default: on noise'
    )
    config_options(args, launcher=False)
    args = args.parse_intermixed_args(argv)

    def task() -> None:
        from mmattn.inference.export import describe, export

        print(
            describe(
                export(
                    args.config,
                    args.checkpoint,
                    args.format,
                    out=args.out,
                    images=args.images,
                    attention=args.attention,
                    options=args.cfg_options,
                )
            )
        )

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
