"""Show where the attention of a network looks on an image.

Writes one self-contained HTML page and a PNG of every map.

Example: python tools/view_attention.py configs/ccnet_r18_street.py best.pth photo.jpg
"""

from .common import add_config_options, add_model_arguments, make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    add_model_arguments(parser)
    parser.add_argument('image', help='image file')
    parser.add_argument(
        '--out-dir', default='work_dirs/attention',
        help='folder for page and pictures; default: %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--query', nargs=2, type=float, default=(0.5, 0.5), metavar=('ROW', 'COLUMN'),
        help='query position of pairwise attention, as fractions of height and width; default: 0.5 '
        '0.5',
    )  # fmt: skip
    parser.add_argument(
        '--grad-cam', metavar='LAYER',
        help='also draw the Grad-CAM of a layer, e.g. backbone.layer4; needs the grad-cam package',
    )  # fmt: skip
    parser.add_argument(
        '--category', help='class for --grad-cam; default: the one with the highest score'
    )
    parser.add_argument('--device', help='cpu, cuda:0, ...; default: the fastest device available')
    add_config_options(parser, launcher=False)
    args = parser.parse_intermixed_args(argv)

    def task() -> None:
        from mmattn.inference.attention_view import view_attention

        view = view_attention(
            args.config,
            args.checkpoint,
            args.image,
            out_dir=args.out_dir,
            query=tuple(args.query),
            attention=args.attention,
            options=args.cfg_options,
            device=args.device,
            cam=args.grad_cam,
            category=args.category,
        )
        size = view.page.stat().st_size / 1e6
        print(
            f'done: {len(view.blocks)} blocks in {view.page} ({size:.1f} MB, open it in a browser) '
            f'and {len(view.pictures)} pictures next to it'
        )

    return run(task, args)
