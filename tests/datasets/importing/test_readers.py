"""What single formats have that others do not: other shapes, groups, holes, lists, tables."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coder

from mmattn.datasets.importing.class_table import read_table
from mmattn.datasets.importing.formats import FORMATS
from mmattn.datasets.importing.importer import ImportOptions, import_data
from mmattn.datasets.importing.records import ReadOptions
from mmattn.datasets.importing.source import Source, split_in
from mmattn.errors import DataError
from tests.datasets.importing import fixtures

SPLITS = dict(train=list(fixtures.SCENES)[:4], val=list(fixtures.SCENES)[4:])


def changed_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first_objects(root, name):
    """Objects of scene_0.png as a format reads them, in pixels."""
    source = Source([root])
    found = FORMATS[name].read(source, ReadOptions())
    assert not source.problems.is_refused
    image = next(i for i in found.images if i.path.name == 'scene_0.png')
    if image.is_relative:
        sides = np.array([fixtures.WIDTH, fixtures.HEIGHT] * 2)
        for item in image.objects:
            item.box = item.box and (np.array(item.box) * sides).tolist()
    return image.objects


def test_polygons_with_a_hole_become_a_mask(tmp_path):
    fixtures.supervisely(tmp_path, None, 'polygons')
    hole = [(32, 22), (36, 22), (36, 26), (32, 26)]
    path = tmp_path / 'ds0/ann/scene_0.png.json'
    changed_json(path, lambda c: c['objects'][0]['points'].update(interior=[hole]))
    mask = coder.decode(first_objects(tmp_path, 'supervisely')[0].mask)
    _, corners = fixtures.SCENES['scene_0.png'][0]
    assert np.array_equal(mask, fixtures.pixels_of(corners) & ~fixtures.pixels_of(hole))


def test_shapes_of_a_group_are_one_object(tmp_path):
    fixtures.labelme(tmp_path, None, 'polygons')

    def group(content):
        first = content['shapes'][0]
        first['group_id'] = 3
        content['shapes'] += [
            dict(first, points=[[1, 1], [3, 1], [3, 3]]),
            dict(first, label='square'),
        ]

    changed_json(tmp_path / 'json/scene_0.json', group)
    objects = first_objects(tmp_path, 'labelme')
    assert [(o.name, len(o.polygons)) for o in objects] == [
        ('disc', 2),
        ('square', 1),
        ('square', 1),
    ]


def test_circles_and_ellipses(tmp_path):
    fixtures.labelme(tmp_path / 'a', None, 'polygons')
    circle = dict(label='disc', shape_type='circle', points=[[20, 20], [20, 26]])
    changed_json(tmp_path / 'a/json/scene_0.json', lambda c: c.update(shapes=[circle]))
    fixtures.via(tmp_path / 'b', None, 'polygons')
    region = dict(
        shape_attributes=dict(name='circle', cx=20, cy=20, r=6), region_attributes=dict(type='disc')
    )
    path = tmp_path / 'b/via_project.json'
    changed_json(path, lambda c: c['_via_img_metadata']['scene_0.png123'].update(regions=[region]))
    fixtures.cvat(tmp_path / 'c', None, 'boxes')
    file = tmp_path / 'c/annotations.xml'
    text = file.read_text()
    ellipse = '<ellipse label="disc" cx="20" cy="20" rx="6" ry="3" rotation="90"/>'
    file.write_text(text.replace('height="48">', f'height="48">{ellipse}', 1))
    for name, radii in ('labelme', (6, 6)), ('via', (6, 6)), ('cvat', (3, 6)):
        folder = dict(labelme='a', via='b', cvat='c')[name]
        polygon = np.array(first_objects(tmp_path / folder, name)[0].polygons[0]).reshape(-1, 2)
        assert np.allclose(polygon.min(0), 20 - np.array(radii))
        assert np.allclose(polygon.max(0), 20 + np.array(radii))


def test_rotated_boxes_are_boxes_around_them(tmp_path):
    fixtures.cvat(tmp_path / 'a', None, 'boxes')
    file = tmp_path / 'a/annotations.xml'
    file.write_text(file.read_text().replace('<box ', '<box rotation="90" ', 1))
    x1, y1, x2, y2 = fixtures.box_of(fixtures.SCENES['scene_0.png'][0][1])  # 22 by 20
    assert first_objects(tmp_path / 'a', 'cvat')[0].box == pytest.approx(
        [x1 + 1, y1 - 1, x2 - 1, y2 + 1]
    )
    fixtures.label_studio(tmp_path / 'b', None, 'boxes')

    def rotate(content):
        content[0]['annotations'][0]['result'][0]['value']['rotation'] = 90

    changed_json(tmp_path / 'b/project.json', rotate)
    box = first_objects(tmp_path / 'b', 'label_studio')[0].box  # about its first corner
    assert box == pytest.approx([x1 - (y2 - y1), y1, x1, y1 + x2 - x1])


def test_voc_that_counts_from_0(tmp_path):
    fixtures.voc(tmp_path, SPLITS, 'boxes')
    assert first_objects(tmp_path, 'voc')[0].box == [30, 20, 52, 40]
    file = tmp_path / 'Annotations/scene_1.xml'
    file.write_text(file.read_text().replace('<xmin>6<', '<xmin>0<'))
    assert first_objects(tmp_path, 'voc')[0].box == [31, 21, 53, 41]


def test_yolo_by_lists_and_numbered_names(tmp_path):
    fixtures.yolo(tmp_path, SPLITS, 'boxes')
    for split in SPLITS:
        folder = 'valid' if split == 'val' else split
        lines = ''.join(f'./{folder}/images/{name}\n' for name in SPLITS[split])
        (tmp_path / f'{split}.txt').write_text(lines)
    (tmp_path / 'data.yaml').write_text(
        'path: .\ntrain: train.txt\nval: val.txt\nnames:\n  0: disc\n  1: square\n'
    )
    source = Source([tmp_path])
    found = FORMATS['yolo'].read(source, ReadOptions())
    assert found.classes == list(fixtures.CLASSES) and len(found.images) == 6
    assert {i.path.name for i in found.images if i.split == 'val'} == set(SPLITS['val'])
    assert sum(len(i.objects) for i in found.images) == 10 and not source.problems.lines()


def test_coco_files_that_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, names in SPLITS.items():
        fixtures.save_pictures(tmp_path / 'raw' / f'{split}2017', names)
        path = tmp_path / 'raw' / 'annotations' / f'instances_{split}2017.json'
        fixtures.write(path, fixtures.coco_content(names, 'boxes'))
    fixtures.write(tmp_path / 'raw/annotations/other.json', [])
    files = sorted((tmp_path / 'raw' / 'annotations').glob('instances*'))
    import_data('shapes', files, ImportOptions(), [].append)
    for split, names in SPLITS.items():
        content = json.loads((tmp_path / f'data/shapes/annotations/{split}.json').read_text())
        assert [i['file_name'] for i in content['images']] == names


@pytest.mark.parametrize(
    'name, split',
    [('instances_val2017', 'val'), ('valid', 'val'), ('trainannot', 'train'), ('Testing', 'test'),
     ('contest', None), ('train_val', None), ('images', None)],
)  # fmt: skip
def test_splits_in_names(name, split):
    assert split_in(name) == split


@pytest.mark.parametrize(
    'text',
    [
        '# label:color_rgb:parts:actions\ncar:1,2,3::\nwhite van:4,5,6::\n',
        'name,r,g,b\ncar,1,2,3\nwhite van,4,5,6\n',
        '1 2 3\tcar\n4 5 6\twhite van\n',
    ],
)
def test_tables_of_classes(text, tmp_path):
    (tmp_path / 'table.txt').write_text(text)
    colours = {'car': (1, 2, 3), 'white van': (4, 5, 6)}
    assert read_table(tmp_path / 'table.txt') == (['car', 'white van'], colours)
    (tmp_path / 'table.json').write_text(json.dumps(colours))
    assert read_table(tmp_path / 'table.json') == (['car', 'white van'], colours)


@pytest.mark.parametrize(
    'text, said',
    [('', 'is empty'), ('a\nb\na\n', "line 3: 'a' is there twice"), ('1 2 300 a\n', 'line 1'),
     ('1 2 3 a\nb\n', "'b' has no colour")],
)  # fmt: skip
def test_tables_that_are_none(text, said, tmp_path):
    (tmp_path / 'table.txt').write_text(text)
    with pytest.raises(DataError, match=said):
        read_table(tmp_path / 'table.txt')


def test_images_of_every_kind_stay_as_they_are(tmp_path, monkeypatch):
    """Gray, a palette, alpha, 16 bits: training reads them, see test_image_kinds."""
    monkeypatch.chdir(tmp_path)
    fixtures.coco(tmp_path / 'raw', None, 'boxes')
    kinds = dict(zip(fixtures.SCENES, ('L', 'P', 'RGBA', '1', 'I;16')))
    for name, mode in kinds.items():
        image = Image.fromarray(np.full((48, 64), 999, np.uint16)) if mode == 'I;16' else (
            fixtures.picture(name).convert(mode)
        )  # fmt: skip
        image.save(tmp_path / 'raw/images' / name)
    import_data('shapes', ['raw'], ImportOptions(), [].append)
    for name in fixtures.SCENES:
        copy = tmp_path / 'data/shapes/images' / name
        assert copy.read_bytes() == (tmp_path / 'raw/images' / name).read_bytes()
