"""Counting pixels, and the metric of training and testing, against MMSegmentation's."""

import logging
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.datasets import CityscapesDataset
from mmseg.evaluation import IoUMetric as SegIoUMetric
from mmseg.structures import SegDataSample
from PIL import Image

from mmattn.errors import DataError, UsageError, WriteError
from mmattn.evaluation import iou, iou_metric
from mmattn.evaluation.iou import areas, confusion
from mmattn.evaluation.iou_metric import IoUMetric
from mmattn.registry import METRICS

KINDS = (
    *(np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64),
    *(torch.uint8, torch.int16, torch.int32, torch.int64),
)


def by_hand(prediction, label, num_classes, ignore_index):
    matrix = np.zeros((num_classes + 1,) * 2, np.int64)
    for p, t in zip(prediction.ravel().tolist(), label.ravel().tolist()):
        if t != ignore_index:
            row, column = (v if 0 <= v < num_classes else num_classes for v in (t, p))
            matrix[row, column] += 1
    return matrix


def cast(values, kind):
    if isinstance(kind, torch.dtype):
        return torch.from_numpy(values).to(kind)
    return values.astype(kind)


# ---- the matrix ----------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', KINDS, ids=str)
@pytest.mark.parametrize('num_classes', [2, 3, 16, 19, 150])
def test_areas_are_those_of_mmseg(num_classes, kind):
    """To the integer, with predictions and labels that are no class, and ignored labels."""
    rng = np.random.default_rng(num_classes)
    top = 127 if kind in (np.int8,) else 255
    ignore = top
    for low, high in (0, num_classes), (0, min(num_classes + 9, top)), (0, top + 1):
        high = min(high, top + 1)
        prediction, label = rng.integers(low, high, (2, 21, 34))
        label[rng.random(label.shape) < 0.2] = ignore
        matrix = confusion(cast(prediction, kind), cast(label, kind), num_classes, ignore)
        np.testing.assert_array_equal(matrix, by_hand(prediction, label, num_classes, ignore))
        theirs = SegIoUMetric.intersect_and_union(
            torch.from_numpy(prediction), torch.from_numpy(label), num_classes, ignore
        )
        for ours, other in zip(areas(matrix), theirs):
            assert ours.dtype == np.int64 and ours.tolist() == other.long().tolist()


@pytest.mark.parametrize('ignore', [255, 0, 2, -1, 300, 65535])
def test_values_beyond_a_byte_do_not_wrap(ignore):
    rng = np.random.default_rng(0)
    values = np.array(
        [0, 1, 2, 3, 255, 256, 257, 300, 65535, 65536, -1, -254, -256, 2**40, -(2**63)]
    )
    prediction, label = rng.choice(values, (2, 40, 50))
    expected = by_hand(prediction, label, 3, ignore)
    assert (confusion(prediction, label, 3, ignore) == expected).all()
    assert (confusion(torch.from_numpy(prediction), label, 3, ignore) == expected).all()


@pytest.mark.parametrize('num_classes', [1, 255, 256, 257, 1000])
def test_few_and_many_classes(num_classes):
    rng = np.random.default_rng(1)
    prediction, label = rng.integers(0, num_classes + 3, (2, 30, 40))
    for ignore in 255, num_classes:
        expected = by_hand(prediction, label, num_classes, ignore)
        assert (confusion(prediction, label, num_classes, ignore) == expected).all()
    small = np.minimum(prediction, 255).astype(np.uint8)
    expected = by_hand(small, small, num_classes, 255)
    assert (confusion(small, small, num_classes) == expected).all()


def test_every_part_of_a_large_map_counts():
    """Parts with and without odd values, and a last one that is shorter."""
    rng = np.random.default_rng(2)
    size = 2 * iou._CHUNK + 77
    prediction, label = rng.integers(0, 19, (2, size))
    prediction[iou._CHUNK + 5], label[-1], label[3] = 700, -4, 255
    matrix = confusion(prediction, label, 19)
    assert matrix.sum() == size - 1 and matrix[:, -1].sum() == matrix[-1].sum() == 1
    kept = (label != 255) & (label >= 0) & (prediction < 19)
    counts = np.bincount(19 * label[kept] + prediction[kept], minlength=361).reshape(19, 19)
    assert (matrix[:-1, :-1] == counts).all()
    mixed = confusion(
        torch.from_numpy(prediction), np.where(label < 0, 254, label).astype(np.uint8), 19
    )
    assert (mixed == matrix).all()


def test_any_shape_and_layout():
    rng = np.random.default_rng(3)
    prediction, label = rng.integers(0, 5, (2, 6, 8, 4))
    expected = confusion(prediction, label, 5)
    views = (array[::-1].transpose(2, 0, 1) for array in (prediction, label))
    assert (confusion(*views, 5) == expected).all()
    assert (confusion(prediction.ravel(), label.ravel(), 5) == expected).all()
    assert confusion(np.zeros((0, 3), int), np.zeros((0, 3), int), 5).sum() == 0
    assert confusion(np.array([True, False]), np.array([True, True]), 2).tolist() == [
        [0, 0, 0], [1, 1, 0], [0, 0, 0],
    ]  # fmt: skip


def test_refuses_what_is_not_comparable():
    square, other = np.zeros((4, 6), np.uint8), np.zeros((6, 4), np.uint8)
    with pytest.raises(ValueError, match=r'prediction \(4, 6\), label \(6, 4\)'):
        confusion(square, other, 3)
    with pytest.raises(TypeError, match='prediction is float32, allowed: integers'):
        confusion(torch.zeros(4, 6), square, 3)
    with pytest.raises(ValueError, match='num_classes=0, allowed: 1 or more'):
        confusion(square, square, 0)


# ---- the metric ----------------------------------------------------------------------------------
def made(truth, prediction, **more):
    sample = SegDataSample(
        metainfo=dict(img_path='city/a_leftImg8bit.png', seg_map_path='city/a.png') | more
    )
    if truth is not None:
        sample.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
    sample.pred_sem_seg = PixelData(data=torch.as_tensor(prediction)[None])
    return sample.to_dict()


def build(kind=IoUMetric, classes=('a', 'b', 'c', 'd'), **options):
    metric = kind(**options)
    metric.dataset_meta = dict(classes=classes)
    return metric


@pytest.fixture
def said():
    """What the metric logs, as (level, text)."""
    texts = []

    def keep(text, logger=None, level=logging.INFO):
        texts.append((level, text))

    with patch.object(iou_metric, 'print_log', keep), patch('mmattn.log.print_log', keep):
        yield texts


def maps(classes, images=5, size=(13, 17), seed=0):
    """Ground truth with ignored pixels, and a prediction that is half right."""
    rng = np.random.default_rng(seed)
    for _ in range(images):
        truth, prediction = rng.choice(classes, (2, *size))
        right = rng.random(size) < 0.5
        prediction[right] = truth[right]
        truth[rng.random(size) < 0.1] = 255
        yield truth, prediction


def exact(pairs, count, **options):
    """mmseg's figures of mmseg's areas, in float64: its fp32 has seven digits.

    Its F-score is nan for a class that is never predicted or in no label; ours is 0, as its Dice.
    """
    totals = [0, 0, 0, 0]
    for truth, prediction in pairs:
        truth, prediction = torch.from_numpy(truth), torch.from_numpy(prediction)
        parts = SegIoUMetric.intersect_and_union(prediction, truth, count, 255)
        totals = [total + part.double() for total, part in zip(totals, parts)]
    figures = SegIoUMetric.total_area_to_metrics(*totals, **options)
    if 'Fscore' in figures:
        both, _, found, label = (total.numpy() for total in totals)
        wrong = (both == 0) & (found + label > 0)
        figures['Fscore'] = np.where(wrong, 0.0, figures['Fscore'])
    return figures


@pytest.mark.parametrize('nan_to_num', [None, 0, -1])
@pytest.mark.parametrize(
    'metrics', [['mIoU'], ['mDice'], ['mFscore'], ['mIoU', 'mDice', 'mFscore'], 'mIoU']
)
@pytest.mark.parametrize('present', [[0, 1, 2, 3, 4], [0, 2], [1, 2, 4]])
def test_figures_are_those_of_mmseg(present, metrics, nan_to_num, said):
    classes, pairs = tuple('abcde'), list(maps(present))
    if 4 not in present:  # predicted, but not there
        pairs[1][1][0] = 3
    options = dict(iou_metrics=metrics, nan_to_num=nan_to_num, beta=2)
    ours, theirs = (build(kind, classes, **options) for kind in (IoUMetric, SegIoUMetric))
    for pair in pairs:
        ours.process({}, [made(*pair)])
        theirs.process({}, [made(*pair)])
    found, other = ours.evaluate(len(pairs)), theirs.evaluate(len(pairs))
    assert ours.matrix.sum() == sum((truth != 255).sum() for truth, _ in pairs)
    expected = exact(pairs, len(classes), metrics=metrics, nan_to_num=nan_to_num, beta=2)
    figures = ours.figures(ours.matrix)
    assert list(figures) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(figures[name], values, rtol=0, atol=1e-9)
        key = name if name == 'aAcc' else f'm{name}'
        assert found[key] == round(100 * np.nanmean(values), 2)
    assert [name for name in found if not name.startswith('IoU.')] == list(other)
    for name, value in other.items():
        if name != 'mFscore' or (ours.matrix[:-1, :-1].sum(0) > 0).all():
            assert found[name] == pytest.approx(float(value), abs=0.011)
    ious = exact(pairs, len(classes), metrics='mIoU', nan_to_num=nan_to_num)['IoU']
    for name, value in zip(classes, ious):
        assert found[f'IoU.{name}'] == pytest.approx(round(100 * value, 2), nan_ok=True)


def test_a_count_by_hand(said):
    pairs, found = list(maps([0, 1, 2], images=3)), None
    metric = build()
    metric.process({}, [made(*pair) for pair in pairs])
    found, ious = metric.evaluate(3), []
    for c, name in enumerate('abc'):
        both = sum(((t == c) & (p == c)).sum() for t, p in pairs)
        either = sum((((t == c) | (p == c)) & (t != 255)).sum() for t, p in pairs)
        ious.append(100 * both / either)
        assert found[f'IoU.{name}'] == pytest.approx(ious[-1], abs=0.005)
    assert found['mIoU'] == pytest.approx(np.mean(ious), abs=0.005) and np.isnan(found['IoU.d'])


def test_absent_classes_are_named(said):
    pairs = list(maps([0, 2], images=2))
    pairs[0][1][0, :3], pairs[0][0][0, :3] = 1, 0
    metric = build()
    for pair in pairs:
        metric.process({}, [made(*pair)])
    metric.evaluate(2)
    (_, table), absent, only = said
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()]
    assert ['d', 'absent', 'absent'] in cells and ['b', '0.00', '-'] in cells
    assert absent == (
        logging.WARNING,
        'absent from labels and predictions of 2 images, the means are over the other 3 classes: d',
    )
    assert only == (
        logging.WARNING,
        'predicted, but in no label of 2 images, so the IoU of 0 counts in the mean: b',
    )
    said.clear()
    metric = build(nan_to_num=0)
    metric.process({}, [made(*pairs[1])])
    assert metric.evaluate(1)['IoU.d'] == 0
    assert (
        said[1][1]
        == 'absent from labels and predictions of 1 images, counted as 0 (nan_to_num): b, d'
    )


def test_nothing_to_score_is_said(said):
    metric = build()
    metric.process({}, [made(np.full((4, 6), 255), np.zeros((4, 6), int))])
    assert np.isnan(metric.evaluate(1)['mIoU'])
    assert [text for level, text in said if level == logging.WARNING] == [
        'no labelled pixel in 1 images: there is nothing to score'
    ]


def test_counts_stay_exact_and_results_small(said):
    """20 images of 2^20 pixels, one of each wrong: fp32 sums would lose some of the single pixels."""
    truth = np.zeros((1024, 1024), np.uint8)
    prediction = truth.astype(np.int64)
    prediction[0, 0] = 1
    metric = build(classes=tuple(map(str, range(150))))
    for _ in range(20):
        metric.process({}, [made(truth, prediction)])
    assert sum(cells.nbytes + counts.nbytes for cells, counts, _ in metric.results) < 1000
    metric.evaluate(20)
    assert metric.matrix[0, 0] == 20 * (2**20 - 1) and metric.matrix[0, 1] == 20


def test_an_image_that_pads_a_process_is_left_out(said):
    """mmengine keeps the first `size` results, as the last may repeat the first."""
    pairs = list(maps([0, 1, 2, 3], images=3))
    metric = build()
    metric.process({}, [made(*pair) for pair in [*pairs, pairs[0]]])
    metric.evaluate(3)
    assert metric.matrix.sum() == sum((truth != 255).sum() for truth, _ in pairs)


def test_a_single_output_channel(said):
    """Such heads predict 0 and 1 as floats."""
    (truth, prediction), *_ = maps([0, 1], images=1)
    found = []
    for values in prediction, prediction.astype(np.float32):
        metric = build(classes=('no', 'yes'))
        metric.process({}, [made(truth, values)])
        found.append(metric.evaluate(1))
    assert found[0] == found[1] and 0 < found[0]['mIoU'] < 100


@pytest.mark.parametrize('value', [4, 33, -1, 256, 300])
def test_refuses_labels_out_of_range(value):
    truth = np.zeros((4, 6), np.int64)
    truth[1, 2] = value
    with pytest.raises(DataError, match=f'label {value} in city/a.png is outside 0..3 and not 255'):
        build().process({}, [made(truth, np.zeros((4, 6), int))])


def test_refuses_what_it_cannot_score():
    flat = np.zeros((4, 6), int)
    with pytest.raises(DataError, match=r'city/a.png has shape \(4, 6\), its prediction \(6, 4\)'):
        build().process({}, [made(flat, flat.T.copy())])
    with pytest.raises(DataError, match='a_leftImg8bit.png has no label map .*format_only=True'):
        build().process({}, [made(None, flat)])
    with pytest.raises(UsageError, match=r"iou_metrics=\['mIOU'\], allowed: mIoU, mDice, mFscore"):
        build(iou_metrics='mIOU')
    with pytest.raises(UsageError, match='format_only needs a folder'):
        build(format_only=True)


# ---- what it writes ------------------------------------------------------------------------------
def written(folder):
    return {path.name: np.array(Image.open(path)) for path in folder.iterdir()}


@pytest.mark.parametrize('format_only', [False, True])
def test_writes_label_ids_of_cityscapes(format_only, tmp_path, said):
    from cityscapesscripts.helpers.labels import trainId2label

    classes = CityscapesDataset.METAINFO['classes']
    prediction = np.arange(20).reshape(4, 5) % 19
    options = dict(output_dir=str(tmp_path / 'out'), format_only=format_only)
    metric = build(classes=classes, **options)
    metric.process({}, [made(None if format_only else prediction, prediction)])
    ((name, values),) = written(tmp_path / 'out').items()
    assert name == 'a_leftImg8bit.png' and values.dtype == np.uint8
    assert values.tolist() == [[trainId2label[v].id for v in row] for row in prediction.tolist()]
    found = metric.evaluate(1)
    assert found == {} if format_only else found['mIoU'] == 100
    assert said[0][1] == f'label maps are in {tmp_path / "out"}, as Cityscapes label ids'


@pytest.mark.parametrize('format_only', [False, True])
@pytest.mark.parametrize('reduced', [False, True])
def test_writes_class_indices_of_others(reduced, format_only, tmp_path, said):
    """From 0, as tools/infer.py; with `format_only` as mmseg, which undoes reduce_zero_label."""
    ((truth, prediction),) = maps([0, 1, 2, 3], images=1)
    for kind, folder in (IoUMetric, 'ours'), (SegIoUMetric, 'theirs'):
        metric = build(kind, output_dir=str(tmp_path / folder), format_only=format_only)
        metric.process({}, [made(truth, prediction, reduce_zero_label=reduced)])
        if kind is IoUMetric:
            metric.evaluate(1)
    ours, theirs = (
        written(tmp_path / folder)['a_leftImg8bit.png'] for folder in ('ours', 'theirs')
    )
    assert ours.dtype == theirs.dtype
    assert (ours == (theirs if format_only else prediction)).all()
    assert said[0][1].endswith(
        'class indices + 1, as the benchmark counts (format_only)'
        if format_only and reduced
        else 'class indices from 0'
    )


def test_writes_more_than_256_classes(tmp_path):
    metric = build(classes=tuple(map(str, range(400))), output_dir=str(tmp_path), format_only=True)
    metric.process({}, [made(None, np.array([[3, 399], [256, 0]]))])
    assert written(tmp_path)['a_leftImg8bit.png'].tolist() == [[3, 399], [256, 0]]


def test_f_scores_are_dice_and_means_name_what_they_are_without(said):
    """A network that finds one class of three, as of few steps; by hand."""
    truth = np.array([[0, 0, 0, 1, 1, 2]])
    metric = build(classes=('a', 'b', 'c'), iou_metrics=['mDice', 'mFscore'])
    metric.process({}, [made(truth, np.zeros_like(truth))])
    found = metric.evaluate(1)
    dice = 2 * 3 / (6 + 3)
    assert found['mFscore'] == found['mDice'] == round(100 * dice / 3, 2) == 22.22
    assert found['mPrecision'] == 50 and found['mRecall'] == 33.33
    assert [text for level, text in said if level == logging.WARNING] == [
        'never predicted, so mPrecision is without them: b, c'
    ]


def test_images_of_one_name_have_files_of_their_own(tmp_path):
    metric = build(output_dir=str(tmp_path), format_only=True)
    names = {'one/x.png': Path('one/x.png'), 'two/x.png': Path('two/x.png')}
    metric.output_names = names
    for value, image in enumerate(names):
        metric.process({}, [made(None, np.full((4, 6), value), img_path=image)])
    for value, name in enumerate(names.values()):
        assert (np.array(Image.open(tmp_path / name)) == value).all()


def test_a_label_map_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / 'one').write_text('a file where a folder is needed')
    metric = build(output_dir=str(tmp_path), format_only=True)
    metric.output_names = {'one/x.png': Path('one/x.png')}
    with pytest.raises(WriteError, match='cannot write .*one/x.png: .*--out'):
        metric.process({}, [made(None, np.zeros((4, 6), int), img_path='one/x.png')])


def test_refuses_to_overwrite_another_image(tmp_path):
    metric = build(output_dir=str(tmp_path), format_only=True)
    flat = np.zeros((4, 6), int)
    for _ in range(2):  # the same image again is no other
        metric.process({}, [made(None, flat, img_path='one/x.png')])
    with pytest.raises(DataError, match='one/x.png and two/x.png would both be written to x.png'):
        metric.process({}, [made(None, flat, img_path='two/x.png')])


def test_is_found_by_name():
    assert METRICS.get('mmattn.IoUMetric') is IoUMetric
