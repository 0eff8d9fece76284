"""What the documents say of tests and files is so."""

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
    rows = re.findall(r'^\| (\d+) ([^|]*)\|.*\|([^|]*)\|$', covered, re.MULTILINE)
    assert all(what.strip() and 'tests/' in tests for _, what, tests in rows)
    numbers = [int(number) for number, *_ in rows]
    assert len(numbers) == len(set(numbers))
    reasons = re.findall(r'^\| ([\d, ]+) \| [^|]+ \| [^|]{20,} \|$', rest, re.MULTILINE)
    left = {int(number) for numbers in reasons for number in numbers.split(',')}
    assert set(range(1, 96)) <= {*numbers} | left
    assert set(range(1, 96)) - {*numbers} == {91}


@pytest.mark.parametrize(
    'path',
    [
        'README.md',
        'SECURITY.md',
        'docs/reliability.md',
        'docs/distributed.md',
        'docs/guide.md',
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
