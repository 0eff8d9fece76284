"""The same objects in every format are imported to the same files."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coder

from mmattn.cli.import_data import FORMATS as NAMES
from mmattn.cli.import_data import TASKS as TASK_NAMES
from mmattn.datasets.coco import check_coco
from mmattn.datasets.importing.formats import FORMATS
from mmattn.datasets.importing.importer import ImportOptions, import_data
from mmattn.datasets.importing.records import TASKS
from mmattn.errors import UsageError
from tests.datasets.importing import fixtures

KINDS = {
    'boxes': ('coco', 'roboflow', 'yolo', 'voc', 'labelme', 'cvat', 'label_studio', 'via', 'supervisely'),
    'polygons': ('coco', 'roboflow', 'yolo', 'labelme', 'cvat', 'label_studio', 'via', 'supervisely'),
    'masks': ('coco', 'labelme', 'cvat', 'label_studio', 'supervisely', 'instance_masks'),
}  # fmt: skip
CASES = [(kind, name) for kind, names in KINDS.items() for name in names[1:]]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(name, root, lines=None, **options):
    return import_data(
        name, [root], ImportOptions(**options), ([] if lines is None else lines).append
    )


def contents(home, name):
    """Annotation files of an imported set, by split."""
    paths = sorted((home / 'data' / name / 'annotations').glob('*.json'))
    return {path.stem: json.loads(path.read_text()) for path in paths}


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
    """What each kind of COCO file is imported to, and the images of its splits."""
    home, found = tmp_path_factory.mktemp('reference'), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for kind in KINDS:
            fixtures.coco(home / kind, None, kind)
            imported(f'set_{kind}', home / kind)
            content = contents(home, f'set_{kind}')
            splits = {s: [i['file_name'] for i in c['images']] for s, c in content.items()}
            found[kind] = content, splits
    return found


def test_the_command_names_all_formats():
    assert tuple(FORMATS) == NAMES and TASKS == TASK_NAMES


@pytest.mark.parametrize('kind', KINDS)
def test_a_coco_file_has_the_objects_of_the_scenes(kind, reference):
    content, splits = reference[kind]
    assert {s: len(names) for s, names in splits.items()} == dict(train=4, val=1, test=1)
    found = {}
    for part in content.values():
        assert [c['name'] for c in part['categories']] == list(fixtures.CLASSES)
        names = {i['id']: i['file_name'] for i in part['images']}
        for entry in part['annotations']:
            label = fixtures.CLASSES[entry['category_id'] - 1]
            found.setdefault(names[entry['image_id']], []).append((label, entry))
    for name, objects in fixtures.SCENES.items():
        assert len(found[name]) == len(objects)
        for (label, entry), (true, corners) in zip(found[name], objects):
            x1, y1, x2, y2 = fixtures.box_of(corners)
            assert label == true and entry['bbox'] == [x1, y1, x2 - x1, y2 - y1]
            pixels = fixtures.pixels_of(corners)
            if kind == 'boxes':
                assert 'segmentation' not in entry and entry['area'] == (x2 - x1) * (y2 - y1)
                continue
            shape = entry['segmentation']
            rle = shape if kind == 'masks' else coder.merge(coder.frPyObjects(shape, *pixels.shape))
            assert np.array_equal(coder.decode(rle), pixels)
            assert entry['area'] == pixels.sum()


@pytest.mark.parametrize('kind, name', CASES)
def test_a_format_is_guessed_and_gives_the_same_files(kind, name, reference, here):
    content, splits = reference[kind]
    fixtures.FORMATS[name](here / 'raw', splits, kind)
    before = {p: p.read_bytes() for p in (here / 'raw').rglob('*') if p.is_file()}
    lines = []
    config = imported('shapes', here / 'raw', lines)
    assert f'({"coco" if name == "roboflow" else name}): ' in lines[0]
    assert contents(here, 'shapes') == content
    assert before == {p: p.read_bytes() for p in (here / 'raw').rglob('*') if p.is_file()}
    for image in fixtures.SCENES:
        assert np.array_equal(
            fixtures.picture(image), Image.open(here / 'data/shapes/images' / image)
        )
    cfg = Config.fromfile(config)
    assert cfg.metainfo.classes == fixtures.CLASSES
    assert len(set(map(tuple, cfg.metainfo.palette))) == 2
    masks = kind != 'boxes'
    assert cfg.val_evaluator.metric == (['bbox', 'segm'] if masks else 'bbox')
    for split in splits:
        leaf = cfg[f'{split}_dataloader'].dataset
        file = here / leaf.data_root / leaf.ann_file
        assert file.stem == split
        found = check_coco(
            file, here / leaf.data_root / 'images', classes=fixtures.CLASSES, masks=masks
        )
        assert found == []
    report = (here / 'data/shapes/import_report.txt').read_text()
    backslashes = '6 paths with backslashes' in report
    assert backslashes == (name == 'labelme')
    if not backslashes:
        assert report.endswith('\n\n')  # nothing is wrong


@pytest.mark.parametrize('kind', ['ids', 'palette', 'colours'])
def test_masks_are_label_maps_like_those_drawn_from_objects(kind, here):
    fixtures.coco(here / 'objects', None, 'polygons')
    drawn = Config.fromfile(imported('drawn', here / 'objects', task='segmentation'))
    fixtures.masks(here / 'raw', None, kind)
    classes = None if kind == 'colours' else ','.join(fixtures.COLOURS)
    lines = []
    cfg = Config.fromfile(imported('shapes', here / 'raw', lines, classes=classes))
    assert '(masks): masks/scene_0_mask.png is named like images/scene_0.png' in lines[0]
    assert tuple(cfg.metainfo.classes) == tuple(drawn.metainfo.classes) == tuple(fixtures.COLOURS)
    if kind != 'ids':
        assert [tuple(c) for c in cfg.metainfo.palette] == list(fixtures.COLOURS.values())
    for split in 'train', 'val', 'test':
        lists = [
            (here / f'data/{name}/annotations/{split}.txt').read_text()
            for name in ('drawn', 'shapes')
        ]
        assert lists[0] == lists[1] and lists[0].startswith('scene_')
    for name in fixtures.SCENES:
        for folder in 'drawn', 'shapes':
            labels = np.asarray(Image.open(here / f'data/{folder}/labels/{name}'))
            assert np.array_equal(labels, fixtures.labels_of(name))


def test_masks_without_names_or_with_labels_to_ignore(here):
    fixtures.masks(here / 'raw', None, 'ids')
    cfg = Config.fromfile(imported('shapes', here / 'raw'))
    assert tuple(cfg.metainfo.classes) == ('class_0', 'class_1', 'class_2')
    cfg = Config.fromfile(imported('two', here / 'raw', ignore_labels=(0,), classes='disc,square'))
    assert tuple(cfg.metainfo.classes) == fixtures.CLASSES
    for name in fixtures.SCENES:
        labels = np.asarray(Image.open(here / 'data/two/labels' / name)).astype(int)
        assert np.array_equal(labels, (fixtures.labels_of(name).astype(int) - 1) % 256)


def test_masks_of_0_and_255_have_two_classes(here):
    fixtures.masks(here / 'raw', None, 'ids')
    for path in (here / 'raw/masks').iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    imported('shapes', here / 'raw', classes='ground,shape')
    for name in fixtures.SCENES:
        labels = np.asarray(Image.open(here / 'data/shapes/labels' / name))
        assert np.array_equal(labels, fixtures.labels_of(name) > 0)


def test_splits_are_drawn_by_seed_or_kept(here):
    fixtures.coco(here / 'raw', None, 'boxes')

    def names(**options):
        imported('shapes', here / 'raw', overwrite=True, **options)
        return {
            s: [i['file_name'] for i in c['images']] for s, c in contents(here, 'shapes').items()
        }

    first = names(split='50/50')
    assert {s: len(n) for s, n in first.items()} == dict(train=3, val=3)
    assert names(split='50/50') == first != names(split='50/50', seed=1)
    cfg = Config.fromfile('configs/shapes.py')
    assert cfg.test_dataloader.dataset.ann_file == 'annotations/val.json'
    fixtures.voc(here / 'voc', first, 'boxes')
    imported('kept', here / 'voc')
    assert {
        s: [i['file_name'] for i in c['images']] for s, c in contents(here, 'kept').items()
    } == first


def test_several_formats_are_a_question(here):
    fixtures.coco(here / 'raw', None, 'boxes')
    fixtures.voc(here / 'raw', dict(train=list(fixtures.SCENES)), 'boxes')
    with pytest.raises(
        UsageError, match='several formats: coco, as .*; voc, as .*Choose: --format'
    ):
        imported('shapes', here / 'raw')
    assert not (here / 'data').exists() and not (here / 'configs').exists()
    file = here / 'raw' / 'annotations' / 'instances.json'  # a file has one format
    imported('shapes', file, images=here / 'raw' / 'images')


def test_images_and_annotations_may_lie_apart(here):
    fixtures.coco(here / 'raw', None, 'boxes')
    (here / 'raw' / 'images').rename(here / 'photos')
    imported('shapes', here / 'raw', images=here / 'photos')
    assert len(list((here / 'data/shapes/images').iterdir())) == 6
