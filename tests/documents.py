"""What a document in Markdown has: code, commands, messages, headings; and whether commands exist."""

import argparse
import re
import shlex
from importlib import import_module

import pytest

from tests.conftest import ROOT

_ENDS = {'&', '&&', '|', '||', ';', '>', '>>', '<', ')', ';;'}  # of a command, in a shell


def code_blocks(text: str, language: str | None = None) -> list[str]:
    """The fenced blocks of code, those of one language only if it is given; '' for none."""
    found, lines = [], None
    for line in text.splitlines():
        fence = re.match(r'\s*```(\S*)', line)
        if lines is None and fence:
            lines, kind = [], fence[1].strip('{}')
        elif lines is not None and fence:
            if language is None or kind == language:
                found.append('\n'.join([*lines, '']))
            lines = None
        elif lines is not None:
            lines.append(line)
    assert lines is None, 'a block of code has no end'
    return found


def commands(text: str) -> list[list[str]]:
    """Our commands in the blocks of code for a shell: the words of each.

    The first word is the module in `mmattn.cli`, such as `train`, whether the document has `mmattn
    train`, `python tools/train.py`, or `torchrun ... tools/train.py`.
    """
    found = []
    for language in '', 'bash', 'console':
        for block in code_blocks(text, language):
            for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
                found += _commands_of(line)
    return found


def inline_commands(text: str) -> list[list[str]]:
    """Our commands in code inside a line, which may lack arguments."""
    prose = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    return [x for code in re.findall(r'`([^`\n]+)`', prose) for x in _commands_of(code)]


def _commands_of(line: str) -> list[list[str]]:
    if not re.search(r'\bmmattn\b|tools/\w+\.py', line):
        return []
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # not a line of a shell
        return []
    found, start = [], 0
    for end in [*(i for i, word in enumerate(words) if word in _ENDS), len(words)]:
        found += _command(words[start:end])
        start = end + 1
    return found


def _command(words: list[str]) -> list[list[str]]:
    """The command among the words of a simple command, after `torchrun`, `VARIABLE=...` or `do`."""
    for index, word in enumerate(words):
        script = re.fullmatch(r'tools/(\w+)\.py', word)
        if script:
            return [[script[1], *words[index + 1 :]]]
        first = index == 0 or words[index - 1] in ('-m', 'do') or '=' in words[index - 1]
        names = re.match(r'\w', ''.join(words[index + 1 : index + 2]))  # not `mmattn --help`
        if word == 'mmattn' and names and (first or words[0] == 'taskset'):
            return [[words[index + 1].replace('-', '_'), *words[index + 2 :]]]
    return []


def messages(text: str) -> list[str]:
    """What a program says, blocks of code in `text`: each message in one line."""
    parts = [part for block in code_blocks(text, 'text') for part in block.split('\n\n')]
    return [' '.join(part.split()) for part in parts]


def headings(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    prose = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    titles = [re.sub(r'[`*]', '', title) for title in re.findall(r'^#+ (.*)$', prose, re.M)]
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


class _Parsed(BaseException):
    """Ends a command after its arguments are parsed."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parse(words: list[str]) -> bool:
    """Whether the command's own parser takes the words; it prints why not."""
    return _run(words, 'parse') is not None


def unknown_words(words: list[str]) -> list[str]:
    """The command or options that do not exist, of a command that may lack arguments."""
    parser = _run(words, 'options')
    if parser is None:
        return words[:1]
    options = [word.partition('=')[0] for word in words if re.match(r'--?[a-z]', word)]
    return [option for option in options if option not in parser._option_string_actions]


def _run(words: list[str], until: str) -> argparse.ArgumentParser | None:
    """Call a command until its arguments are parsed, or until its parser has its options."""
    name, *arguments = words
    if not (ROOT / 'mmattn' / 'cli' / f'{name}.py').exists():
        return None

    def stop(method):
        def parse_and_stop(self, args=None, namespace=None):
            if until == 'parse':
                method(self, args, namespace)
            raise _Parsed(self)

        return parse_and_stop

    with pytest.MonkeyPatch.context() as patch:
        for method in 'parse_args', 'parse_intermixed_args':
            patch.setattr(
                argparse.ArgumentParser, method, stop(getattr(argparse.ArgumentParser, method))
            )
        try:
            import_module(f'mmattn.cli.{name}').main(arguments)
        except _Parsed as parsed:
            return parsed.parser
        except SystemExit:
            return None
    return None
