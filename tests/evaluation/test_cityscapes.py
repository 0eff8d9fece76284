"""Saved label maps: every figure against cityscapesScripts' own run, and files that it cannot take."""

import importlib.util
import json
import shutil
import sys
from math import isnan
from struct import pack
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import id2label
from mmengine.structures import PixelData
from mmseg.datasets import CityscapesDataset
from mmseg.structures import SegDataSample
from PIL import Image

from mmattn.errors import DataError, UsageError
from mmattn.evaluation import cityscapes
from mmattn.evaluation.cityscapes import evaluate_cityscapes, label_ids
from mmattn.evaluation.iou_metric import IoUMetric
from tests.conftest import ROOT

MEANS = dict(
    IoU_classes='averageScoreClasses',
    iIoU_classes='averageScoreInstClasses',
    IoU_categories='averageScoreCategories',
    iIoU_categories='averageScoreInstCategories',
)
THINGS = ['person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle']


def damage(values, seed):
    """Label ids with wrong pixels, boxes and stripes, of classes that do not count, too."""
    rng = np.random.default_rng(seed)
    found = values.copy()
    noise = rng.random(values.shape) < 0.2
    found[noise] = rng.integers(0, 34, noise.sum())
    height, width = values.shape
    for _ in range(6):
        y, x = rng.integers(0, height - 9), rng.integers(0, width - 9)
        found[y : y + 9, x : x + 9] = rng.integers(0, 34)
    found[:, ::11] = np.roll(values, 3, 1)[:, ::11]
    return found


@pytest.fixture
def split(street, tmp_path):
    """Ground truth of the 4 training scenes and damaged predictions, both free to change."""
    annotations, predictions = tmp_path / 'gtFine', tmp_path / 'predictions'
    shutil.copytree(street / 'gtFine' / 'train', annotations)
    for index, path in enumerate(sorted(annotations.rglob('*_labelIds.png'))):
        values = damage(np.array(Image.open(path)), index)
        save(predictions / path.name.replace('_gtFine_labelIds', '_leftImg8bit'), values)
    return annotations, predictions


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(path)


def theirs(annotations, predictions, monkeypatch, instances=True):
    """What cityscapesScripts says of the same files."""
    monkeypatch.setattr(np, 'in1d', np.isin, raising=False)  # gone in newer NumPy
    truths = sorted(map(str, annotations.rglob('*_labelIds.png')))
    args = SimpleNamespace(**vars(official.args))
    args.predictionPath, args.predictionWalk = str(predictions), None
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, instances
    found = [official.getPrediction(args, path) for path in truths]
    return official.evaluateImgLists(found, truths, args)


def same(ours, other):
    return isnan(other) if ours is None else abs(ours - other) <= 1e-9


def check(scores, other):
    """Every figure of ours is theirs, and they have no other."""
    assert len(scores.numbers) == 4
    for name, key in MEANS.items():
        assert same(scores.numbers[name], other[key]), name
    parts = (
        (scores.per_class, 'classScores', 'classInstScores', 19, 8),
        (scores.per_category, 'categoryScores', 'categoryInstScores', 7, 2),
    )
    for ours, plain, weighted, count, things in parts:
        assert len(ours) == count + things
        for key, value in ours.items():
            metric, name = key.split('.')
            assert same(value, other[plain if metric == 'IoU' else weighted][name]), key
        for metric, table in ('IoU', other[plain]), ('iIoU', other[weighted]):
            assert {n for n, v in table.items() if not isnan(v)} <= {
                key.split('.')[1] for key in ours if key.startswith(f'{metric}.')
            }


# ---- the figures ---------------------------------------------------------------------------------
def test_every_figure_is_that_of_cityscapesscripts(split, monkeypatch):
    scores = evaluate_cityscapes(*split)
    check(scores, theirs(*split, monkeypatch))
    assert 0.2 < scores.numbers['IoU_classes'] < 0.8 and 0.1 < scores.numbers['iIoU_classes'] < 0.9
    assert scores.numbers['iIoU_classes'] != scores.numbers['IoU_classes']
    assert scores.files == dict(annotations=4, predictions=4, instances=4)


def test_perfect_predictions(split, monkeypatch):
    annotations, predictions = split
    for path in annotations.rglob('*_labelIds.png'):
        shutil.copy(path, predictions / path.name.replace('_gtFine_labelIds', '_leftImg8bit'))
    scores = evaluate_cityscapes(*split)
    check(scores, theirs(*split, monkeypatch))
    assert set(scores.numbers.values()) == {1.0}
    assert scores.pixels['counted'] == scores.pixels['right'] > 0


def change(annotations, old, new):
    """Put another class and its objects in the place of one, in all ground truths."""
    for path in annotations.rglob('*_labelIds.png'):
        values = np.array(Image.open(path))
        values[values == old] = new
        save(path, values)
        path = path.with_name(path.name.replace('labelIds', 'instanceIds'))
        values = np.array(Image.open(path))
        objects = values // 1000 == old
        values[objects] = values[objects] % 1000 + 1000 * new
        values[values == old] = new
        save(path, values)


@pytest.mark.parametrize('old, new', [(12, 7), (12, 24), (12, 0), (26, 29), (26, 30)])
def test_absent_classes(old, new, split, monkeypatch, capsys):
    """No truck in the ground truth, another class as something else: caravans do not count."""
    annotations, predictions = split
    change(annotations, 27, 24)
    change(annotations, old, new)
    scores = evaluate_cityscapes(*split)
    check(scores, theirs(*split, monkeypatch))
    assert 'truck' in scores.only_predicted and scores.per_class['IoU.truck'] == 0
    for path in predictions.rglob('*.png'):
        values = np.array(Image.open(path))
        values[values == 27] = 0
        save(path, values)
    capsys.readouterr()
    scores = evaluate_cityscapes(*split)
    check(scores, theirs(*split, monkeypatch))
    assert 'truck' in scores.absent and 'truck' not in scores.only_predicted
    assert scores.per_class['IoU.truck'] is None and scores.per_class['iIoU.truck'] is None
    said = capsys.readouterr().err
    assert 'warning: absent from ground truth and predictions of 4 images' in said
    assert f'the mean is over the other {19 - len(scores.absent)} classes: ' in said


def test_palette_of_greys_as_mmseg_writes_it(split, monkeypatch):
    for path in split[1].rglob('*.png'):
        save(path, Image.open(path).convert('P'))
    assert Image.open(path).mode == 'P'
    check(evaluate_cityscapes(*split), theirs(*split, monkeypatch))


def test_without_instances_iiou_is_left_out(split, monkeypatch, capsys):
    missing = sorted(split[0].rglob('*_instanceIds.png'))[1]
    missing.unlink()
    scores = evaluate_cityscapes(*split)
    assert (
        f'iIoU is left out: 1 of 4 ground truths have no map of instances, e.g. {missing} is'
        in capsys.readouterr().err
    )
    other = theirs(*split, monkeypatch, instances=False)
    assert same(scores.numbers['IoU_classes'], other['averageScoreClasses'])
    assert scores.files['instances'] == 0
    for part in scores.numbers, scores.per_class, scores.per_category:
        assert {v for k, v in part.items() if k.startswith('iIoU')} == {None}
        assert all(
            k.startswith('iIoU') or v is not None for k, v in part.items() if 'train' not in k
        )


def test_predictions_without_ground_truth_are_named(split, capsys):
    save(split[1] / 'more_000000_000001.png', np.zeros((64, 128), np.uint8))
    evaluate_cityscapes(*split)
    assert (
        f'1 predictions have no ground truth, e.g. {split[1]}/more_000000_000001.png.'
        in capsys.readouterr().err
    )


def test_label_ids_are_the_table_of_street():
    from mmattn.datasets.street_labels import TRAIN_ID

    assert (TRAIN_ID[label_ids()] == np.arange(19)).all()
    names = tuple(id2label[ident].name for ident in label_ids().tolist())
    assert names == CityscapesDataset.METAINFO['classes']


def test_what_the_metric_writes_is_scored_alike(street, tmp_path, monkeypatch):
    """The chain of a submission: train ids predicted, label ids written, scored by both."""
    annotations, out = street / 'gtFine' / 'val', tmp_path / 'maps'
    metric = IoUMetric(output_dir=str(out))
    metric.dataset_meta = CityscapesDataset.METAINFO
    rng = np.random.default_rng(0)
    for path in sorted(annotations.rglob('*_labelTrainIds.png')):
        label = np.array(Image.open(path)).astype(np.int64)
        prediction = np.where(
            (rng.random(label.shape) < 0.6) & (label < 19), label, rng.integers(0, 19, label.shape)
        )
        image = str(path).replace('gtFine_labelTrainIds', 'leftImg8bit')
        sample = SegDataSample(metainfo=dict(img_path=image, seg_map_path=str(path)))
        sample.gt_sem_seg, sample.pred_sem_seg = (
            PixelData(data=torch.from_numpy(v)[None]) for v in (label, prediction)
        )
        metric.process({}, [sample.to_dict()])
    metrics = metric.evaluate(2)
    scores, other = evaluate_cityscapes(annotations, out), theirs(annotations, out, monkeypatch)
    check(scores, other)
    assert metrics['mIoU'] == round(100 * other['averageScoreClasses'], 2)
    for name in CityscapesDataset.METAINFO['classes']:
        found, expected = metrics[f'IoU.{name}'], other['classScores'][name]
        assert isnan(expected) if isnan(found) else found == round(100 * expected, 2)
    assert metrics['aAcc'] == round(100 * scores.pixels['right'] / scores.pixels['counted'], 2)


def test_what_a_test_run_writes_is_scored_alike(street, tiny, tmp_path):
    from mmattn.engine.test import test

    out, config = tmp_path / 'maps', str(ROOT / 'configs' / 'fcn_r18_street.py')
    metrics = test(config, None, work_dir=tmp_path / 'run', out=out, cfg_options=tiny)
    scores = evaluate_cityscapes(street / 'gtFine' / 'test', out)
    assert metrics['mIoU'] == round(100 * scores.numbers['IoU_classes'], 2)


# ---- the command line ----------------------------------------------------------------------------
def tool(*given):
    spec = importlib.util.spec_from_file_location('evaluate', ROOT / 'tools' / 'evaluate.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(['cityscapes', *map(str, given)])


def flags(annotations, predictions):
    return '--annotations', annotations, '--predictions', predictions


def test_command_line(split, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['evaluate.py', 'not', 'read', 'by', 'them'])
    out = tmp_path / 'new' / 'scores.json'
    assert tool(*flags(*split), '--json', out) == 0
    written, shown = json.loads(out.read_text()), capsys.readouterr()
    scores = cityscapes.CityscapesScores(**written)
    check(scores, theirs(*split, monkeypatch))
    assert written['files'] == dict(annotations=4, predictions=4, instances=4)
    assert written['version'] == scores.version and 'scoring: 4 in ' in shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[0] == ['classes', 'IoU', 'iIoU']
    assert len(lines) == (1 + 19 + 1 + 1) + (1 + 7 + 1 + 1) + 2
    assert ['road', f'{scores.per_class["IoU.road"]:.6f}', '-'] in lines
    assert ['person', *(f'{scores.per_class[f"{m}.person"]:.6f}' for m in ('IoU', 'iIoU'))] in lines
    for kind in 'classes', 'categories':
        assert ['mean', *(f'{scores.numbers[f"{m}_{kind}"]:.6f}' for m in ('IoU', 'iIoU'))] in lines
    assert f'scored by cityscapesscripts {scores.version}' in shown.out
    assert 'Evaluating' not in shown.out + shown.err and 'nIoU' not in shown.out


def test_command_line_refuses(split, tmp_path, capsys):
    annotations, predictions = split
    assert tool(*flags(annotations, tmp_path / 'none')) == 3
    assert (
        f'error: predictions: {tmp_path / "none"} is no folder. Name another with --predictions.'
        in capsys.readouterr().err
    )
    assert tool(*flags(annotations, predictions), '--json', tmp_path) == 7
    assert f'error: cannot write {tmp_path}: ' in capsys.readouterr().err
    assert tool(*flags(tmp_path / 'none', predictions), '-v') == 3
    assert 'Traceback' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='2'):
        tool('--annotations', annotations)


# ---- files that cannot be scored -----------------------------------------------------------------
def first(folder, pattern='*.png'):
    return sorted(folder.rglob(pattern))[0]


def refused(split, *parts):
    with pytest.raises(DataError) as caught:
        evaluate_cityscapes(*split)
    for part in parts:
        assert str(part) in str(caught.value), caught.value
    assert str(caught.value).endswith('.')


def test_refuses_folders(split, tmp_path):
    annotations, predictions = split
    none, empty = tmp_path / 'none', tmp_path / 'empty'
    empty.mkdir()
    refused((none, predictions), f'annotations: {none} is no folder', '--annotations')
    refused((annotations, first(predictions)), 'predictions: ', ' is no folder')
    refused((annotations, empty), f'no *.png below {empty}', 'tools/test.py --out')
    refused((empty, predictions), f'no *_labelIds.png below {empty}. ', 'gtFine/val')
    for path in annotations.rglob('*_labelIds.png'):
        path.unlink()
    refused(split, f'no *_labelIds.png below {annotations}, only 4 *_labelTrainIds.png')


def test_refuses_a_missing_prediction(split):
    path = first(split[1])
    path.unlink()
    start = path.name.removesuffix('_leftImg8bit.png')
    refused(split, '1 of 4 ground truths have none', split[1], f'{start}*.png is missing')
    save(path.with_name(f'{start}7_leftImg8bit.png'), np.zeros((64, 128), np.uint8))
    refused(split, f'{start}*.png is missing')


def test_refuses_two_of_one_image(split, tmp_path):
    path = first(split[1])
    again = split[1] / 'sub' / path.name.replace('leftImg8bit', 'color')
    again.parent.mkdir()
    shutil.copy(path, again)
    refused(split, '2 predictions of ', path, again, 'Remove all but one')
    again.unlink()
    truth = first(split[0], '*_labelIds.png')
    shutil.copy(truth, truth.with_name(truth.name.replace('gtFine', 'gtCoarse')))
    refused(split, f'two ground truths of {path}', 'gtCoarse')


def test_refuses_another_size(split):
    path, truth = first(split[1]), first(split[0], '*_labelIds.png')
    save(path, np.zeros((32, 64), np.uint8))
    refused(split, f'prediction {path} is 64x32, its ground truth {truth.name} 128x64')
    save(path, np.array(Image.open(truth)))
    save(first(split[0], '*_instanceIds.png'), np.zeros((32, 64), np.uint16))
    refused(split, 'map of instances ', 'is 64x32')


GREY = np.full((64, 128), 7, np.uint8)
COLOURS = Image.fromarray(GREY).convert('P')
COLOURS.putpalette([200, 30, 30] * 256)


@pytest.mark.parametrize(
    'image, what',
    [
        (GREY.astype(np.uint16), '16-bit PNG'),
        (np.stack([GREY] * 3, -1), 'colour PNG'),
        (np.stack([GREY] * 4, -1), 'colour PNG'),
        (GREY > 3, '1-bit PNG'),
        (COLOURS, 'palette PNG'),
    ],
)
def test_refuses_other_kinds_of_png(image, what, split):
    for path, name in (
        (first(split[0], '*_labelIds.png'), 'ground truth'),
        (first(split[1]), 'prediction'),
    ):
        kept = path.read_bytes()
        save(path, image)
        refused(split, f'{name} {path} is a {what}, allowed: a PNG with one channel of 8 bits')
        path.write_bytes(kept)


def test_refuses_other_formats(split):
    path = first(split[1])
    Image.fromarray(GREY).save(path, format='JPEG')
    refused(split, f'prediction {path} is a JPEG, allowed: a PNG')


def short_header(data):
    """A first chunk of 5 bytes; Pillow raises ValueError."""
    header = b'IHDR' + data[16:21]
    return data[:8] + pack('>I', 5) + header + pack('>I', crc32(header)) + data[33:]


def wrong_length(data):
    """A chunk of pixels that is longer than it says; Pillow raises SyntaxError."""
    start = data.index(b'IDAT')
    return data[: start - 4] + pack('>I', 3) + data[start:]


@pytest.mark.parametrize(
    'spoil',
    [
        lambda data: b'',
        lambda data: data[:20],
        lambda data: data[:60],
        lambda data: data[:-40],
        short_header,
        wrong_length,
    ],
)
def test_refuses_damaged_files(spoil, split):
    for path, name in (
        (first(split[0], '*_labelIds.png'), 'ground truth'),
        (first(split[0], '*_instanceIds.png'), 'map of instances'),
        (first(split[1]), 'prediction'),
    ):
        kept = path.read_bytes()
        path.write_bytes(spoil(kept))
        refused(split, f'{name} {path} cannot be read: it is damaged or no image')
        path.write_bytes(kept)


@pytest.mark.parametrize('value', [34, 128, 255])
def test_refuses_values_that_are_no_label_id(value, split):
    for path, name in (
        (first(split[0], '*_labelIds.png'), 'ground truth'),
        (first(split[1]), 'prediction'),
    ):
        kept, values = path.read_bytes(), np.array(Image.open(path))
        values[5, 6] = value
        save(path, values)
        refused(split, f'{name} {path} holds {value}, allowed: label ids 0..33.')
        path.write_bytes(kept)


@pytest.mark.parametrize(
    'value, why',
    [(34001, 'holds 34001, allowed: 0..33999'), (7001, 'holds 7001, but road has none')],
)
def test_refuses_instances_of_no_class(value, why, split):
    path = first(split[0], '*_instanceIds.png')
    values = np.array(Image.open(path))
    values[5, 6] = value
    save(path, values)
    refused(split, f'map of instances {path} {why}')


def as_train_ids(split, ignored):
    from mmattn.datasets.street_labels import TRAIN_ID

    for path in split[1].rglob('*.png'):
        truth = split[0] / 'street' / path.name.replace('leftImg8bit', 'gtFine_labelIds')
        values = TRAIN_ID[np.array(Image.open(truth))]
        save(path, np.where(values == 255, ignored, values).astype(np.uint8))


def test_refuses_train_ids(split):
    as_train_ids(split, ignored=0)
    refused(
        split,
        f'predictions {split[1]} hold no label id above 18',
        'fit better as train ids',
        '100.0 %',
    )
    as_train_ids(split, ignored=255)
    refused(split, 'holds 255', 'It seems to hold train ids')


def test_warns_of_what_could_be_train_ids(split, monkeypatch, capsys):
    """A network that knows roads and buildings alone is scored."""
    for path in split[1].rglob('*.png'):
        values = np.array(Image.open(path))
        values = np.where(values < 10, 7, 11).astype(np.uint8)
        values[:2, :9] = np.arange(9)  # ids that do not count
        save(path, values)
    scores = evaluate_cityscapes(*split)
    assert (
        'hold no label id above 18, but the ground truth does. Are they train ids?'
        in capsys.readouterr().err
    )
    check(scores, theirs(*split, monkeypatch))


def test_refuses_ground_truth_without_classes(split):
    """As of the test split, whose labels are not public."""
    for pattern in '*_labelIds.png', '*_instanceIds.png':
        for path in split[0].rglob(pattern):
            save(path, np.full_like(np.array(Image.open(path)), 3))
    refused(split, f'annotations {split[0]}: no pixel of any class', 'gtFine/val')


@pytest.fixture
def imported_again(monkeypatch):
    """cityscapesscripts as in a process that has not imported it yet."""
    package = 'cityscapesscripts.evaluation'
    monkeypatch.delitem(sys.modules, f'{package}.evalPixelLevelSemanticLabeling')
    monkeypatch.delattr(sys.modules[package], 'evalPixelLevelSemanticLabeling')
    cityscapes._cityscapesscripts.cache_clear()
    yield
    cityscapes._cityscapesscripts.cache_clear()


def test_says_what_to_install(imported_again, split, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cityscapesscripts.evaluation', None)
    with pytest.raises(UsageError, match='Run: pip install cityscapesscripts'):
        evaluate_cityscapes(*split)


def test_says_what_the_environment_spoils(imported_again, split, monkeypatch, tmp_path):
    monkeypatch.setenv('CITYSCAPES_EXPORT_DIR', str(tmp_path / 'none'))
    with pytest.raises(UsageError, match='CITYSCAPES_EXPORT_DIR .*none is not a directory. Unset'):
        evaluate_cityscapes(*split)
