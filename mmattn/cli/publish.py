"""Turn a training checkpoint into weights to give away: .safetensors and .pth named by their
sha256, and a model card with config, metric, data and command.

Example: python tools/publish.py configs/ccnet_r18_street.py work_dirs/ccnet_r18_street/best.pth
"""

import sys

from mmattn.cli.common import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('config', help='config file')
    args.add_argument('checkpoint', help='what training wrote')
    args.add_argument('--out-dir', default='work_dirs/published', help='default: %(default)s')
    args.add_argument(
        '--hub', metavar='OWNER/NAME', help='upload to this repository of the Hugging Face Hub, too'
    )
    args.add_argument('--private', action='store_true', help='if the repository has to be made')
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.zoo.publish import publish, upload

        paths = publish(args.config, args.checkpoint, args.out_dir)
        for path in paths.values():
            print(path)
        if args.hub:
            print(upload(paths, args.hub, private=args.private))

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
