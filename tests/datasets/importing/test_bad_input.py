"""What is kept, dropped, or ends the import: for each kind of problem, in the format that has it."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mmattn.datasets.importing.formats import FORMATS
from mmattn.datasets.importing.importer import ImportOptions, import_data
from mmattn.datasets.importing.problems import KINDS, REFUSED
from mmattn.errors import DataError, MmattnError, UsageError
from tests.conftest import ROOT
from tests.datasets.importing import fixtures
from tests.datasets.small_sets import turn
from tests.test_tools import tool

SPLITS = dict(train=list(fixtures.SCENES)[:4], val=list(fixtures.SCENES)[4:])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def in_coco(change):
    return lambda root: change_json(root / 'annotations/instances.json', change)


def in_labelme(change):
    return lambda root: change_json(root / 'json/scene_0.json', change)


def set_value(*keys, value):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def replace(name, old, new):
    def change(root):
        path = root / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def shrink(root):
    Image.new('RGB', (32, 24)).save(root / 'images/scene_0.png')


def turned(root):
    turn(root / 'images/scene_0.png', 6)  # its annotations are for the pixels as stored


def cut(root):
    path = root / 'images/scene_0.png'
    path.write_bytes(path.read_bytes()[:-20])


def link(root):
    path = root / 'images/scene_0.png'
    path.rename(root.parent / 'elsewhere.png')
    path.symlink_to(root.parent / 'elsewhere.png')


def rename(root):
    (root / 'images/scene_0.png').rename(root / 'images/Zelle_ä☃.png')
    in_coco(set_value('images', 0, 'file_name', value='Zelle_ä☃.png'))(root)


def stray(root):
    fixtures.picture('scene_0.png').save(root / 'images/stray.png')


def other_value(root):
    path = root / 'masks/scene_0_mask.png'
    labels = np.asarray(Image.open(path)).copy()
    labels[0, :3] = 7
    Image.fromarray(labels).save(path)


# format, kind of fixture, change, kind of problem, what is said, images and objects that are left
CASES = [
    ('coco', 'boxes', in_coco(lambda c: c['categories'].append(dict(id=9, name='star'))), 'unused class', 'star', 6, 10),
    ('yolo', 'boxes', replace('data.yaml', "['disc', 'square']", "['disc', 'square', 'star']"), 'class', 'nc: is 2, but there are 3 names', 0, 0),
    ('coco', 'boxes', in_coco(lambda c: c['images'].append(dict(c['images'][0], id=99))), 'annotators', 'is there twice', 6, 10),
    ('coco', 'boxes', in_coco(set_value('annotations', slice(0, 2), value=[])), 'background', 'images/scene_0.png', 6, 8),
    ('coco', 'boxes', rename, 'name', 'Zelle_ä', 6, 10),
    ('coco', 'boxes', link, 'link', 'scene_0.png', 6, 10),
    ('coco', 'boxes', in_coco(set_value('images', 0, 'file_name', value='images\\scene_0.png')), 'backslash', 'images[0] (id 7)', 6, 10),
    ('labelme', 'boxes', lambda root: None, 'backslash', 'json/scene_0.json: imagePath: ..\\images\\scene_0.png', 6, 10),
    ('coco', 'boxes', in_coco(set_value('images', 0, 'file_name', value='/elsewhere/scene_0.png')), 'elsewhere', 'images/scene_0.png', 6, 10),
    ('coco', 'boxes', in_coco(set_value('annotations', 1, 'id', value=1)), 'duplicate', 'annotations[1] (id 1), id', 6, 10),
    ('coco', 'boxes', in_coco(set_value('images', 1, 'id', value=7)), 'id', 'images[1] (id 7), id', 0, 0),
    ('coco', 'boxes', in_coco(set_value('categories', 1, 'id', value=0)), 'id', "is 'disc', too", 0, 0),
    ('coco', 'boxes', in_coco(set_value('annotations', 0, 'bbox', value=[-3, 5, 10, 10])), 'clipped', 'by 3 px; x1, y1, x2, y2 were -3, 5, 7, 15', 6, 10),
    ('coco', 'boxes', in_coco(set_value('annotations', 0, 'bbox', value=[70, 5, 10, 10])), 'outside', 'the image is 64x48', 6, 9),
    ('coco', 'boxes', in_coco(set_value('annotations', 0, 'bbox', value=[7, 5, 0, 10])), 'empty box', 'annotations[0] (id 1)', 6, 9),
    ('coco', 'boxes', in_coco(set_value('annotations', 0, 'bbox', value=[7, 5, 'x', 10])), 'invalid', "'x' is no coordinate", 6, 9),
    ('coco', 'boxes', in_coco(set_value('annotations', 0, 'bbox', value=[7, 5, float('nan'), 10])), 'invalid', 'nan is no coordinate', 6, 9),
    ('coco', 'polygons', in_coco(set_value('annotations', 0, 'segmentation', value=[[1, 2, 3, 4]])), 'short polygon', '2 points', 6, 9),
    ('coco', 'polygons', in_coco(set_value('annotations', 0, 'segmentation', value=[[1, 2, 3, 4, 5, 6, 7]])), 'invalid', 'an odd number', 6, 9),
    ('coco', 'masks', in_coco(set_value('annotations', 0, 'segmentation', 'counts', value=[5, 5])), 'invalid', 'RLE covers 10 px', 6, 9),
    ('coco', 'boxes', in_coco(set_value('annotations', 0, 'image_id', value=99)), 'orphan', 'image_id: 99 is not listed', 6, 9),
    ('coco', 'boxes', in_coco(set_value('annotations', 0, 'category_id', value=99)), 'class', 'category_id: 99 is not defined', 0, 0),
    ('coco', 'boxes', in_coco(set_value('images', 0, 'file_name', value='../../none.png')), 'no image', '../../none.png is missing', 5, 8),
    ('coco', 'boxes', in_coco(set_value('images', 0, 'width', value=None)), 'invalid', 'images[0] (id 7), width and height', 6, 10),
    ('coco', 'boxes', stray, 'not listed', 'images/stray.png', 6, 10),
    ('coco', 'boxes', shrink, 'size', 'is 32x24, its annotations are for 64x48', 5, 8),
    ('coco', 'boxes', turned, 'size', 'without the EXIF orientation', 5, 8),
    ('coco', 'boxes', lambda root: turn(root / 'images/scene_0.png', 3), 'rotated', 'orientation 3', 6, 10),
    ('coco', 'boxes', cut, 'damaged image', 'cut short', 5, 8),
    ('coco', 'boxes', lambda root: Image.fromarray(np.ones((48, 64), np.float32)).save(root / 'images/scene_0.png', 'TIFF'), 'damaged image', 'convert it to PNG', 5, 8),
    ('yolo', 'boxes', replace('train/labels/scene_0.txt', '0 ', '5 '), 'class', 'line 1, class: 5 is no class, allowed 0..1', 0, 0),
    ('yolo', 'boxes', replace('train/labels/scene_0.txt', '0 ', '0 0.1 '), 'invalid', '5 numbers', 6, 9),
    ('yolo', 'boxes', lambda root: (root / 'train/images/scene_0.png').unlink(), 'no image', 'train/labels/scene_0.txt', 5, 8),
    ('voc', 'boxes', replace('Annotations/scene_0.xml', '<annotation>', '<annotation'), 'file', 'Annotations/scene_0.xml: is not valid XML', 0, 0),
    ('voc', 'boxes', replace('Annotations/scene_0.xml', '<annotation>', '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'), 'file', 'declares entities', 0, 0),
    ('voc', 'boxes', replace('Annotations/scene_0.xml', '<xmin>31</xmin>', ''), 'invalid', 'object 0, bndbox', 6, 9),
    ('voc', 'boxes', lambda root: (root / 'JPEGImages/scene_0.png').unlink(), 'no image', 'scene_0.png is missing', 5, 8),
    ('labelme', 'boxes', in_labelme(set_value('shapes', 0, 'shape_type', value='line')), 'shape', 'shapes[0], disc: it is a line', 6, 9),
    ('labelme', 'polygons', in_labelme(set_value('shapes', 0, 'points', value=[[1, 2], [3, 4]])), 'short polygon', '2 points', 6, 9),
    ('labelme', 'masks', in_labelme(set_value('shapes', 0, 'mask', value='AAAA')), 'invalid', 'damaged or no image', 6, 9),
    ('labelme', 'boxes', lambda root: (root / 'json/scene_0.json').write_text('{"shapes"'), 'file', 'not valid JSON', 0, 0),
    ('cvat', 'masks', replace('annotations.xml', 'rle="', 'rle="9, '), 'invalid', 'its box has', 6, 9),
    ('label_studio', 'masks', lambda root: change_json(root / 'project.json', lambda c: c[0]['annotations'][0]['result'][0]['value'].update(rle=[1, 2])), 'invalid', 'rle is cut short', 6, 9),
    ('label_studio', 'boxes', lambda root: change_json(root / 'project.json', lambda c: c[0]['annotations'].clear()), 'not listed', 'nobody has annotated', 5, 8),
    ('via', 'polygons', lambda root: change_json(root / 'via_project.json', lambda c: c['_via_img_metadata']['scene_0.png123']['regions'][0].pop('shape_attributes')), 'invalid', "missing 'shape_attributes'", 6, 9),
    ('supervisely', 'masks', replace('ds0/ann/scene_0.png.json', '"data": "', '"data": "AAAA'), 'invalid', 'objects[0] (id 0)', 6, 9),
    ('instance_masks', 'masks', lambda root: Image.new('L', (64, 48)).save(root / 'scene_0/masks/disc/0.png'), 'empty box', 'its mask has no pixel', 6, 9),
    ('masks', 'ids', other_value, 'class', 'labels 7 (3 px) are no classes', 0, 0),
    ('masks', 'ids', lambda root: (root / 'images/scene_0.png').unlink(), 'no image', 'masks/scene_0_mask.png', 5, None),
    ('masks', 'ids', lambda root: (root / 'masks/scene_0_mask.png').unlink(), 'not listed', 'images/scene_0.png', 5, None),
    ('masks', 'ids', shrink, 'size', 'label map is 64x48, its image 32x24', 5, None),
]  # fmt: skip


def options_of(name, kind):
    classes = ','.join(fixtures.COLOURS) if name == 'masks' else None
    return ImportOptions(format=name, classes=classes)


@pytest.mark.parametrize('number', range(len(CASES)))
def test_a_problem_has_its_outcome(number, here):
    name, kind, change, problem, said, images, objects = CASES[number]
    root = here / 'raw'
    fixtures.FORMATS[name](root, SPLITS, kind)
    change(root)
    before = {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
    outcome, heading = KINDS[problem]
    lines, found = [], None
    if outcome == REFUSED:
        with pytest.raises(DataError) as raised:
            import_data('shapes', [root], options_of(name, kind), lines.append)
        text = str(raised.value)
        report = (here / 'data/shapes.import_report.txt').read_text()
        assert not (here / 'data/shapes').exists() and not (here / 'configs/shapes.py').exists()
    else:
        import_data('shapes', [root], options_of(name, kind), lines.append)
        text, report = '\n'.join(lines), (here / 'data/shapes/import_report.txt').read_text()
        found = [
            json.loads(p.read_text()) for p in (here / 'data/shapes/annotations').glob('*.json')
        ]
        lists = [p.read_text().split() for p in (here / 'data/shapes/annotations').glob('*.txt')]
        assert sum(map(len, lists)) + sum(len(c['images']) for c in found) == images
        if objects is not None:
            assert sum(len(c['annotations']) for c in found) == objects
        linked = [p for p in (here / 'data/shapes/images').iterdir() if not p.is_symlink()]
        assert len(linked) == images
    for shown in text, report:
        headed = re.search(
            rf'^\d+ {re.escape(heading)} \({outcome}\):\n((?:  .*\n?)+)', shown, re.M
        )
        assert headed and said in headed[1], shown
    assert before == {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}
    assert not list((here / 'data').glob('.*'))


def test_every_kind_of_problem_has_a_case_and_a_row_in_the_docs():
    other_tests = {'renamed', 'no mask', 'large'}
    assert {case[3] for case in CASES} | other_tests == set(KINDS)
    text = (ROOT / 'docs' / 'own_data.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (.*?) \| (.*?) \|$', text, re.MULTILINE)
    table = dict(rows)
    for outcome, heading in KINDS.values():
        assert table[heading] == outcome


def test_names_that_a_list_cannot_hold_are_changed(here):
    fixtures.masks(here / 'raw', None, 'ids')
    for folder, end in ('images', '.png'), ('masks', '_mask.png'):
        path = here / 'raw' / folder / f'scene_0{end}'
        path.rename(path.with_name(f' a\nb{end}'))
    lines = []
    import_data('shapes', [here / 'raw'], ImportOptions(), lines.append)
    assert any(line == '  images/ a\\nb.png: is a_b.png' for line in lines), lines
    names = ''.join(p.read_text() for p in (here / 'data/shapes/annotations').glob('*.txt'))
    assert 'a_b' in names.split('\n')


def test_boxes_alone_are_dropped_where_masks_are_asked_for(here):
    fixtures.coco(here / 'raw', None, 'polygons')
    in_coco(lambda c: c['annotations'][0].pop('segmentation'))(here / 'raw')
    lines = []
    import_data('boxes', [here / 'raw'], ImportOptions(), lines.append)
    assert any('for detection' in line for line in lines)  # all of them have boxes
    import_data('shapes', [here / 'raw'], ImportOptions(task='instances'), lines.append)
    assert '1 objects with a box alone (dropped):' in lines
    with pytest.raises(UsageError, match='no object has a mask'):
        fixtures.coco(here / 'plain', None, 'boxes')
        import_data('plain', [here / 'plain'], ImportOptions(task='instances'), lines.append)


@pytest.mark.parametrize('name', FORMATS)
def test_an_empty_set_is_refused(name, here):
    kind = 'ids' if name == 'masks' else 'masks' if name == 'instance_masks' else 'boxes'
    fixtures.FORMATS[name](here / 'raw', SPLITS, kind)
    for path in (here / 'raw').rglob('*.png'):
        path.unlink()
    with pytest.raises(DataError, match=r'no (image|object) is left'):
        import_data('shapes', [here / 'raw'], ImportOptions(format=name), [].append)
    assert not (here / 'data/shapes').exists()
    (here / 'empty').mkdir()
    with pytest.raises(DataError, match='empty holds no file. Name another folder'):
        import_data('shapes', [here / 'empty'], ImportOptions(), [].append)


def test_a_packed_set_is_named_with_the_command(here):
    (here / 'raw').mkdir()
    (here / 'raw' / 'set.zip').write_bytes(b'PK')
    for path in here / 'raw' / 'set.zip', here / 'raw':
        with pytest.raises(DataError, match=r'is packed.* Run: unzip \S+set.zip -d \S+set, then'):
            import_data('shapes', [path], ImportOptions(), [].append)


def test_what_no_import_wrote_is_not_replaced(here):
    fixtures.coco(here / 'raw', None, 'boxes')
    (here / 'data/own').mkdir(parents=True)
    (here / 'configs').mkdir()
    (here / 'configs/other.py').write_text('x = 1\n')

    def refusal(name, root=here / 'raw', **options):
        with pytest.raises(UsageError) as raised:
            import_data(name, [root], ImportOptions(**options), [].append)
        return str(raised.value)

    assert 'data/own is there, but no import wrote it' in refusal('own', overwrite=True)
    assert 'configs/other.py is there, but no import' in refusal('other', overwrite=True)
    assert 'mmattn has a config of that name' in refusal('bccd')
    assert 'mmattn has a config of that name' in refusal('fcn_r18_camvid')
    assert "name '../x': write letters" in refusal('../x')
    assert 'one of them is inside the other' in refusal('shapes', here)
    assert '--split 80/30: write per cent' in refusal('shapes', split='80/30')
    import_data('shapes', [here / 'raw'], ImportOptions(), [].append)
    first = (here / 'configs/shapes.py').read_text()
    assert 'data/shapes is there. Choose another name, or pass --overwrite' in refusal('shapes')
    import_data('shapes', [here / 'raw'], ImportOptions(overwrite=True, split='50/50'), [].append)
    assert (here / 'configs/shapes.py').read_text() != first
    assert not (here / 'data/shapes/annotations/test.json').exists()


def test_colours_without_a_table_are_listed(here):
    fixtures.masks(here / 'raw', None, 'colours')
    table = here / 'raw/label_colors.txt'
    lines = table.read_text()
    table.unlink()
    with pytest.raises(DataError, match='pass it with --classes') as raised:
        import_data('shapes', [here / 'raw'], ImportOptions(), [].append)
    assert '  200 60 40  (' in str(raised.value)
    (here / 'table.txt').write_text(lines.replace('40 90 220', '40 90 221'))
    with pytest.raises(DataError, match='colours 40 90 220') as raised:
        options = ImportOptions(classes=str(here / 'table.txt'))
        import_data('shapes', [here / 'raw'], options, [].append)


def test_the_tool_ends_with_the_exit_codes(here, capsys):
    fixtures.coco(here / 'raw', None, 'boxes')
    run = tool('import_data')
    assert run(['shapes', '--from', 'raw']) == 0
    said = capsys.readouterr().out
    assert (
        'done: data/shapes and configs/shapes.py; train on it: mmattn train CONFIG --data' in said
    )
    assert run(['shapes', '--from', 'raw']) == 2
    assert run(['none', '--from', 'nowhere']) == 3
    shutil.rmtree('raw/images')
    assert run(['gone', '--from', 'raw']) == 3
    assert 'no image is left' in capsys.readouterr().err


def test_nothing_is_left_of_an_import_that_fails(here, monkeypatch):
    fixtures.coco(here / 'raw', None, 'boxes')
    (here / 'data').mkdir()

    def fail(*arguments, **options):
        raise OSError(28, 'No space left on device', 'images')

    monkeypatch.setattr('mmattn.datasets.importing.writing.write_coco', fail)
    with pytest.raises((OSError, MmattnError)):
        import_data('shapes', [here / 'raw'], ImportOptions(), [].append)
    assert not list((here / 'data').iterdir()) and not list((here / 'configs').iterdir())
