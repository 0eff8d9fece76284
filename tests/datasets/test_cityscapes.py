"""The instances of Cityscapes as COCO JSON; the train ids are in test_prepare.py."""

import contextlib
import io
import json
import os
import shutil

import numpy as np
import pytest
from cityscapesscripts.evaluation.instances2dict import instances2dict
from cityscapesscripts.helpers.labels import name2label
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coder
from pycocotools.coco import COCO

from mmattn.config.check import check_config
from mmattn.config.load import load_config
from mmattn.datasets.cityscapes import COUNTS, instances, prepare_cityscapes
from mmattn.datasets.coco import check_coco
from mmattn.errors import DataError
from tests.conftest import ROOT

CLASSES = ('person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle')


@pytest.fixture(scope='module')
def prepared(street, tmp_path_factory):
    """The tiny set without the JSON that its generator wrote, prepared as a download is."""
    root = tmp_path_factory.mktemp('prepared') / 'cityscapes'
    shutil.copytree(street, root, ignore=shutil.ignore_patterns('annotations'))
    lines = []
    assert prepare_cityscapes(root, lines.append) == dict(train=4, val=2, test=2)
    return root, lines


@pytest.fixture
def own(prepared, tmp_path):
    """A copy to change."""
    shutil.copytree(prepared[0], tmp_path / 'cityscapes')
    return tmp_path / 'cityscapes'


def file_of(root, split='train'):
    return root / f'annotations/instancesonly_filtered_gtFine_{split}.json'


def load(root, split='train'):
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(file_of(root, split)))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_the_instances_are_those_of_cityscapesscripts(prepared, split):
    root, lines = prepared
    coco = load(root, split)
    assert tuple(c['name'] for c in coco.loadCats(coco.getCatIds())) == CLASSES
    paths = sorted((root / 'leftImg8bit' / split).glob('*/*.png'))
    assert [i['file_name'] for i in coco.dataset['images']] == [
        f'{p.parent.name}/{p.name}' for p in paths
    ]
    assert min(coco.anns) == 1
    total = 0
    for image, path in zip(coco.dataset['images'], paths):
        assert (image['width'], image['height']) == Image.open(path).size
        source = str(path).replace('leftImg8bit/', 'gtFine/', 1)
        source = source.replace('_leftImg8bit.png', '_gtFine_instanceIds.png')
        ids = np.asarray(Image.open(source))
        theirs = instances2dict([source])[source]
        expected = sorted(
            (name2label[name].id, instance['pixelCount'], instance['instID'])
            for name in CLASSES
            for instance in theirs[name]
        )
        found = coco.loadAnns(coco.getAnnIds(image['id']))
        assert sorted((a['category_id'], a['area']) for a in found) == [e[:2] for e in expected]
        masks = [coco.annToMask(a) for a in found]
        for _, area, ident in expected:
            [at] = [i for i, mask in enumerate(masks) if np.array_equal(mask, ids == ident)]
            y, x = np.nonzero(ids == ident)
            box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert found[at]['bbox'] == box and found[at]['area'] == area
            assert found[at]['iscrowd'] == 0
        total += len(expected)
    assert total > 5
    assert f'{split}: {total} instances and 0 groups in {file_of(root, split)}' in lines
    check_coco(file_of(root, split), root / f'leftImg8bit/{split}', classes=CLASSES, masks=True)


def test_masks_are_encoded_as_pycocotools_does():
    """Also where they touch the first and the last pixel, and in one row or column."""
    rng = np.random.default_rng(0)
    for shape in (5, 7), (1, 9), (9, 1), (1, 1), (40, 30):
        for _ in range(20):
            ids = rng.choice([0, 7, 24001, 24002, 26000, 33005], shape)
            found = {(a['category_id'], a['segmentation']['counts']): a for a in instances(ids)}
            things = [i for i in np.unique(ids) if i > 1000]
            assert len(found) == len(things)
            for ident in things:
                rle = coder.encode(np.asfortranarray(ids == ident, np.uint8))
                made = found[ident // 1000, rle['counts'].decode()]
                assert made['segmentation']['size'] == list(shape) == rle['size']
                assert made['bbox'] == coder.toBbox(rle).tolist()
                assert made['area'] == coder.area(rle)


def test_groups_are_crowds_and_the_rest_is_no_object():
    ids = np.array([[26, 26, 26001], [26001, 24000, 24], [29001, 30, 23], [1, 0, 8]], np.int32)
    found = [(a['category_id'], a['area'], a['iscrowd']) for a in instances(ids)]
    assert found == [(24, 1, 1), (26, 2, 1), (24, 1, 0), (26, 2, 0)]
    assert instances(np.zeros((3, 4), np.uint8)) == []


def test_an_id_of_no_class_is_named(own):
    with pytest.raises(ValueError, match='instance id 34001 belongs to no class'):
        instances(np.array([[34001]]))
    path = min((own / 'gtFine/val').rglob('*_instanceIds.png'))
    ids = np.array(Image.open(path))
    ids[0, 0] = 40
    Image.fromarray(ids).save(path)
    with pytest.raises(DataError, match=rf'map of instances {path}: instance id 40 belongs to no'):
        prepare_cityscapes(own, str)


def test_same_maps_same_bytes_and_nothing_is_made_twice(own):
    before = file_of(own).read_bytes()
    times = {p: p.stat().st_mtime_ns for p in own.rglob('*') if p.is_file()}
    lines = []
    prepare_cityscapes(own, lines.append)
    assert f'train: {file_of(own)} is there' in lines
    assert times == {p: p.stat().st_mtime_ns for p in own.rglob('*') if p.is_file()}
    file_of(own).unlink()
    prepare_cityscapes(own, str)
    assert file_of(own).read_bytes() == before
    assert not list(own.rglob('*.part'))


def test_the_json_is_made_again_when_it_is_out_of_date(own):
    right = file_of(own).read_bytes()

    def change(data):
        """Write it, newer than its sources."""
        file_of(own).write_bytes(data)
        prepare_cityscapes(own, str)
        return file_of(own).read_bytes()

    mine = json.loads(right) | dict(info='mine')
    assert change(json.dumps(mine).encode()) == json.dumps(mine).encode()  # same images: left alone
    mine['images'].pop()  # as after a second archive, whose files keep their old times
    assert change(json.dumps(mine).encode()) == right
    assert change(right[:100]) == right
    assert change(b'[]') == right
    os.utime(file_of(own), (0, 0))
    prepare_cityscapes(own, str)
    assert file_of(own).stat().st_mtime > 0 and file_of(own).read_bytes() == right


def test_a_failed_write_leaves_the_old_json(own, monkeypatch):
    right = file_of(own).read_bytes()
    os.utime(file_of(own), (0, 0))

    def full(path, text):
        path.write_bytes(text[:100].encode())
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr('pathlib.Path.write_text', full)
        with pytest.raises(OSError, match='No space left'):
            prepare_cityscapes(own, str)
    assert file_of(own).read_bytes() == right


def test_a_set_without_instance_maps_is_for_segmentation_alone(own):
    for path in own.rglob('*_instanceIds.png'):
        path.unlink()
    shutil.rmtree(own / 'annotations')
    lines = []
    prepare_cityscapes(own, lines.append)
    assert 'train: no *_gtFine_instanceIds.png, so no JSON of instances' in lines
    assert not (own / 'annotations').exists()


def test_every_missing_file_of_every_split_is_said_at_once(own):
    train = sorted((own / 'gtFine/train').rglob('*_labelIds.png'))
    val = sorted((own / 'gtFine/val').rglob('*_instanceIds.png'))
    photo = sorted((own / 'leftImg8bit/val').rglob('*.png'))[1]
    for path in train[0], train[2], val[0], photo:
        path.unlink()
    lonely = str(photo).replace('leftImg8bit/', 'gtFine/').replace('leftImg8bit', 'gtFine_labelIds')
    with pytest.raises(
        DataError,
        match=rf'2 of 4 train images have no label map, e.g. {train[0]}, {train[2]}; '
        rf'1 val label maps have no image, e.g. {lonely}. Unpack leftImg8bit_trainvaltest.zip',
    ):
        prepare_cityscapes(own, str)  # val has one image left, without its map: no instances there
    train[0].write_bytes(train[1].read_bytes())
    train[2].write_bytes(train[1].read_bytes())
    shutil.copy(photo.with_name(photo.name.replace('000001', '000000')), photo)
    with pytest.raises(
        DataError, match=rf'1 of 2 val images have no map of instances, .* {val[0]}'
    ):
        prepare_cityscapes(own, str)


def test_a_map_of_instances_of_another_size_or_kind(own):
    path = min((own / 'gtFine/train').rglob('*_instanceIds.png'))
    Image.new('I;16', (64, 32)).save(path)
    with pytest.raises(DataError, match=rf'map of instances {path} is 64x32, its image 128x64'):
        prepare_cityscapes(own, str)
    Image.new('RGB', (128, 64)).save(path)
    with pytest.raises(DataError, match=rf'map of instances {path} is not single-channel'):
        prepare_cityscapes(own, str)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=rf'map of instances {path} cannot be read'):
        prepare_cityscapes(own, str)


def test_cities_that_are_not_complete_are_said(own):
    for kind in 'leftImg8bit', 'gtFine':
        for path in (own / kind / 'train/street').iterdir():
            city = own / kind / 'train' / ('ulm' if '000000_000000' in path.name else 'zurich')
            city.mkdir(exist_ok=True)
            path.rename(city / path.name.replace('street', city.name))
    lines = []
    prepare_cityscapes(own, lines.append)
    assert 'train/ulm: 1 images (the original set has 95)' in lines
    assert 'train/zurich: 3 images (the original set has 122)' in lines
    assert 'train/aachen: 0 images (the original set has 174)' in lines
    assert not [line for line in lines if line.startswith('val/')]  # no city of the original there
    assert [i['file_name'][:7] for i in load(own).dataset['images']] == ['ulm/ulm'] + [
        'zurich/'
    ] * 3


def test_the_original_has_5000_images():
    assert tuple(COUNTS.values()) == (2975, 500, 1525)


@pytest.mark.parametrize(
    'name',
    ['cityscapes_512x1024', 'cityscapes_769x769', 'cityscapes_ccnet', 'cityscapes_instances'],
)
def test_the_configs_read_what_was_prepared(prepared, tmp_path, name):
    from mmengine.registry import DATASETS

    instances = name.endswith('instances')
    parents = [
        f'_base_/models/{"mask_rcnn" if instances else "segmentor"}_r18.py',
        f'_base_/datasets/{name}.py',
        '_base_/schedules/adamw_600.py',
        f'_base_/runtime{"_det" if instances else ""}.py',
    ]
    leaf = tmp_path / 'leaf.py'
    head = '' if instances else "model = dict(decode_head=dict(type='FCNHead'))\n"
    leaf.write_text(f'_base_ = {[str(ROOT / "configs" / p) for p in parents]}\n{head}')
    cfg = load_config(leaf)
    check_config(cfg)
    init_default_scope(cfg.default_scope)
    for loader, count in dict(train_dataloader=4, val_dataloader=2, test_dataloader=2).items():
        assert cfg[loader].dataset.data_root == 'data/cityscapes'
        dataset = DATASETS.build(dict(cfg[loader].dataset, data_root=str(prepared[0])))
        assert len(dataset) == count
        sample = dataset[0]
        truth = sample['data_samples']
        if not instances:
            height, width = sample['inputs'].shape[1:]
            if not loader.startswith('train'):
                assert (height, width) == ((1025, 2049) if '769x769' in name else (64, 128))
            elif name == 'cityscapes_512x1024':
                assert (height, width) == (512, 1024)
            else:  # of the smallest scales 716x1433 and 512x1024, less than the crop
                least = 512 if '769x769' in name else 716
                assert least <= height <= 769 and width == 769
            assert set(truth.gt_sem_seg.data.unique().tolist()) <= {*range(19), 255}
        else:
            height = sample['inputs'].shape[1]
            assert 800 <= height <= 1024 if loader.startswith('train') else height == 1024
            assert dataset.metainfo['classes'] == CLASSES
            assert len(truth.gt_instances.labels) == len(truth.gt_instances.masks) > 0
