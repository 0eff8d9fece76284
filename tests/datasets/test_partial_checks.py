"""Data that the check cannot look at, or that nobody reads, pass if the stock loader takes them."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.backends.registry_utils import backends
from mmengine.registry import DATASETS, init_default_scope

from mmattn.datasets.build import build_dataset
from mmattn.datasets.label_maps import LabelMaps
from mmattn.datasets.validation import check_data
from mmattn.errors import DataError, UsageError
from tests.datasets.small_sets import box_set, label_set

TRAIN, TEST = 'train_dataloader', 'test_dataloader'


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr('mmattn.datasets.validation.warn', lines.append)
    return lines


@pytest.fixture
def archive():
    """A file client that reads from an archive, as users register one."""

    class Archive(LocalBackend):
        def get(self, filepath):
            file, _, name = str(filepath).partition('.zip/')
            with zipfile.ZipFile(f'{file}.zip') as archive:
                return archive.read(name)

        def list_dir_or_file(self, dir_path, dirs=True, files=True, suffix=None, recursive=False):
            file, _, folder = str(dir_path).partition('.zip/')
            with zipfile.ZipFile(f'{file}.zip') as archive:
                for name in archive.namelist():
                    if name.startswith(f'{folder}/') and name.endswith(suffix):
                        yield name[len(folder) + 1 :]

        def isdir(self, filepath):
            return '.zip' in str(filepath)

    register_backend('archive', Archive)
    yield dict(backend='archive')
    del backends['archive']


def pack(root):
    with zipfile.ZipFile(root / 'set.zip', 'w') as archive:
        for path in [*root.rglob('*.png')]:
            archive.write(path, path.relative_to(root))
            path.unlink()


def test_files_of_another_client_are_left_to_it(archive, said, tmp_path):
    init_default_scope('mmseg')
    leaf = label_set(tmp_path / 'maps') | dict(backend_args=archive)
    for step in leaf['pipeline']:
        step['backend_args'] = archive
    leaf['data_root'] += '/set.zip'
    pack(tmp_path / 'maps')
    labels = {int(v) for i in range(4) for v in np.unique(DATASETS.build(leaf)[i]['gt_seg_map'])}
    assert labels == {0, 1, 2}
    check_data(leaf, TRAIN)
    assert re.search(r'file client archive, so the check looks at none of its 4 images', said[0])
    with pytest.raises(DataError, match='holds 0 of 0 images by the file client archive'):
        check_data(dict(leaf, img_suffix='.jpg'), TRAIN)
    for name in 'http', 'petrel':
        with pytest.raises(DataError, match=rf"Is backend_args=\{{'backend': '{name}'\}} right\?"):
            check_data(dict(leaf, backend_args=dict(backend=name)), TRAIN)


def test_pictures_alone_may_lie_behind_another_client(archive, said, tmp_path):
    init_default_scope('mmdet')
    leaf = box_set(tmp_path)
    pack(tmp_path)
    leaf['pipeline'][0]['backend_args'] = archive
    leaf['data_prefix'] = dict(img='set.zip/img')
    check_data(leaf, TRAIN)
    assert 'none of its 3 images' in said[0]
    empty = dict(leaf, filter_cfg=dict(min_size=33))
    with pytest.raises(DataError, match='holds 0 of 3 images by the file client archive'):
        check_data(empty, TRAIN)


def test_label_maps_that_nobody_reads_need_not_be_there(tmp_path):
    init_default_scope('mmseg')
    leaf = label_set(tmp_path)
    for path in (tmp_path / 'mask').iterdir():
        path.unlink()
    (tmp_path / 'mask').rmdir()
    bare = dict(leaf, pipeline=leaf['pipeline'][:1], test_mode=True)
    writes = dict(type='IoUMetric', format_only=True, output_dir='out')
    check_data(bare, TEST, writes)
    for one, where, evaluator in (
        (leaf, TEST, writes),
        (bare, TEST, dict(type='IoUMetric')),
        (bare, TEST, [writes, dict(type='IoUMetric')]),
        (bare, TRAIN, writes),
    ):
        with pytest.raises(DataError, match='mask does not exist'):
            check_data(one, where, evaluator)
    (tmp_path / 'img/2.png').write_bytes(b'')
    with pytest.raises(DataError, match='2.png is empty. Replace the file'):
        check_data(bare, TEST, writes)
    with pytest.raises(DataError, match=r'no image \*\.jpg'):
        check_data(dict(bare, img_suffix='.jpg'), TEST, writes)


# ---- lists, cuts, suffixes ------------------------------------------------------------------------
def test_what_indices_leave_out_need_not_be_there(said, tmp_path):
    init_default_scope('mmseg')
    leaf = label_set(tmp_path)
    (tmp_path / 'mask/3.png').unlink()
    for indices, count in (3, 3), ([0, 2], 2), ((1,), 1):
        cut = dict(leaf, indices=indices)
        assert len(DATASETS.build(cut)) == count
        check_data(cut, TRAIN)
        assert LabelMaps(build_dataset(cut), cut, TRAIN).count == count
    assert not said
    for indices in -1, 4, [3]:
        with pytest.raises(DataError, match='have no label map, e.g. .*3.png'):
            check_data(dict(leaf, indices=indices), TRAIN)
    with pytest.raises(DataError, match='indices=0 leaves none of 4 images. Leave it out'):
        check_data(dict(leaf, indices=0), TRAIN)
    for none in 0, []:
        with pytest.raises(UsageError, match='dataset.indices=.* leaves no image. Leave it out'):
            check_data(dict(leaf, indices=none), TEST)


def test_the_mark_of_a_list_is_taken_off_by_what_is_advised(tmp_path):
    init_default_scope('mmseg')
    leaf = label_set(tmp_path) | dict(ann_file='list.txt')
    file = tmp_path / 'list.txt'
    file.write_text('\ufeff0\n2\n', encoding='utf-8')
    with pytest.raises(DataError, match='starts with a byte-order mark. Take it off: ') as info:
        check_data(leaf, TRAIN)
    command = str(info.value).split('Take it off: ')[1].replace('python', sys.executable, 1)
    subprocess.run(command, shell=True, check=True, timeout=60)
    check_data(leaf, TRAIN)
    assert file.read_text() == '0\n2\n' and len(DATASETS.build(leaf)) == 2
    file.write_text('')
    with pytest.raises(DataError, match=r'list.txt names no image. Set ann_file'):
        check_data(leaf, TRAIN)


def test_without_a_suffix_the_one_that_is_there_is_named(tmp_path):
    init_default_scope('mmseg')
    leaf = label_set(tmp_path) | dict(img_suffix='')
    with pytest.raises(DataError, match=r"There are 4 \*\.png: set img_suffix='\.png'"):
        check_data(leaf, TRAIN)
    check_data(dict(leaf, img_suffix='.png'), TRAIN)


@pytest.mark.parametrize('value, name', [(0, 'ground'), (2, 'square')])
def test_maps_of_one_class_are_named(value, name, said, tmp_path):
    init_default_scope('mmseg')
    leaf = label_set(tmp_path, change=lambda labels: labels * 0 + value)
    check_data(leaf, TRAIN)
    (line,) = said
    assert f'every pixel is {name!r}, so there is nothing to tell it from' in line
    said.clear()
    check_data(label_set(Path(tmp_path) / 'two', change=lambda labels: labels.clip(0, 1)), TRAIN)
    assert not said
