"""Data sets of your own: import one, look at one.

Example: mmattn data import cells --from DIR
"""

import argparse
import sys
from importlib import import_module

from mmattn.errors import Exit
from mmattn.text import nearest

from .common import SUB_COMMANDS


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    prog = prog or 'mmattn data'
    modules = SUB_COMMANDS['data']
    names = ', '.join(modules)
    parser = argparse.ArgumentParser(
        prog=prog,
        usage='%(prog)s SUB_COMMAND [ARGUMENTS]',
        description=__doc__,
        epilog=f'sub-commands: {names}. {prog} SUB_COMMAND --help shows its arguments.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if not argv or argv[0].startswith('-'):
        if argv:
            parser.parse_args(argv)  # prints help and exits
        parser.print_help(sys.stderr)
        return Exit.USAGE
    module = modules.get(argv[0])
    if module is None:
        hint = nearest(argv[0], modules)
        print(f'error: {prog} has no {argv[0]!r}; there is {names}.{hint}', file=sys.stderr)
        return Exit.USAGE
    return import_module(f'mmattn.cli.{module}').main(argv[1:], prog=f'{prog} {argv[0]}')
