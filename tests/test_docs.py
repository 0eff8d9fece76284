"""The tests and files that the documents name exist."""

import re

import pytest

from tests.conftest import ROOT

RELIABILITY = (ROOT / 'docs' / 'reliability.md').read_text(encoding='utf-8')
DISTRIBUTED = (ROOT / 'docs' / 'distributed.md').read_text(encoding='utf-8')


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


@pytest.mark.parametrize(
    'path',
    [
        'README.md',
        'SECURITY.md',
        'docs/reliability.md',
        'docs/distributed.md',
        'docs/evaluation.md',
        'docs/guide.md',
        'docs/index.md',
        'docs/start.md',
        'docs/install.md',
        'docs/positions.md',
        'docs/choosing.md',
        'docs/cite.md',
        'docs/own_data.md',
        'docs/data_browser.md',
        'docs/validation_loss.md',
        'docs/training_options.md',
    ],
)
def test_what_is_linked_is_there(path):
    text = (ROOT / path).read_text(encoding='utf-8')
    for target in re.findall(r'\]\((?!https?://|#)([^)#]+)', text):
        assert (ROOT / path).parent.joinpath(target).exists(), target


def test_what_is_code_is_said():
    code = (ROOT / 'SECURITY.md').read_text(encoding='utf-8').partition('## Code')[2]
    for text in '**A config in Python** is executed', 'trust each other', 'ask for JSON':
        assert text in code
    assert '](SECURITY.md)' in (ROOT / 'README.md').read_text(encoding='utf-8')
