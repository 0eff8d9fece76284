"""What a document in Markdown has: code, commands, quotations, links."""

import re
import shlex

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
        if word == 'mmattn' and words[index + 1 :] and (first or words[0] == 'taskset'):
            return [[words[index + 1].replace('-', '_'), *words[index + 2 :]]]
    return []


def quotations(text: str) -> list[str]:
    """The quotations, each in one line."""
    quotes = re.findall(r'(?:^> .*\n)+', text, re.M)
    return [' '.join(line[2:].strip() for line in quote.splitlines()) for quote in quotes]
