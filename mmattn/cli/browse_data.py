"""Draw samples of a data set before and after augmentation, and what the set holds.

Writes a folder with one page, browse.html, and the pictures that it shows; it needs no network. The
samples are the first ones of the training with this seed, after the random transforms that the
training draws for them. Charts show classes, sizes of objects and of images.

Example: python tools/browse_data.py configs/mask_rcnn_r18_street.py --out work_dirs/browse
"""

from .common import (
    CONFIG_HELP,
    add_data_check_option,
    add_data_option,
    add_image_options,
    make_parser,
    run,
)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--out', metavar='DIR', required=True, help='folder for the page and its pictures'
    )
    parser.add_argument(
        '--split', choices=['train', 'val', 'test'], default='train',
        help='data loader to take samples of; default: %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--samples', type=int, default=24, metavar='N',
        help='number of samples to draw; default: %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--seed', type=int, default=0,
        help='seed of the training, for the order and the augmentation; default: %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE',
        help='override config values, e.g. train_dataloader.dataset.data_root=DIR',
    )  # fmt: skip
    add_data_option(parser)
    add_image_options(parser)
    add_data_check_option(parser)
    args = parser.parse_args(argv)

    def task() -> None:
        from mmattn.analysis.browse_data import browse

        page = browse(
            args.config,
            args.out,
            split=args.split,
            samples=args.samples,
            seed=args.seed,
            data=args.data,
            options=args.cfg_options,
            skip_data_check=args.skip_data_check,
        )
        print(f'done: open {page} in a browser')

    return run(task, args)
