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
    images = {entry['file_name']: entry['id'] for entry in content['images']}
    categories = {entry['name']: entry['id'] for entry in content['categories']}
    paths = {entry['id']: entry['file_name'] for entry in TRUTH['images']}
    names = {entry['id']: entry['name'] for entry in TRUTH['categories']}
    results = json.loads(
        (FOLDER / 'cocoapi' / f'instances_val2014_fake{kind}100_results.json').read_text()
    )
    for result in results:
        result['image_id'] = images[paths[result['image_id']]]
        result['category_id'] = categories[names[result['category_id']]]
    for name, value in ('truth', content), ('results', results):
        (tmp_path / f'{name}.json').write_text(json.dumps(value))
    scores = evaluate_coco(tmp_path / 'truth.json', tmp_path / 'results.json', iou_type=kind)
    # detections of equal score are taken in the order of their images, which is another one
    assert scores.numbers == pytest.approx(EXPECTED[f'cocoapi_{kind}'], rel=0, abs=1e-7)
