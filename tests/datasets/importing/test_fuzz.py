"""Annotation files with any value anywhere are imported or refused in a sentence."""

import json
import random

import pytest

from mmattn.datasets.importing.importer import ImportOptions, import_data
from mmattn.errors import MmattnError
from tests.datasets.importing import fixtures

SPLITS = dict(train=list(fixtures.SCENES)[:4], val=list(fixtures.SCENES)[4:])
VALUES = [
    None, 0, -1, float('inf'), float('nan'), '', 'x', [], {}, [[]], [1], {'a': 1}, True, 10**30, [None],
    '../..', 3.5,
]  # fmt: skip
CASES = [
    ('coco', 'boxes'), ('coco', 'masks'), ('yolo', 'polygons'), ('voc', 'boxes'), ('labelme', 'polygons'),
    ('labelme', 'masks'), ('cvat', 'masks'), ('label_studio', 'polygons'), ('label_studio', 'masks'),
    ('via', 'polygons'), ('supervisely', 'polygons'), ('supervisely', 'masks'),
]  # fmt: skip


def places(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def spoilt(text, rng):
    """A text with another value at one place, or with a few other letters."""
    try:
        content = json.loads(text)
    except ValueError:
        letters = list(text)
        for _ in range(3):
            letters[rng.randrange(len(letters))] = rng.choice(
                ['', '<', '9', '-', '"', 'x', 'é', 'e9']
            )
        return ''.join(letters)
    *path, last = rng.choice(list(places(content)))
    part = content
    for key in path:
        part = part[key]
    if rng.random() < 0.3:
        del part[last]
    else:
        part[last] = rng.choice(VALUES)
    return json.dumps(content)


@pytest.mark.parametrize('name, kind', CASES)
def test_any_value_anywhere(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixtures.FORMATS[name](tmp_path / 'raw', SPLITS, kind)
    suffixes = ('.json', '.xml', '.txt', '.yaml')
    files = sorted(p for p in (tmp_path / 'raw').rglob('*') if p.suffix in suffixes)
    for seed in range(8):
        rng = random.Random(f'{name}{kind}{seed}')
        path = rng.choice(files)
        text = path.read_text()
        path.write_text(spoilt(text, rng))
        try:
            import_data(f'set_{seed}', ['raw'], ImportOptions(format=name), [].append)
        except MmattnError as error:
            assert len(str(error.args[0])) < 1000
        path.write_text(text)
