"""Every class has a colour of its own, however many there are and whatever the data set says."""

import numpy as np
import pytest
from mmdet.datasets import CocoDataset

from mmattn.errors import UsageError
from mmattn.visualization.comparison import colourise, compare_labels
from mmattn.visualization.palette import distinct_colours, palette_of

THREE = [(220, 20, 60), (0, 130, 200), (245, 200, 40)]


def meta(count, palette=None):
    return dict(classes=tuple(f'c{i}' for i in range(count)), palette=palette)


@pytest.mark.parametrize('count', [1, 2, 80, 91, 300, 1203])
def test_colours_for_any_count(count):
    found = palette_of(meta(count))
    assert len(found) == count == len({*found, (0, 0, 0), (255, 255, 255)}) - 2
    assert all(isinstance(c, int) and 0 <= c <= 255 for colour in found for c in colour)
    assert found == palette_of(meta(count))
    if count == 91:
        pairs = np.array(found)[:, None] - np.array(found)[None]
        apart = np.sqrt(np.square(pairs).sum(-1)) + 999 * np.eye(count)
        assert apart.min() > 40


@pytest.mark.parametrize(
    'kind', [list, tuple, np.array, lambda p: [list(c) for c in p], np.float32]
)
def test_palettes_of_any_form(kind):
    assert palette_of(meta(3, kind(THREE))) == THREE


def test_a_palette_that_is_too_short_is_filled_up():
    own = CocoDataset.METAINFO['palette']
    found = palette_of(meta(91, own))  # what 91 classes of a CocoDataset come with
    assert found[:80] == [tuple(c) for c in own] and len(found) == 91
    assert len(set(found[80:]) - set(found[:80])) == 11
    assert palette_of(meta(5, tuple(THREE)))[3:] == list(distinct_colours(2, tuple(THREE)))
    assert len(palette_of(meta(3, []))) == 3


def test_one_colour_and_names():
    assert palette_of(meta(3, (1, 2, 3))) == [(1, 2, 3)] * 3
    assert palette_of(meta(80, 'coco'))[0] == (220, 20, 60)
    assert palette_of(meta(3, 'random')) == palette_of(meta(3))


@pytest.mark.parametrize(
    'palette, message',
    [
        ([(1, 2)] * 3, r'palette=\[\(1, 2\), .* three whole numbers'),
        ([(1, 2, 3), (1, 2)], 'three whole numbers'),
        ([(0.1, 0.2, 0.3)], 'three whole numbers'),
        ([(1, 2, 256)], '1 to 256, allowed are 0 to 255'),
        ('nothing', "palette='nothing': no such palette"),
        (['red', 'green'], 'three whole numbers'),
    ],
)
def test_what_is_no_palette_is_named(palette, message):
    with pytest.raises(UsageError, match=message):
        palette_of(meta(3, palette))


def test_labels_above_255_have_their_own_colours():
    palette = palette_of(meta(300))
    labels = np.array([[0, 254, 255, 256, 299, 300, -1]])
    found = colourise(labels, palette)[0, :, ::-1].tolist()
    assert found == [*(list(palette[i]) for i in (0, 254, 255, 256, 299)), [0] * 3, [0] * 3]
    few = colourise(np.array([[0, 2, 255]], np.uint8), THREE)[0, :, ::-1].tolist()
    assert few == [list(THREE[0]), list(THREE[2]), [0, 0, 0]]


@pytest.mark.parametrize('size', [(1, 80), (80, 1), (1, 1), (1, 4000), (4000, 1)])
def test_pictures_of_one_row_or_column(size):
    image, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    found = compare_labels(image, labels, labels, classes=('a', 'b', 'c'), palette=THREE)
    height, width = found.shape[:2]
    assert 64 <= width <= 13000 and 44 < height <= 4100
    assert (found == np.array(THREE[0])[::-1]).all(-1).any()
