import shutil

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope

from mmattn.datasets.check import check_classes, check_data
from mmattn.errors import DataError, UsageError

TRAIN = 'street_000001_000000'


@pytest.fixture
def broken(street, tmp_path):
    """A copy of the tiny set to damage, its image and its label map, and a check of it."""
    init_default_scope('mmseg')
    root = tmp_path / 'street'
    shutil.copytree(street, root)
    image = root / 'leftImg8bit/train/street' / f'{TRAIN}_leftImg8bit.png'
    label = root / 'gtFine/train/street' / f'{TRAIN}_gtFine_labelTrainIds.png'

    def check():
        prefix = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')
        leaf = dict(type='CityscapesDataset', data_root=str(root), data_prefix=prefix)
        check_data(dict(type='RepeatDataset', times=2, dataset=leaf), 'train_dataloader')

    return root, image, label, check


def test_a_sound_set_passes_and_the_verdict_is_kept(broken, monkeypatch):
    *_, check = broken
    check()
    monkeypatch.setattr('mmattn.datasets.check._check_pair', lambda *_, **__: 'looked at again')
    check()


def test_missing_root(broken):
    root, *_, check = broken
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r'does not exist. Make it with: python tools/prepare_data'):
        check()


def test_empty_folder(broken):
    root, *_, check = broken
    shutil.rmtree(root / 'leftImg8bit/train/street')
    with pytest.raises(DataError, match='no image'):
        check()


def test_half_a_set(broken):
    _, _, label, check = broken
    label.unlink()
    with pytest.raises(DataError, match=rf'1 of 4 images have no label map, e.g. .*{label.name}'):
        check()


def test_label_out_of_range(broken):
    _, _, label, check = broken
    values = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    values[3, 4] = 33
    cv2.imwrite(str(label), values)
    with pytest.raises(
        DataError, match=rf'label 33 in .*{label.name} is no class \(allowed 0..18 and 255'
    ):
        check()


def test_sixteen_bit_label(broken):
    _, _, label, check = broken
    cv2.imwrite(str(label), np.full((64, 128), 26001, np.uint16))
    with pytest.raises(DataError, match='not 8-bit single-channel'):
        check()


def test_colour_label(broken):
    _, image, label, check = broken
    shutil.copy(image, label)
    with pytest.raises(DataError, match='mode RGB, not 8-bit'):
        check()


def test_label_of_another_size(broken):
    _, _, label, check = broken
    cv2.imwrite(str(label), np.zeros((32, 64), np.uint8))
    with pytest.raises(DataError, match='is 64x32, its image 128x64'):
        check()


@pytest.mark.parametrize('keep', [0.0, 0.5, 0.99])
def test_image_cut_short(broken, keep):
    _, image, _, check = broken
    data = image.read_bytes()
    image.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=rf'image .*{image.name} (is cut short|cannot be read)'):
        check()


def test_page_instead_of_an_image(broken):
    _, image, _, check = broken
    image.write_text('<html>not found</html>')
    with pytest.raises(DataError, match='it is damaged or no image'):
        check()


def test_number_of_classes(broken):
    root, *_ = broken
    leaf = dict(type='CityscapesDataset', data_root=str(root))
    check_classes(leaf, {'model.decode_head.num_classes': 19}, 'train_dataloader')
    with pytest.raises(
        UsageError, match='model.decode_head.num_classes=7 does not fit .* 19 classes'
    ):
        check_classes(leaf, {'model.decode_head.num_classes': 7}, 'train_dataloader')
