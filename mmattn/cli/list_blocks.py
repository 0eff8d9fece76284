"""List the attention blocks with paper, parameters, MACs and limits.

Also shown: the dimensions that the attention weights run over, and whether a block starts as the
identity. Parameters and MACs are those at 256 channels of 64x64.

Example: python tools/list_blocks.py '*nonlocal*'
"""

from .common import make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        'pattern', nargs='?', default='*', help="glob over block names, e.g. 's*' (default: all)"
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        '--markdown', action='store_true', help='print the Markdown table of the README'
    )
    forms.add_argument(
        '--details',
        action='store_true',
        help='print formula, arguments, origin, place and cost of each block, as in docs/blocks.md',
    )
    args = parser.parse_args(argv)

    def task() -> None:
        from mmattn.zoo.catalogue import list_blocks, print_table, to_markdown

        blocks = list_blocks(args.pattern)
        if args.details:
            from mmattn.zoo.block_pages import to_sections

            print(to_sections(blocks), end='')
        elif args.markdown:
            print(to_markdown(blocks), end='')
        else:
            print_table(blocks)

    return run(task, args)
