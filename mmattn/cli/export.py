"""Export a trained network to ONNX or torch.export.

Segmentors are exported whole, of detectors backbone, neck and first head, with dynamic batch,
height and width. The exported program is
compared with torch first, that of a segmentor also with the results of infer.py.

Example: python tools/export.py configs/ccnet_r18_street.py best.pth --images photos/*.jpg
"""

from .common import add_config_options, add_model_arguments, make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    add_model_arguments(parser)
    parser.add_argument(
        '--format', choices=['onnx', 'torch'], default='onnx',
        help='ONNX, or a program of torch.export; default: %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--out', metavar='FILE', help='file to write; default: <config>.onnx or <config>.pt2'
    )
    parser.add_argument(
        '--images', nargs='+', metavar='IMAGE',
        help='images for the comparison; default: noise of two sizes',
    )  # fmt: skip
    add_config_options(parser, launcher=False)
    args = parser.parse_intermixed_args(argv)

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
