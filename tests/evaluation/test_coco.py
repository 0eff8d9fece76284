"""Saved detections: published numbers, both libraries, and files that would crash them."""

import hashlib
import importlib.util
import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask

from mmattn.datasets.rle import run_lengths
from mmattn.errors import DataError, UsageError
from mmattn.evaluation.coco import NUMBERS, evaluate_coco
from tests.conftest import ROOT

DATA = Path(__file__).parent / 'coco'
EXPECTED = json.loads((DATA / 'expected.json').read_text())
FILES = {
    'cocoapi_bbox': (
        'cocoapi/instances_val2014_100',
        'cocoapi/instances_val2014_fakebbox100_results',
    ),
    'cocoapi_segm': (
        'cocoapi/instances_val2014_100',
        'cocoapi/instances_val2014_fakesegm100_results',
    ),
    'polygons_segm': ('faster_coco_eval/gt_dataset', 'faster_coco_eval/dt_dataset'),
    'crowd_bbox': ('faster_coco_eval/gt_ignore_test', 'faster_coco_eval/dt_ignore_test'),
}
FASTER = pytest.param(
    'faster_coco_eval',
    marks=pytest.mark.skipif(not find_spec('faster_coco_eval'), reason='not installed'),
)
both = pytest.mark.parametrize('backend', ['pycocotools', FASTER])
close = partial(pytest.approx, rel=0, abs=1e-12)


def arguments(case):
    annotations, results = (DATA / f'{name}.json' for name in FILES[case])
    return dict(annotations=annotations, results=results, iou_type=case.split('_')[1])


@both
@pytest.mark.parametrize('case', FILES)
def test_published_numbers(case, backend):
    scores = evaluate_coco(**arguments(case), backend=backend)
    assert scores.backend == backend
    assert tuple(scores.numbers) == NUMBERS == tuple(EXPECTED[case])
    assert scores.numbers == close(EXPECTED[case])
    scored = [value for value in scores.per_class.values() if value >= 0]
    assert np.mean(scored) == close(scores.numbers['AP'])


@pytest.mark.skipif(not find_spec('faster_coco_eval'), reason='not installed')
@pytest.mark.parametrize('case', FILES)
def test_both_libraries_agree(case):
    one, other = (
        evaluate_coco(**arguments(case), backend=name)
        for name in ('pycocotools', 'faster_coco_eval')
    )
    assert one.numbers == close(other.numbers) and one.per_class == close(other.per_class)


@both
@pytest.mark.parametrize('case, value', [('cocoapi_bbox', 0.506985), ('cocoapi_segm', 0.321709)])
def test_an_image_without_a_result_counts(case, value, backend, tmp_path):
    """Without the one object of image 1063 the numbers rise."""
    given = arguments(case)
    truth = json.loads(given['annotations'].read_text())
    kept = [a for a in truth['annotations'] if a['image_id'] != 1063]
    assert len(kept) == len(truth['annotations']) - 1
    given['annotations'] = tmp_path / 'less.json'
    given['annotations'].write_text(json.dumps(truth | dict(annotations=kept)))
    assert evaluate_coco(**given, backend=backend).numbers['AP'] == pytest.approx(value, abs=1e-6)


def tool(*given):
    spec = importlib.util.spec_from_file_location('evaluate', ROOT / 'tools' / 'evaluate.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(['coco', *map(str, given)])


@pytest.mark.parametrize('case', ['cocoapi_bbox', 'cocoapi_segm'])
def test_command_line(case, tmp_path, capsys):
    given, out = arguments(case), tmp_path / 'new' / 'scores.json'
    files = ['--annotations', given['annotations'], '--results', given['results']]
    assert tool(*files, '--iou-type', given['iou_type'], '--json', out) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f'AP                       {EXPECTED[case]["AP"]:.6f}\nAP50 ')
    assert '\nAP.fire hydrant          -1\n' in shown
    written = json.loads(out.read_text())
    assert written['numbers'] == close(EXPECTED[case])
    assert len(written['per_class']) == 80 and written['iou_type'] == given['iou_type']
    assert f'counted by {written["backend"]} {written["version"]}\n' in shown
    for name in 'annotations', 'results':
        digest = hashlib.sha256(given[name].read_bytes()).hexdigest()
        assert written['files'][name] == dict(name=given[name].name, sha256=digest)


def test_command_line_refuses(tmp_path, capsys):
    given = arguments('crowd_bbox')
    files = ['--annotations', given['annotations'], '--results']
    assert tool(*files, tmp_path / 'none.json') == 3
    assert 'error: ' in capsys.readouterr().err
    assert tool(*files, given['results'], '--iou-type', 'segm', '-v') == 3
    errors = capsys.readouterr().err
    assert (
        "'segmentation' is missing, which iou type segm needs" in errors and 'Traceback' in errors
    )
    assert tool(*files, given['results'], '--json', tmp_path) == 7
    assert f'error: cannot write {tmp_path}: ' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='2'):
        tool(*files, given['results'], '--iou-type', 'keypoints')


# ---- a set made by hand --------------------------------------------------------------------------
SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]  # 4x4 pixels


def small():
    """An image of 10x20 with two objects of the first category, and a result that finds one."""
    thing = dict(image_id=7, category_id=1, area=16, iscrowd=0)
    annotations = [
        dict(thing, id=1, bbox=[1, 1, 4, 4], segmentation=[SQUARE]),
        dict(
            thing,
            id=2,
            bbox=[11, 1, 4, 4],
            segmentation=[[x + 10 * (i % 2 == 0) for i, x in enumerate(SQUARE)]],
        ),
    ]
    truth = dict(
        images=[dict(id=7, width=20, height=10)],
        categories=[dict(id=1, name='cell'), dict(id=4, name='cell'), dict(id=3, name='nucleus')],
        annotations=annotations,
    )
    found = dict(image_id=7, category_id=1, score=0.5, bbox=[1, 1, 4, 4], segmentation=[SQUARE])
    return truth, [found]


@pytest.fixture
def score(tmp_path):
    def run(truth, results, iou_type='bbox', backend='pycocotools'):
        for name, content in dict(truth=truth, results=results).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text)
        return evaluate_coco(
            tmp_path / 'truth', tmp_path / 'results', iou_type=iou_type, backend=backend
        )

    return run


@both
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_by_hand(score, iou_type, backend):
    """Precision is 1 up to a recall of 1/2, which is 51 of the 101 recalls looked at."""
    scores = score(*small(), iou_type, backend)
    assert scores.numbers['AP'] == scores.numbers['AP_small'] == close(51 / 101)
    assert scores.numbers['AR_1'] == 0.5 and scores.numbers['AP_large'] == -1
    assert scores.per_class == {
        'AP.cell (id 1)': close(51 / 101), 'AP.nucleus': -1, 'AP.cell (id 4)': -1,
    }  # fmt: skip


@both
def test_an_annotation_with_id_0_is_found(score, backend):
    truth, results = small()
    truth['annotations'][0]['id'] = 0
    assert score(truth, results, 'bbox', backend).numbers['AP'] == close(51 / 101)


@both
@pytest.mark.parametrize('iou_type', ['bbox', 'segm'])
def test_nothing_found_and_nothing_to_find(score, iou_type, backend, capsys):
    truth, results = small()
    numbers = score(truth, [], iou_type, backend).numbers
    assert [numbers[name] for name in ('AP', 'AR_100', 'AP_small', 'AP_medium')] == [0, 0, 0, -1]
    assert 'warning: ' in capsys.readouterr().err
    truth['annotations'] = []
    for found in results, []:
        assert set(score(truth, found, iou_type, backend).numbers.values()) == {-1}


@both
def test_ids_as_strings(score, backend, capsys):
    truth, results = small()
    truth['images'][0]['id'], results[0]['category_id'] = '7', '1'
    assert score(truth, results, 'bbox', backend).numbers['AP'] == close(51 / 101)
    errors = capsys.readouterr().err
    for name in 'images', 'results':
        assert f'warning: {name} in ' in errors and '1 ids given as strings' in errors


@both
def test_every_form_of_a_mask_gives_the_same(score, backend):
    truth, results = small()
    packed = mask.merge(mask.frPyObjects([SQUARE], 10, 20))
    packed = dict(size=[10, 20], counts=packed['counts'].decode())
    runs = dict(size=[10, 20], counts=run_lengths(packed['counts']))
    expected = score(truth, results, 'segm', backend).numbers
    for form in packed, runs:
        truth['annotations'][0]['segmentation'] = results[0]['segmentation'] = form
        assert score(truth, results, 'segm', backend).numbers == expected


def test_libraries(score, monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    assert score(*small(), backend='auto').backend == 'pycocotools'
    with pytest.raises(UsageError, match='faster_coco_eval cannot .* pip install faster-coco-eval'):
        score(*small(), backend='faster_coco_eval')
    with pytest.raises(UsageError, match="'fast', allowed: auto, pycocotools"):
        score(*small(), backend='fast')
    with pytest.raises(UsageError, match="'keypoints', allowed: bbox, segm"):
        score(*small(), 'keypoints')


# ---- what is refused: field, value and what is allowed; the library is never called --------------
nan, inf = float('nan'), float('inf')
PIXELS = dict(size=[10, 20], counts=[0, 200])


@pytest.fixture
def never(monkeypatch):
    def called(*_):
        raise RuntimeError('the library was called')

    monkeypatch.setattr('mmattn.evaluation.coco.index_of', called)


@pytest.mark.parametrize(
    'iou_type, key, value, why',
    [
        ('bbox', 'image_id', None, "'image_id' is missing"),
        ('bbox', 'category_id', None, "'category_id' is missing"),
        ('bbox', 'score', None, "'score' is missing"),
        ('bbox', 'bbox', None, "'bbox' is missing, which iou type bbox needs"),
        ('segm', 'segmentation', None, "'segmentation' is missing, which iou type segm needs"),
        ('bbox', 'image_id', 8, r'image_id is 8, allowed: \[7\]'),
        ('bbox', 'image_id', 'a', "image_id is 'a', allowed: integers"),
        ('bbox', 'image_id', 7.5, r'image_id is 7.5, allowed: integers'),
        ('bbox', 'category_id', 2, r'category_id is 2, allowed: \[1, 3, 4\]'),
        ('bbox', 'category_id', True, 'category_id is True, allowed: integers'),
        ('bbox', 'score', nan, 'score is nan, allowed: numbers'),
        ('bbox', 'score', '0.5', "score is '0.5', allowed: numbers"),
        ('bbox', 'score', [], r'score is \[\], allowed: numbers'),
        ('bbox', 'bbox', [1, 1, 4], r'bbox is \[1, 1, 4\], allowed: numbers x, y, width'),
        ('bbox', 'bbox', [1, nan, 4, 4], r'bbox is \[1, nan, 4, 4\]'),
        ('bbox', 'bbox', [1, 1, inf, 4], r'bbox is \[1, 1, inf, 4\]'),
        ('bbox', 'bbox', [1, 1, -4, 4], r'bbox is \[1, 1, -4, 4\], .* width >= 0'),
        ('bbox', 'bbox', [1, 1, True, 4], 'bbox is'),
        ('bbox', 'bbox', 'box', "bbox is 'box'"),
        ('segm', 'segmentation', 'mask', "segmentation is 'mask', allowed: polygons"),
        ('segm', 'segmentation', [], 'segmentation is an empty list'),
        ('segm', 'segmentation', SQUARE, 'polygon 0 is 1, allowed: a list of numbers'),
        ('segm', 'segmentation', [SQUARE, SQUARE[:4]], 'polygon 1 has 4 coordinates'),
        ('segm', 'segmentation', [SQUARE[:7]], 'polygon 0 has 7 coordinates, allowed: an even'),
        ('segm', 'segmentation', [[*SQUARE[:7], nan]], 'polygon 0 holds nan, allowed: numbers -10'),
        ('segm', 'segmentation', [[1e30, *SQUARE[1:]]], r'polygon 0 holds 1e\+30'),
        ('segm', 'segmentation', [['1', *SQUARE[1:]]], "polygon 0 holds '1'"),
        ('segm', 'segmentation', dict(PIXELS, size=[20, 10]), 'RLE size 10x20, image 20x10'),
        ('segm', 'segmentation', dict(PIXELS, size=[10**6, 10**6]), 'image 20x10'),
        ('segm', 'segmentation', dict(size=[10, 20]), 'allowed: polygons, size and counts'),
        ('segm', 'segmentation', dict(PIXELS, counts=[0, 5]), 'RLE covers 5 px, image has 200'),
        ('segm', 'segmentation', dict(PIXELS, counts=[0, 2500]), 'RLE covers 2500 px'),
        ('segm', 'segmentation', dict(PIXELS, counts=[]), 'RLE covers 0 px'),
        ('segm', 'segmentation', dict(PIXELS, counts=''), 'no RLE, or cut short'),
        ('segm', 'segmentation', dict(PIXELS, counts=[-1, 201]), 'RLE counts hold -1'),
        ('segm', 'segmentation', dict(PIXELS, counts=[0.0, 200.0]), 'RLE counts hold 0.0'),
        ('segm', 'segmentation', dict(PIXELS, counts=7), 'RLE counts are damaged: 7, allowed: a string'),
        ('segm', 'segmentation', dict(PIXELS, counts='5'), 'RLE covers 5 px'),
        ('segm', 'segmentation', dict(PIXELS, counts='O0'), 'RLE counts hold -1'),
        ('segm', 'segmentation', dict(PIXELS, counts='5P'), 'no RLE, or cut short'),
        ('segm', 'segmentation', dict(PIXELS, counts='5é'), 'no RLE, or cut short'),
        ('segm', 'segmentation', dict(PIXELS, counts=8 * 'o' + '0'), 'more than 30 bits'),
    ],
)  # fmt: skip
@pytest.mark.parametrize('place', ['results', 'annotations'])
def test_an_entry_that_is_not_valid(score, never, place, iou_type, key, value, why):
    truth, results = small()
    entries = results if place == 'results' else truth['annotations']
    if key == 'score' and place == 'annotations':
        key, why = 'area', why.replace('score', 'area')
    entries[-1][key] = value
    if value is None:
        del entries[-1][key]
    index = len(entries) - 1
    with pytest.raises(
        DataError, match=rf'^{place}\[{index}\] in \S+: .* Correct the file\.$'
    ) as error:
        score(truth, results, iou_type)
    assert error.match(why)


@pytest.mark.parametrize(
    'results, why',
    [
        ('[{"image_id": 7', r'results is not valid JSON: .* Write the file again'),
        (100_000 * '[', 'results is not valid JSON'),
        ('', 'results is not valid JSON'),
        ({}, r'results in .*: {} is no list'),
        ([7], r'results\[0\] in .*: 7 is no object'),
    ],
)
def test_results_that_are_not_a_list_of_objects(score, never, results, why):
    with pytest.raises(DataError, match=why):
        score(small()[0], results)


@pytest.mark.parametrize(
    'change, why',
    [
        (lambda t: t.pop('images'), "truth: 'images' is missing"),
        (lambda t: t.pop('categories'), "truth: 'categories' is missing"),
        (lambda t: t.pop('annotations'), "truth: 'annotations' is missing"),
        (lambda t: t.update(images={}), r'images in .*: {} is no list'),
        (lambda t: t.update(images=[], annotations=[]), 'no image or no category'),
        (lambda t: t['images'].append(t['images'][0]), 'images in .*: id 7 occurs 2 times'),
        (
            lambda t: t['categories'].append(dict(id='1', name='a')),
            'categories in .*: id 1 occurs 2',
        ),
        (lambda t: t['annotations'][1].update(id=1), 'annotations in .*: id 1 occurs 2 times'),
        (lambda t: t['annotations'][1].pop('id'), r"annotations\[1\] in .*: 'id' is missing"),
        (lambda t: t['annotations'][1].pop('area'), r"annotations\[1\] in .*: 'area' is missing"),
        (lambda t: t['annotations'][1].update(iscrowd=2), 'iscrowd is 2, allowed: 0 and 1'),
        (lambda t: t['categories'][1].pop('name'), r"categories\[1\] in .*: 'name' is missing"),
        (lambda t: t['images'][0].pop('width'), r"images\[0\] in .*: 'width' is missing"),
        (
            lambda t: t['images'][0].update(height=10**6),
            'height is 1000000, allowed: integers 1..65535',
        ),
        (lambda t: t['images'][0].update(height=10.0), 'height is 10.0, allowed: integers'),
    ],
)
def test_annotations_that_cannot_be_scored_against(score, never, change, why):
    truth, results = small()
    change(truth)
    with pytest.raises(DataError, match=why):
        score(truth, results, 'segm')


def test_boxes_need_no_masks_and_no_sizes_and_a_crowd_is_none_by_default(score):
    truth, results = small()
    for entry in *truth['annotations'], *results:
        del entry['segmentation']
    for entry in truth['annotations']:
        del entry['iscrowd']
    truth['images'] = [dict(id=7)]
    assert score(truth, results).numbers['AP'] == close(51 / 101)
