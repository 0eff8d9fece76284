"""List the attention blocks: paper and year, what their weights run over, parameters and MACs at
256 channels of 64x64, whether they start as the identity, and what they cannot do.

Example: python tools/list_blocks.py '*nonlocal*'
"""

import sys

from mmattn.cli.common import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument(
        'pattern', nargs='?', default='*', help="of the name, e.g. 's*'; default: all"
    )
    args.add_argument('--markdown', action='store_true', help='write the table of the README')
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.zoo.catalogue import list_blocks, print_table, to_markdown

        blocks = list_blocks(args.pattern)
        if args.markdown:
            print(to_markdown(blocks), end='')
        else:
            print_table(blocks)

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
