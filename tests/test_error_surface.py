"""Whatever a path leads to: one sentence with the exit code of its kind, and no traceback without -v."""

import json
import shutil

import pytest
import torch

from tests.conftest import ROOT
from tests.test_security import CONFIG, DETECTOR, written
from tests.test_tools import in_the_project, tool  # noqa: F401

CONFIGS = (
    'train',
    'test',
    'infer',
    'publish',
    'view_attention',
    'export',
    'cost',
    'ablate',
    'check_data',
)
CHECKPOINTS = 'resume', 'init_from', 'test', 'infer', 'publish', 'view_attention', 'export'
KINDS = ('missing', 'folder', 'empty', 'bytes', 'page', 'text', 'below a file')


def spoilt(kind, path):
    """What a path leads to instead of what is wanted."""
    if kind == 'folder':
        path.mkdir()
    elif kind == 'below a file':
        path.write_text('')
        return path / path.name
    elif kind != 'missing':
        content = dict(
            empty=b'', bytes=bytes(range(256)), page=b'<html></html>', text=b'{"a": [1]}'
        )
        path.write_bytes(content[kind])
    return path


@pytest.fixture
def little(tmp_path):
    """A checkpoint that can be read, and fits nothing."""
    return written(tmp_path / 'little.pth', dict(x=torch.zeros(1)), {})


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('suffix', ['.py', '.json', '.yaml'])
def test_a_config_that_is_none(kind, suffix, call, little, tmp_path):
    path = spoilt(kind, tmp_path / f'a{suffix}')
    for name in CONFIGS if kind in ('missing', 'bytes') else ('check_data',):
        said = call(name, path, little)
        assert said.code == 2 and len(said.errors) == 1 and path.stem in said.text, (
            name,
            said.text,
        )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_checkpoint_that_is_none(kind, suffix, call, tmp_path):
    path = spoilt(kind, tmp_path / f'a{suffix}')
    for name in CHECKPOINTS if kind == 'missing' else ('publish',):
        said = call(name, checkpoint=path)
        assert said.code == 4 and len(said.errors) == 1 and path.stem in said.text, (
            name,
            said.text,
        )


@pytest.mark.parametrize('kind', KINDS)
def test_an_image_that_is_none(kind, call, little, tmp_path):
    path = spoilt(kind, tmp_path / 'a.png')
    said = call('view_attention', checkpoint=little, image=path)
    assert said.code == 3 and len(said.errors) == 1 and path.name in said.text


@pytest.mark.parametrize('kind', KINDS)
def test_annotations_that_are_none(kind, call, little, street, tmp_path, capfd):
    name = 'annotations/instancesonly_filtered_gtFine_{}.json'
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    for split in 'train', 'test':
        (root / name.format(split)).unlink()
        path = spoilt(kind, root / name.format(split))
    for tool_name in 'train', 'test', 'check_data':
        said = call(tool_name, DETECTOR, little, root)
        assert said.code == 3 and len(said.errors) == 1, said.text
    sound = str(street / name.format('val'))
    (tmp_path / 'results.json').write_text(json.dumps([]))
    for pair in ([str(path), str(tmp_path / 'results.json')], [sound, str(path)]):
        code = tool('evaluate')(['coco', '--annotations', pair[0], '--results', pair[1]])
        said = capfd.readouterr().err
        assert code == 3 and 'Traceback' not in said and said.count('error: ') == 1, said


@pytest.mark.parametrize('name', ['cityscapes', 'ade20k', 'coco', 'bccd', 'dsb2018', 'camvid'])
@pytest.mark.parametrize('kind', ['missing', 'folder', 'bytes', 'below a file'])
def test_a_download_that_is_none(name, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = spoilt(kind, tmp_path / 'raw')
    assert tool('prepare_data')([name, '--root', str(root)]) == 3
    said = capsys.readouterr().err
    assert 'Traceback' not in said and said.count('error: ') == 1 and str(root) in said


@pytest.mark.parametrize('name', ['train', 'test', 'infer', 'view_attention'])
def test_a_folder_that_cannot_be_written(name, call, little, tmp_path):
    for folder in 'work', 'out':
        (tmp_path / folder).write_text('kept')
    said = call(name, checkpoint=little)
    assert said.code == 7 and len(said.errors) == 1, said.text
    assert (tmp_path / 'work').read_text() == (tmp_path / 'out').read_text() == 'kept'


def test_v_shows_the_traceback(capsys):
    assert tool('cost')([str(ROOT / 'none.py'), '-v']) == 2
    said = capsys.readouterr().err
    assert 'Traceback' in said and said.splitlines()[-1].startswith('error: config ')
    assert tool('cost')([CONFIG.replace('street', 'stret')]) == 2
    said = capsys.readouterr().err
    assert 'Traceback' not in said and 'Did you mean ccnet_r18_street?' in said
