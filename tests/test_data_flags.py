"""Flags about data: what is too large, and the way past a check."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, tiny_options
from tests.test_tools import flags, tool

CONFIG = str(ROOT / 'configs/fcn_r18_street.py')
SMALL = ['--max-megapixels', '0.001']  # a scene has 0.008


@pytest.fixture(scope='module')
def trained(street, tmp_path_factory):
    work = tmp_path_factory.mktemp('trained')
    options = tiny_options(street) | {'train_cfg.max_iters': 1}
    code = tool('train')([CONFIG, '--work-dir', str(work), '--no-validate', *flags(options)])
    assert code == 0
    return str(work / 'iter_1.pth')


@pytest.mark.parametrize(
    'name', ['train', 'test', 'check_data', 'infer', 'export', 'view_attention']
)
def test_every_reader_keeps_the_limit(name, call, trained):
    said = call(name, config=CONFIG, checkpoint=trained, options=SMALL)
    assert said.code == 3 and 'more than 0.001 megapixels: 1' in said.text
    assert 'pass --max-megapixels 1' in said.text or 'named above' in said.text
    assert call('check_data', config=CONFIG).code == 0  # the limit was of that call


def test_the_limit_is_a_number(capsys):
    for text in 'x', '0', '-1', 'nan':
        with pytest.raises(SystemExit) as ended:
            tool('check_data')([CONFIG, f'--max-megapixels={text}'])
        assert ended.value.code == 2
        assert f'{text} is no number of megapixels, such as 200' in capsys.readouterr().err


def test_there_is_a_way_past_the_check(street, trained, tmp_path, capfd, monkeypatch):
    """Of JPEGs as label maps, which are refused, and here hold one flat class."""
    said = []
    monkeypatch.setattr('mmattn.datasets.validation.warn', said.append)
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    for path in root.rglob('*_labelTrainIds.png'):
        Image.fromarray(np.full((64, 128), 7, np.uint8)).save(path, format='JPEG')
    options = flags(tiny_options(root) | {'train_cfg.max_iters': 1})
    calls = dict(
        train=[CONFIG, '--work-dir', str(tmp_path / 'w'), '--no-validate'],
        test=[CONFIG, trained, '--work-dir', str(tmp_path / 't')],
    )
    for name, arguments in calls.items():
        assert tool(name)([*arguments, *options]) == 3
        assert 'is a JPEG, whose compression changes ids' in capfd.readouterr().err
        assert tool(name)([*arguments, '--skip-data-check', *options]) == 0
        assert len(said) == 1 and said[0].startswith('--skip-data-check: nothing has looked at t')
        said.clear()
