"""Turn a training checkpoint into weights to publish, with a model card.

Writes .safetensors and .pth named by their sha256, a card with config, metric, data and command,
and the config as data. With --hub they are uploaded in one commit, and
mmattn.from_pretrained('OWNER/NAME') loads them.

Example: python tools/publish.py configs/ccnet_r18_street.py work_dirs/ccnet_r18_street/best.pth
"""

from .common import CONFIG_HELP, make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument('checkpoint', help='checkpoint that training wrote')
    parser.add_argument(
        '--out-dir', default='work_dirs/published',
        help='folder for weights and card; default: %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--hub', metavar='OWNER/NAME',
        help='also upload to this repository of the Hugging Face Hub',
    )  # fmt: skip
    parser.add_argument(
        '--private', action='store_true', help='create the Hub repository as a private one'
    )
    parser.add_argument(
        '--license', metavar='ID',
        help="the hub's name of the licence, such as apache-2.0, for the card; default: that of "
        'the data, if known',
    )  # fmt: skip
    parser.add_argument(
        '--half', action='store_true', help='round the weights to float16: half the size'
    )
    args = parser.parse_args(argv)

    def task() -> None:
        from mmattn.zoo.publish import publish, upload

        paths = publish(
            args.config, args.checkpoint, args.out_dir, license=args.license, half=args.half
        )
        for path in paths.values():
            print(path)
        if args.hub:
            print(upload(paths, args.hub, private=args.private))

    return run(task, args)
