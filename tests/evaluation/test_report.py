"""The report of a test: its numbers are those of the metric, its images the worst."""

import json

import cv2
import numpy as np
import pytest

from mmattn.engine.test import test as evaluate
from mmattn.errors import UsageError
from mmattn.evaluation.image_source import ImageSource
from tests.report_tables import Page
from tests.squares import CLASSES, average_precision, by_heart, config, recite, squares

MULTI = """
_two = [dict(ann_file=f, test_mode=True, **_common) for f in ['val.json', 'other.json']]
test_dataloader['dataset'] = dict(_delete_=True, type='ConcatDataset', datasets=_two)
test_evaluator = dict(
    _delete_=True, type='MultiDatasetsEvaluator', dataset_prefixes=['val', 'other'],
    metrics=[dict(type='CocoMetric', metric='bbox')] * 2)
"""


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp('squares')
    return root, squares(root, 'val', 26), squares(root, 'other', 3), squares(root, 'train', 2)


@pytest.fixture
def run(sets, tmp_path, monkeypatch):
    """Test a network that answers by heart; returns what it returns, and what it was shown."""
    root, *data = sets
    shown: list[str] = []
    recite(monkeypatch, by_heart(*data), shown)

    def test(report, extra='', **more):
        path = config(tmp_path / 'own.py', root, extra)
        return evaluate(path, None, work_dir=tmp_path / 'work', report=report, **more), shown

    return test


def test_a_detector(sets, run, tmp_path, monkeypatch, chromium):
    root, val, *_ = sets
    read = []
    original = ImageSource.read
    monkeypatch.setattr(ImageSource, 'read', lambda *a: (read.append(a[1]), original(*a))[1])
    folder = tmp_path / 'new' / 'report'
    metrics, _ = run(folder)
    page = Page(folder / 'index.html')
    assert page.table('as the test prints it') == {k: {'value': str(v)} for k, v in metrics.items()}

    classes, sizes = page.table('per class'), page.table('by object size')
    mean = classes.pop('mean of the classes')
    assert [*classes] == [*CLASSES] and 0.2 < float(mean['AP']) < 0.8
    pairs = dict(AP='mAP', AP50='mAP_50', AP75='mAP_75')
    for column, name in pairs.items():
        assert float(mean[column]) == metrics[f'coco/bbox_{name}']
    for size in 'small', 'medium', 'large':
        value = metrics[f'coco/bbox_mAP_{size[0]}']
        texts = {mean[f'AP {size}'], sizes[size]['AP']}
        assert texts == ({'-'} if value == -1 else {f'{value:.3f}'})
    assert mean['AP small'] != '-' and mean['AP large'] == '-'
    found = by_heart(val)
    for label, name in enumerate(CLASSES):
        own = dict(val, categories=[val['categories'][label]])
        ident = val['categories'][label]['id']
        own['annotations'] = [a for a in val['annotations'] if a['category_id'] == ident]
        rows = {k: [row for row in rows if row[4] == label] for k, rows in found.items()}
        assert float(classes[name]['AP']) == pytest.approx(average_precision(own, rows), abs=6e-4)
        assert int(classes[name]['objects']) == len(own['annotations'])

    matrix = page.table('confusion matrix in numbers')
    assert [*matrix] == [*CLASSES, 'background']
    for name in CLASSES:
        assert sum(map(int, matrix[name].values())) == int(classes[name]['objects'])
    score = json.loads((folder / 'report.json').read_text())['bbox']['score']
    detections = sum(row[-1] >= score for rows in found.values() for row in rows)
    columns = np.sum([[*map(int, row.values())] for row in matrix.values()], 0)
    assert columns[:-1].sum() == detections > 26 and f'{score:.3f}' in page.text

    images = {f'{root}/images/{image["file_name"]}' for image in val['images']}
    pictures = {k: v for k, v in page.pictures.items() if 'worst' in k}
    assert len(pictures) == 20 == len(read) == len(set(read)) and set(read) <= images
    previous = 0.0
    for path, (file, caption) in zip(read, pictures.items()):
        assert caption.startswith(path)
        f1 = float(caption.split('F1 ')[1].split(':')[0])
        assert previous <= f1 < 1
        previous, picture = f1, cv2.imread(str(folder / file))
        grey = cv2.imread(path)[0, 0, 0]  # of this image alone
        assert picture.shape[1] > 1280 and (abs(picture - float(grey)) < 2).all(-1).mean() > 0.3
    assert all((folder / t).is_file() for t in page.targets if t.startswith('pictures/'))

    chromium.get((folder / 'index.html').as_uri())
    assert len(chromium.find_elements('css selector', 'figure img')) == 23
    assert chromium.get_log('browser') == []


def test_several_data_sets_have_sections_of_their_own(run, tmp_path):
    metrics, _ = run(tmp_path / 'report', MULTI)
    page = Page(tmp_path / 'report' / 'index.html')
    assert 'val: boxes' in page.text and 'other: boxes' in page.text
    for index, name in enumerate(('val', 'other')):
        mean = page.table('per class', index)['mean of the classes']
        assert float(mean['AP']) == metrics[f'{name}/coco/bbox_mAP']
    paths = [text for file, text in page.pictures.items() if 'worst' in file]
    images = json.loads((tmp_path / 'report' / 'report.json').read_text())['other/bbox']['images']
    wrong = [i['path'] for i in images if i['confused'] + i['missed'] + i['false']]
    assert 0 < len(wrong) < 20 and len(paths) == 20 + len(wrong)
    assert sum('other_' in path for path in paths) == len(wrong)


def test_what_cannot_be_reported_on_ends_before_the_test(sets, run, tmp_path):
    full = tmp_path / 'full'
    full.mkdir()
    (full / 'index.html').touch()
    refused = {
        'is not empty': (full, ''),
        'VOCMetric': (tmp_path / 'voc', "\ntest_evaluator = dict(_delete_=True, type='VOCMetric')"),
        'CocoMetric, and a report': (
            tmp_path / 'only',
            f"\ntest_evaluator.update(format_only=True, outfile_prefix='{tmp_path}/o/x')",
        ),
        f'{sets[0]} is not empty': (sets[0], ''),
    }
    for text, (folder, extra) in refused.items():
        with pytest.raises(UsageError, match=text) as info:
            run(folder, extra)
        assert '--report' in str(info.value)
    assert run(None)[1] and [*full.iterdir()] == [full / 'index.html']
