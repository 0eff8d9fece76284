import hashlib
import json

import cv2
import numpy as np
import pytest

from mmattn.datasets import street_labels as module
from mmattn.datasets.street import generate
from mmattn.datasets.street_labels import ID, TRAIN_ID, annotations
from mmattn.datasets.street_scene import render
from mmattn.errors import UsageError


def digests(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob('*')
        if p.is_file()
    }


def test_same_seed_same_bytes_whatever_else_is_made(street, tmp_path):
    generate(tmp_path / 'again', images=dict(val=2, train=6), size=(128, 64))
    first, again = digests(street), digests(tmp_path / 'again')
    pictures = {k for k in first if k.endswith('.png') and 'test' not in k}
    assert len(pictures) == 4 * (4 + 2)
    assert {k: first[k] for k in pictures} == {k: again[k] for k in pictures}


def test_seeds_splits_and_scenes_differ():
    scenes = [render(s, split, i, 128, 64)[0] for s, split, i in
              [(0, 'train', 0), (1, 'train', 0), (0, 'val', 0), (0, 'train', 1)]]  # fmt: skip
    for a in range(4):
        for b in range(a):
            assert (scenes[a] != scenes[b]).mean() > 0.5


def test_class_table_is_cityscapes():
    from cityscapesscripts.helpers.labels import labels

    named = {label.name.replace('traffic ', ''): label for label in labels}
    for name, ident in ID.items():
        label = named['ego vehicle' if name == 'ego' else name]
        assert ident == label.id
    for label in labels:
        assert TRAIN_ID[label.id if label.id >= 0 else 255] == (
            label.trainId if 0 <= label.trainId < 19 else 255
        )
    assert (
        tuple(x.name for x in labels if x.hasInstances and x.trainId not in (-1, 255))
        == module.THINGS
    )


def test_layout_and_label_maps_agree(street):
    for split, count in dict(train=4, val=2, test=2).items():
        images = sorted((street / 'leftImg8bit' / split).glob('*/*.png'))
        assert len(images) == count
        for path in images:
            base = (
                street
                / 'gtFine'
                / split
                / 'street'
                / path.name.replace('_leftImg8bit.png', '_gtFine')
            )
            ids, train, instances = (
                cv2.imread(f'{base}_{kind}.png', cv2.IMREAD_UNCHANGED)
                for kind in ('labelIds', 'labelTrainIds', 'instanceIds')
            )
            assert cv2.imread(str(path)).shape == (64, 128, 3)
            assert np.array_equal(np.where(instances >= 1000, instances // 1000, instances), ids)
            assert np.array_equal(TRAIN_ID[ids], train)


def test_coco_json_covers_the_instances(street):
    from pycocotools.coco import COCO

    coco = COCO(str(street / 'annotations' / 'instancesonly_filtered_gtFine_train.json'))
    assert len(coco.imgs) == 4 and coco.anns
    for image in coco.imgs.values():
        name = image['file_name'].replace('_leftImg8bit.png', '_gtFine_instanceIds.png')
        ids = cv2.imread(str(street / 'gtFine' / 'train' / name), cv2.IMREAD_UNCHANGED)
        things = [i for i in np.unique(ids[ids >= 1000]) if (ids == i).sum() >= module.MIN_AREA]
        anns = coco.loadAnns(coco.getAnnIds(image['id']))
        assert len(anns) == len(things)
        for ann, thing in zip(anns, things):
            mask = ids == thing
            assert ann['category_id'] == thing // 1000 and ann['area'] == mask.sum()
            ys, xs = np.nonzero(mask)
            x, y, w, h = ann['bbox']
            assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            drawn = coco.annToMask(ann).astype(bool)  # polygons run through pixel centres
            grown = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
            assert not (drawn & ~grown).any()


def test_every_class_and_several_scales_occur():
    classes, areas = set(), []
    for index in range(60):
        _, ids = render(0, 'train', index, 256, 128)
        classes |= set(np.unique(np.where(ids >= 1000, ids // 1000, ids)).tolist())
        areas += [a['area'] for a in annotations(ids)]
    assert set(ID.values()) <= classes
    assert min(areas) < 50 and max(areas) > 3000


def test_size_scales_the_scene_and_not_the_world():
    small, large = (cv2.resize(render(0, 'val', 3, w, w // 2)[1].astype(np.uint16), (64, 32),
                               interpolation=cv2.INTER_NEAREST) for w in (128, 512))  # fmt: skip
    assert (small == large).mean() > 0.85


def test_the_end_is_told_with_the_number_of_scenes(tmp_path, capsys):
    generate(tmp_path / 'street', images=dict(train=2), size=(64, 32))
    assert f'street -> {tmp_path / "street"}: 2 in ' in capsys.readouterr().err


def test_an_existing_folder_is_kept(street, tmp_path):
    before = digests(street)
    with pytest.raises(UsageError, match='holds a set already. Use --overwrite'):
        generate(street, images=dict(train=1))
    assert digests(street) == before
    (tmp_path / 'photo.png').touch()
    with pytest.raises(UsageError, match='holds other files'):
        generate(tmp_path, images=dict(train=1), overwrite=True)
    assert (tmp_path / 'photo.png').exists()


def test_overwrite_replaces_the_whole_set(tmp_path):
    generate(tmp_path / 's', images=dict(train=3), size=(64, 32))
    generate(tmp_path / 's', images=dict(train=1), size=(64, 32), seed=5, overwrite=True)
    assert len(list((tmp_path / 's' / 'leftImg8bit').rglob('*.png'))) == 1
    assert json.loads((tmp_path / 's' / 'street.json').read_text())['seed'] == 5


def test_refused_size_and_number(tmp_path):
    with pytest.raises(UsageError, match='32x16 is too small'):
        generate(tmp_path / 's', images=dict(train=1), size=(32, 16))
    for images in dict(train=-1, val=2), dict(train=0, val=0):
        with pytest.raises(UsageError, match='Use 0 or more of each, and one at least'):
            generate(tmp_path / 's', images=images)
    assert not (tmp_path / 's').exists()
