"""The benchmark of image formats: equality first, and every format on its own line."""

import json

import numpy as np
import pytest
from PIL import Image

from mmattn.benchmarks import image_formats
from mmattn.benchmarks.timing import ResultsDiffer
from mmattn.errors import Exit
from tools import benchmark as tool


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    monkeypatch.setattr(image_formats, 'describe_machine', lambda: dict(cpu='any'))


@pytest.fixture
def image(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / 'a.png')
    return str(tmp_path / 'a.png')


def test_formats_are_compared_and_measured(image, tmp_path, capsys, monkeypatch):
    out = tmp_path / 'figures.json'
    assert tool.main(['--formats', image, image, '--rounds', '1', '--json', str(out)]) == 0
    rows = {row['name']: row for row in json.loads(out.read_text())['rows']}
    assert rows['BMP']['bytes'] == 2 * (20 * 92 + 54)  # rows are padded to four bytes
    assert rows['PNG, no filter, stored']['bytes'] > 2 * 20 * 91
    assert {'the originals', 'WebP, lossless', 'PNG, no filter, level 1'} <= rows.keys()
    assert all(row['ms'] > 0 for row in rows.values())
    assert '2 images, 0.00 megapixels' in capsys.readouterr().out
    monkeypatch.setattr(image_formats, '_measure_qoi', lambda images, pixels: None)
    image_formats.report_formats([image], 1)
    assert 'no decoder installed' in capsys.readouterr().out


def test_a_format_that_loses_is_not_timed(image, monkeypatch):
    monkeypatch.setattr(image_formats, 'encode', lambda pixels, kind: lossy(pixels))
    with pytest.raises(ResultsDiffer, match='WebP, lossless of .*a.png does not give the same'):
        image_formats.report_formats([image], 1)


def lossy(pixels):
    return image_formats.encode_png(pixels // 2, level=1)


def test_no_image(tmp_path, capsys):
    assert tool.main(['--formats', str(tmp_path / 'b.png')]) == Exit.DATA
    assert 'b.png does not exist' in capsys.readouterr().err
