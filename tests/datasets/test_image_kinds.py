"""What an image of every kind is to a network: 8 bits, three channels, as OpenCV reads it."""

import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from mmattn.datasets.image_io import read_image
from mmattn.errors import DataError

GREY = np.array([[0, 1, 100], [200, 254, 255]], np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY.T.reshape(2, 3)], -1)
DEEP = np.array([[0, 255, 256], [26001, 40000, 65535]], np.uint16)


def palette():
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), 'P')
    image.putpalette([9, 8, 7, 200, 100, 0, 0, 50, 250])
    return image, np.array([[9, 8, 7], [200, 100, 0], [0, 50, 250]], np.uint8)[np.asarray(image)]


def alpha(value):
    return Image.fromarray(np.dstack([RGB, np.full(GREY.shape, value, np.uint8)]), 'RGBA'), RGB


KINDS = dict(
    grey=(Image.fromarray(GREY), np.dstack([GREY] * 3)),
    colour=(Image.fromarray(RGB), RGB),
    palette=palette(),
    black_and_white=(Image.fromarray(GREY > 99), np.dstack([(GREY > 99) * np.uint8(255)] * 3)),
    opaque=alpha(255),
    transparent=alpha(40),
    deep=(Image.fromarray(DEEP), np.dstack([(DEEP >> 8).astype(np.uint8)] * 3)),
)


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_png(kind, tmp_path):
    """Alpha is dropped, of 16 bits the upper 8 count, a palette is looked up."""
    image, rgb = KINDS[kind]
    path = tmp_path / 'a.png'
    image.save(path)
    assert np.array_equal(read_image(path), rgb[..., ::-1])
    assert np.array_equal(mmcv.imread(str(path), backend='cv2'), rgb[..., ::-1])
    same = np.array_equal(mmcv.imread(str(path), backend='pillow'), rgb[..., ::-1])
    assert same == (kind != 'deep')  # which Pillow cuts off at 255


def test_a_jpeg_for_printing(tmp_path):
    """CMYK, in which OpenCV and Pillow agree but for rounding."""
    smooth = cv2.resize(RGB, (48, 32))
    Image.fromarray(smooth).convert('CMYK').save(tmp_path / 'a.jpg', quality=100)
    found = read_image(tmp_path / 'a.jpg')[..., ::-1].astype(int)
    assert np.abs(found - smooth).mean() < 2
    pillow = mmcv.imread(str(tmp_path / 'a.jpg'), backend='pillow')[..., ::-1]
    assert np.abs(found - pillow).max() <= 3


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(DataError, match='is a folder: name the images in it'):
        read_image(tmp_path)
