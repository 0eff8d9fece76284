"""What the documents name exists: tests, files, headings, commands and their options."""

import re

import pytest

from tests.conftest import ROOT
from tests.documents import code_blocks, commands, headings, inline_commands, parse, unknown_words

RELIABILITY = (ROOT / 'docs' / 'reliability.md').read_text(encoding='utf-8')
DISTRIBUTED = (ROOT / 'docs' / 'distributed.md').read_text(encoding='utf-8')
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'))
    # generated pages are there only after a build of the site, which checks them
    if not {'_build', 'generated'} & {*path.parts} and path.name != 'CHANGELOG.md'
)


def test_every_test_that_is_named_exists():
    documents = RELIABILITY + DISTRIBUTED
    named = set(re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', documents))
    assert len(named) > 100
    for path in {path for path, _ in named}:
        text = (ROOT / path).read_text(encoding='utf-8')
        there = set(re.findall(r'^def (\w+)\(', text, re.MULTILINE))
        assert {name for file, name in named if file == path} <= there, path
    assert set(re.findall(r'tests/\S*?::\w+', documents)) == {'::'.join(pair) for pair in named}


def test_every_case_has_a_row_with_a_test_or_a_reason():
    covered, _, rest = RELIABILITY.partition('### Not covered, and why')
    cases = []
    for table in re.findall(
        r'^\| case \| promise \| test \|\n((?:\|.*\n)+)', covered, re.MULTILINE
    ):
        for row in table.splitlines()[1:]:
            case, promise, tests = re.fullmatch(r'\| (.*?) \| (.*) \| (.*?) \|', row).groups()
            assert promise and re.match(r'`tests/', tests), row
            cases.append(case)
    assert len(cases) == len(set(cases)) >= 97
    rows = re.findall(r'^\| (?!case|-)(.*)\|$', rest, re.MULTILINE)
    assert len(rows) >= 8
    assert all(re.fullmatch(r'[^|]+ \| [^|]+ \| [^|]{20,} ', row) for row in rows)


@pytest.mark.parametrize('path', PAGES)
def test_what_is_linked_is_there(path):
    """Files, and headings in them."""
    text = (ROOT / path).read_text(encoding='utf-8')
    prose = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    for target in re.findall(r'\]\((?!https?://)([^)\s]+)\)', prose):
        name, _, heading = target.partition('#')
        file = (ROOT / path).parent / name if name else ROOT / path
        assert file.exists(), f'{path} links {target}'
        if heading:
            assert heading in headings(file.read_text(encoding='utf-8')), f'{path} links {target}'


@pytest.mark.parametrize('path', PAGES)
def test_python_of_a_page_is_python(path):
    for block in code_blocks((ROOT / path).read_text(encoding='utf-8'), 'python'):
        compile(block, path, 'exec')


@pytest.mark.parametrize('path', PAGES)
def test_commands_are_those_of_the_parsers(path, capsys):
    """Each in a block of code parses; in a line of text, its command and options exist."""
    text = (ROOT / path).read_text(encoding='utf-8')
    for words in commands(text):
        assert parse(words), f'{path}: {" ".join(words)}\n{capsys.readouterr().err}'
    for words in inline_commands(text):
        assert unknown_words(words) == [], f'{path}: {" ".join(words)}'


def test_a_wrong_command_is_found():
    text = '```\nmmattn trian a.py\nOMP_NUM_THREADS=1 mmattn train a.py --amp --sede 1 # or\n```\n'
    wrong, option = commands(text)
    assert wrong == ['trian', 'a.py'] and option == ['train', 'a.py', '--amp', '--sede', '1']
    assert not parse(wrong) and not parse(option) and parse(['train', 'a.py', '--seed', '1'])
    text = 'Run `mmattn test --reports` or `python tools/torture.py A --kills 3`, not `mmattn`.'
    first, second = inline_commands(text)
    assert unknown_words(first) == ['--reports'] and unknown_words(second) == []
    assert unknown_words(['data', 'browse', 'CONFIG', '--outs']) == ['--outs']


def test_commands_are_found_where_pages_have_them():
    lines = (
        'for i in 1 2; do A=1 mmattn train a.py --work-dir w$i & done; wait',
        'taskset -c 0-3 mmattn check-data a.py',
        'torchrun --nproc-per-node 4 tools/train.py a.py \\\n    --launcher pytorch | tee log',
        'torchrun -m mmattn test a.py b.pth',
        'pip install mmattn',
        'mim train mmattn a.py',
    )
    found = commands('\n'.join(['```', *lines, '```']))
    assert found == [
        ['train', 'a.py', '--work-dir', 'w$i'],
        ['check_data', 'a.py'],
        ['train', 'a.py', '--launcher', 'pytorch'],
        ['test', 'a.py', 'b.pth'],
    ]


def test_what_is_code_is_said():
    code = (ROOT / 'SECURITY.md').read_text(encoding='utf-8').partition('## Code')[2]
    for text in '**A config in Python** is executed', 'trust each other', 'ask for JSON':
        assert text in code
    assert '](SECURITY.md)' in (ROOT / 'README.md').read_text(encoding='utf-8')
