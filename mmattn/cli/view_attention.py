"""Show where the attention of a network looks on an image: one page to open in a browser, with all
that it needs inside, and a PNG for every map.

Example: python tools/view_attention.py configs/ccnet_r18_street.py best.pth photo.jpg
"""

import sys

from mmattn.cli.common import config_options, network, parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    network(args)
    args.add_argument('image')
    args.add_argument('--out-dir', default='work_dirs/attention', help='default: %(default)s')
    args.add_argument(
        '--query', nargs=2, type=float, default=(0.5, 0.5), metavar=('ROW', 'COLUMN'),
        help='the place that looks, fractions of height and width; default: 0.5 0.5',
    )  # fmt: skip
    args.add_argument(
        '--grad-cam', metavar='LAYER', help='also which places of it speak for a class, e.g. '
        'backbone.layer4; needs the grad-cam package',
    )  # fmt: skip
    args.add_argument('--category', help='the class for --grad-cam; default: the surest')
    args.add_argument('--device', help='cpu, cuda:0, ...; default: the best')
    config_options(args, launcher=False)
    args = args.parse_intermixed_args(argv)

    def task() -> None:
        from mmattn.inference.attention_view import view_attention

        done = view_attention(
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
        size = done.page.stat().st_size / 1e6
        print(
            f'done: {len(done.seen)} blocks in {done.page} ({size:.1f} MB, open it in a browser) '
            f'and {len(done.pictures)} pictures beside it'
        )

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
