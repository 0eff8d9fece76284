import json

import pytest
from PIL import Image

from mmattn.datasets.bccd import CLASSES, COUNTS, prepare_bccd
from mmattn.datasets.coco import check_coco
from mmattn.errors import DataError
from tests.conftest import ROOT

REAL = ROOT.parent / 'shared' / 'data' / 'bccd'


def voc(*objects) -> str:
    """A VOC file of (name, xmin, ymin, xmax, ymax)."""
    keys = ('xmin', 'ymin', 'xmax', 'ymax')
    items = ''.join(
        f'<object><name>{name}</name><bndbox>'
        + ''.join(f'<{key}>{value}</{key}>' for key, value in zip(keys, box))
        + '</bndbox></object>'
        for name, *box in objects
    )
    return f'<annotation><size><width>1</width></size>{items}</annotation>'


@pytest.fixture
def original(tmp_path):
    """Photographs of 20x10: two in train, one in val and test each."""
    root = tmp_path / 'original' / 'BCCD'
    for folder in 'Annotations', 'JPEGImages', 'ImageSets/Main':
        (root / folder).mkdir(parents=True)
    (root.parent / 'LICENSE').write_text('MIT')
    for split, stems in dict(train=['a', 'b'], val=['c'], test=['d']).items():
        (root / 'ImageSets/Main' / f'{split}.txt').write_text('\n'.join(stems) + '\n')
        for stem in stems:
            Image.new('RGB', (20, 10)).save(root / 'JPEGImages' / f'{stem}.jpg')
            boxes = [('WBC', 3, 2, 7, 9), ('Platelets', 1, 1, 20, 10)]
            (root / 'Annotations' / f'{stem}.xml').write_text(voc(*boxes))
    return root


@pytest.mark.parametrize('named', ['.', '..'])
def test_boxes_count_pixels_from_0_and_ids_are_unique(original, tmp_path, named):
    out, lines = tmp_path / 'out', []
    assert prepare_bccd(original / named, out, lines.append) == dict(train=2, val=1, test=1)
    assert lines[0] == 'train: 2 images (the original set has 205), 4 boxes'
    sets = [json.loads((out / 'annotations' / f'{split}.json').read_text()) for split in COUNTS]
    assert [i['id'] for s in sets for i in s['images']] == [1, 2, 3, 4]
    assert [a['id'] for s in sets for a in s['annotations']] == list(range(1, 9))
    assert [a['image_id'] for s in sets for a in s['annotations']] == [1, 1, 2, 2, 3, 3, 4, 4]
    first, second, *_ = sets[0]['annotations']
    assert first == dict(id=1, image_id=1, category_id=2, bbox=[2, 1, 4, 7], area=28, iscrowd=0)
    assert second['bbox'] == [0, 0, 19, 9] and second['category_id'] == 3
    assert sets[0]['images'][0] == dict(id=1, file_name='a.jpg', width=20, height=10)
    assert (out / 'LICENSE').read_text() == 'MIT'
    for split in COUNTS:
        file = out / 'annotations' / f'{split}.json'
        assert check_coco(file, out / 'images', classes=CLASSES, train=True) == []


def test_the_prepared_set_may_lie_beside_the_original(original):
    prepare_bccd(original.parent, original.parent, str)
    assert (original.parent / 'images' / 'd.jpg').exists()
    assert (original.parent / 'LICENSE').read_text() == 'MIT'


def test_boxes_without_area_are_dropped_and_named(original, tmp_path):
    boxes = [('RBC', 5, 5, 5, 5), ('RBC', 5, 5, 6, 5), ('RBC', 5, 5, 4, 9), ('RBC', 5, 5, 6, 6)]
    (original / 'Annotations/a.xml').write_text(voc(*boxes))
    lines = []
    prepare_bccd(original, tmp_path / 'out', lines.append)
    assert lines[:3] == [
        f'a.xml: dropped object {number}, RBC {list(box)}, which has no area'
        for number, (_, *box) in enumerate(boxes[:3])
    ]
    assert lines[3].endswith('3 boxes')


@pytest.mark.parametrize(
    'gone', ['Annotations', 'JPEGImages', 'ImageSets', 'Annotations/b.xml', 'JPEGImages/c.jpg']
)
def test_what_is_missing_is_named(original, tmp_path, gone):
    (original / gone).rename(tmp_path / 'gone')
    with pytest.raises(DataError, match=rf'BCCD: .*{gone}.* (does not exist|is missing). Get'):
        prepare_bccd(original, tmp_path / 'out', str)


def test_nothing_there_says_where_to_get_it(tmp_path):
    with pytest.raises(DataError, match='Get Shenggan/BCCD_Dataset from GitHub'):
        prepare_bccd(tmp_path / 'nowhere', tmp_path / 'out', str)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    'text, why',
    [
        ('', 'is not valid XML'),
        ('<annotation><object>', 'is not valid XML'),
        ('<annotation>\0</annotation>', 'is not valid XML'),
        (voc(('Cell', 1, 2, 3, 4)), "object 0 is 'Cell', allowed"),
        ('<annotation><object/></annotation>', 'object 0 is None, allowed'),
        (voc(('RBC', 1, 2, 3, 4), ('RBC', 1, 2, 3)), r'object 1 \(RBC\) has no box of 4 numbers'),
        (voc(('RBC', 1, 'x', 3, 4)), r'object 0 \(RBC\) has no box of 4 numbers'),
        (voc(('RBC', 1, 'nan', 3, 4)), r'object 0 \(RBC\) has no box of 4 numbers'),
        (voc(('RBC', 1, 'inf', 3, 4)), r'object 0 \(RBC\) has no box of 4 numbers'),
        ('<!DOCTYPE a [<!ENTITY b "RBC">]>' + voc(('&b;', 1, 2, 3, 4)), 'declares entities'),
        ('<!DOCTYPE a SYSTEM "/etc/passwd">' + voc(('RBC', 1, 2, 3, 4)), 'declares entities'),
    ],
)
def test_malformed_file(original, tmp_path, text, why):
    (original / 'Annotations/b.xml').write_text(text)
    with pytest.raises(DataError, match=rf'Annotations/b.xml.* {why}'):
        prepare_bccd(original, tmp_path / 'out', str)


def test_bytes_that_are_no_text(original, tmp_path):
    entities = '<!DOCTYPE a [<!ENTITY b "RBC">]>' + voc(('&b;', 1, 2, 3, 4))
    (original / 'Annotations/b.xml').write_bytes(entities.encode('utf-16'))
    with pytest.raises(DataError, match='Annotations/b.xml is no text'):
        prepare_bccd(original, tmp_path / 'out', str)


@pytest.mark.parametrize('stem', ['../../a', '/etc/a', 'a\0'])
def test_a_name_that_leaves_the_folder(original, tmp_path, stem):
    (original / 'ImageSets/Main/val.txt').write_text(stem)
    with pytest.raises(DataError, match='image .* (leaves its folder|cannot be read)'):
        prepare_bccd(original, tmp_path / 'out', str)


def test_damaged_image(original, tmp_path):
    (original / 'JPEGImages/c.jpg').write_text('<html>')
    with pytest.raises(DataError, match='image .*c.jpg cannot be read'):
        prepare_bccd(original, tmp_path / 'out', str)


@pytest.fixture(scope='module')
def real(tmp_path_factory):
    if not REAL.exists():
        pytest.skip(f'no {REAL}')
    out, lines = tmp_path_factory.mktemp('bccd'), []
    assert prepare_bccd(REAL, out, lines.append) == COUNTS
    return out, lines


def test_real_set(real):
    out, lines = real
    assert lines == [
        'BloodImage_00343.xml: dropped object 3, RBC [181, 329, 181, 329], which has no area',
        'train: 205 images, 2804 boxes',
        'BloodImage_00338.xml: dropped object 12, RBC [504, 337, 504, 337], which has no area',
        'val: 87 images, 1137 boxes',
        'test: 72 images, 945 boxes',
    ]
    images = {p.name: p.read_bytes() for p in (REAL / 'BCCD/JPEGImages').iterdir()}
    assert {p.name: p.read_bytes() for p in (out / 'images').iterdir()} == images
    for split in COUNTS:
        file = out / 'annotations' / f'{split}.json'
        assert check_coco(file, out / 'images', classes=CLASSES, train=True) == []


def test_mmdet_reads_the_same_boxes_of_both(real):
    from mmdet.datasets import CocoDataset, XMLDataset

    out, _ = real
    metainfo = dict(classes=CLASSES)
    ours = CocoDataset(
        ann_file='annotations/train.json',
        data_root=str(out),
        data_prefix=dict(img='images'),
        metainfo=metainfo,
    )
    theirs = XMLDataset(
        ann_file='ImageSets/Main/train.txt',
        data_root=str(REAL / 'BCCD'),
        data_prefix=dict(sub_data_root=''),
        metainfo=metainfo,
    )
    assert len(ours) == len(theirs) == 205
    dropped = []
    for mine, original in zip(ours, theirs):
        assert mine['img_path'].split('/')[-1] == original['img_path'].split('/')[-1]
        assert (mine['width'], mine['height']) == (original['width'], original['height'])
        boxes = [(i['bbox_label'], i['bbox']) for i in mine['instances']]
        expected = [(i['bbox_label'], i['bbox']) for i in original['instances']]
        dropped += [(label, box) for label, box in expected if (label, box) not in boxes]
        assert boxes == [entry for entry in expected if entry not in dropped]
    assert dropped == [(0, [180, 328, 180, 328])]
