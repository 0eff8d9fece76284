"""COCO's own annotations, imported: published results score as published on what is written."""

import json
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest

from mmattn.datasets.importing.importer import ImportOptions, import_data
from mmattn.evaluation.coco import evaluate_coco
from tests.conftest import ROOT

FOLDER = ROOT / 'tests' / 'evaluation' / 'coco'
EXPECTED = json.loads((FOLDER / 'expected.json').read_text())
TRUTH = json.loads((FOLDER / 'cocoapi' / 'instances_val2014_100.json').read_text())


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    """The 100 images, gray, and their annotations, as one imported annotation file."""
    folder = tmp_path_factory.mktemp('val2014')
    (folder / 'raw').mkdir()
    for image in TRUTH['images']:
        gray = np.full((image['height'], image['width'], 3), 127, np.uint8)
        cv2.imwrite(str(folder / 'raw' / image['file_name']), gray)
    shutil.copy(FOLDER / 'cocoapi' / 'instances_val2014_100.json', folder / 'raw')
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        import_data('val2014', ['raw'], ImportOptions(split='98/1/1'), said.append)
    parts = [
        json.loads((folder / f'data/val2014/annotations/{split}.json').read_text())
        for split in ('train', 'val', 'test')
    ]
    assert all(part['categories'] == parts[0]['categories'] for part in parts)
    content = dict(parts[0], images=[], annotations=[])
    for index, part in enumerate(parts):  # ids may be those of each file
        for kind in 'images', 'annotations':
            for entry in part[kind]:
                changed = {key: 1000 * index + entry[key] for key in ('image_id',) if key in entry}
                changed['id'] = (1000 if kind == 'images' else 10**6) * index + entry['id']
                content[kind].append(entry | changed)
    return content, '\n'.join(said)


def by_class(content):
    names = {category['id']: category['name'] for category in content['categories']}
    crowds = Counter(a.get('iscrowd', 0) for a in content['annotations'])
    return Counter(names[a['category_id']] for a in content['annotations']), crowds


def test_nothing_is_lost(imported):
    content, said = imported
    assert len(content['images']) == 100 and len(content['categories']) == 80
    assert by_class(content) == by_class(TRUTH)
    assert 'dropped' not in said


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_results_score_as_published(kind, imported, tmp_path):
    content, _ = imported
    # by COCO's ids again: of detections with equal scores the order of the images decides
    images = {entry['file_name']: entry['id'] for entry in TRUTH['images']}
    categories = {entry['name']: entry['id'] for entry in TRUTH['categories']}
    image_ids = {entry['id']: images[entry['file_name']] for entry in content['images']}
    category_ids = {entry['id']: categories[entry['name']] for entry in content['categories']}
    truth = dict(
        images=[entry | dict(id=image_ids[entry['id']]) for entry in content['images']],
        categories=TRUTH['categories'],
        annotations=[
            entry
            | dict(
                image_id=image_ids[entry['image_id']],
                category_id=category_ids[entry['category_id']],
            )
            for entry in content['annotations']
        ],
    )
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    results = FOLDER / 'cocoapi' / f'instances_val2014_fake{kind}100_results.json'
    scores = evaluate_coco(tmp_path / 'truth.json', results, iou_type=kind)
    assert scores.numbers == pytest.approx(EXPECTED[f'cocoapi_{kind}'], rel=0, abs=1e-12)
