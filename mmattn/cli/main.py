"""The command `mmattn`: `mmattn train`, `mmattn test`, ...; loads a command when it is called."""

import argparse
import ast
import difflib
import sys
from importlib import import_module
from pathlib import Path

from mmattn import __version__
from mmattn.errors import Exit

from .common import command_name

COMMANDS = (  # modules of this package, in the order of use
    'prepare_data',
    'data',
    'check_data',
    'train',
    'test',
    'infer',
    'evaluate',
    'publish',
    'export',
    'view_attention',
    'list_blocks',
    'cost',
    'ablate',
    'tune',
    'probe',
    'benchmark',
    'gpu_report',
    'plot_classes',
    'torture',
    'exit_code',
    'demo',
)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog='mmattn',
        usage='%(prog)s COMMAND [ARGUMENTS]',
        description='Attention for detection and segmentation on the MMCV ecosystem.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'mmattn {__version__}')
    if not argv or argv[0].startswith('-'):
        parser.epilog = _list_commands()
        if argv:
            parser.parse_args(argv)  # prints help or version and exits
        parser.print_help(sys.stderr)
        return Exit.USAGE
    module = argv[0].replace('-', '_')
    if module not in COMMANDS:
        matches = difflib.get_close_matches(module, COMMANDS, n=3)
        hint = f'nearest: {", ".join(map(command_name, matches))}. ' if matches else ''
        print(
            f'error: mmattn has no command {argv[0]!r}; {hint}Run mmattn --help for all commands.',
            file=sys.stderr,
        )
        return Exit.USAGE
    command = import_module(f'mmattn.cli.{module}')
    return command.main(argv[1:], prog=f'mmattn {command_name(module)}')


def _list_commands() -> str:
    """Name and first sentence of every command, without importing it."""
    width = max(map(len, COMMANDS))
    lines = [f'  {command_name(name):{width}s}  {_summary(name)}' for name in COMMANDS]
    return '\n'.join(['commands:', *lines, '', 'mmattn COMMAND --help shows its arguments.'])


def _summary(name: str) -> str:
    source = Path(__file__).with_name(f'{name}.py').read_text(encoding='utf-8')
    return ast.get_docstring(ast.parse(source)).partition('\n')[0]
