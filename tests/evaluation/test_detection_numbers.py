"""Numbers of a report on detections against slow loops, pycocotools and faster_coco_eval."""

from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
from faster_coco_eval import COCO as FasterCOCO
from faster_coco_eval.extra import Curves
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmattn.evaluation.coco import index_of
from mmattn.evaluation.detection_numbers import (
    ImageErrors,
    ScoredDetections,
    confuse_detections,
    count_detections,
    worst_images,
)

IDS = (7, 3, 5, 11)  # of the labels 0 to 3, not in their order; 11 has no object
THRESHOLDS = np.linspace(0.5, 0.95, 10)


def entry(image, label, box, **more):
    x, y, w, h = map(float, box)
    rle = mask.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], 400, 500)[0]
    shape = dict(image_id=image, category_id=IDS[label], bbox=[x, y, w, h], segmentation=rle)
    return shape | dict(area=w * h, iscrowd=0) | more


def made(kind='bbox', images=14):
    """Objects of all sizes, some of them crowds, and detections that are right, wrong and extra."""
    rng, truth, found = np.random.default_rng(3), [], []
    for image in range(1, images):
        for _ in range(rng.integers(0, 7)):
            side = rng.choice([20, 60, 150])
            box = [*rng.integers(0, 250, 2), *rng.integers(side // 2, side, 2)]
            label, crowd = int(rng.integers(3)), int(rng.random() < 0.1)
            truth.append(entry(image, label, box, iscrowd=crowd))
            for _ in range(rng.integers(0, 3)):
                near = np.maximum(np.array(box) + rng.normal(0, 0.05 * side, 4), 1)
                other = label if rng.random() < 0.5 else int(rng.integers(4))
                found.append(entry(image, other, near, score=float(rng.random())))
        box = [*rng.integers(0, 250, 2), *rng.integers(9, 90, 2)]
        found.append(entry(image, int(rng.integers(4)), box, score=float(rng.random())))
    infos = {i: dict(id=i, width=500, height=400, file_name=f'{i}.png') for i in range(1, images)}
    categories = {ident: dict(id=ident, name=f'class {ident}') for ident in IDS}
    return ScoredDetections(kind, infos, categories, truth, found, THRESHOLDS, [100, 300, 1000])


def overlap(a, b, crowd):
    """IoU of two boxes; with a crowd, the share of the detection that is in it."""
    (x, y, w, h), (p, q, r, s) = a['bbox'], b['bbox']
    inter = max(0, min(x + w, p + r) - max(x, p)) * max(0, min(y + h, q + s) - max(y, q))
    return inter / (w * h if crowd else w * h + r * s - inter)


def matched(truth, found):
    """Object of each detection of an image at an IoU of 0.5, None for none, in order of scores."""
    taken, pairs = [], []
    for one in sorted(found, key=lambda d: -d['score']):
        free = [t for t in truth if t['iscrowd'] or not any(t is u for u in taken)]
        for crowds in 0, 1:
            own = [t for t in free if t['iscrowd'] == crowds and overlap(one, t, crowds) >= 0.5]
            best = max(own, key=lambda t: overlap(one, t, crowds), default=None)
            if best is not None:
                break
        taken.append(best)
        pairs.append((one, best))
    return pairs


def of_image(entries, image):
    return [e for e in entries if e['image_id'] == image]


@pytest.mark.parametrize('score', [0.0, 0.45])
def test_confusions_are_those_of_a_slow_loop(score):
    scored = made()
    matrix, images = confuse_detections(scored, score)
    expected = np.zeros((5, 5), int)
    for image in scored.images:
        truth = of_image(scored.truth, image)
        pairs = matched(truth, [d for d in of_image(scored.found, image) if d['score'] >= score])
        own = np.zeros((5, 5), int)
        for one, best in pairs:
            if best is None:
                own[4, IDS.index(one['category_id'])] += 1
            elif not best['iscrowd']:
                own[IDS.index(best['category_id']), IDS.index(one['category_id'])] += 1
        for t in truth:
            if not t['iscrowd'] and not any(t is best for _, best in pairs):
                own[IDS.index(t['category_id']), 4] += 1
        expected += own
        right, missed, false = np.trace(own), own[:, 4].sum(), own[4].sum()
        counts = right, own.sum() - right - missed - false, missed, false
        assert [tuple(e) for e in images if e.image_id == image] == (
            [(image, *counts)] if truth or pairs else []
        )
    np.testing.assert_array_equal(matrix, expected)
    assert matrix[:4, :4].sum() - np.trace(matrix) > 1 and matrix[4].any() and matrix[:, 4].any()
    if not score:  # masks that fill their boxes overlap alike, but for parts of pixels
        masks, _ = confuse_detections(made('segm'), score)
        assert masks.sum(1)[:4].tolist() == matrix.sum(1)[:4].tolist()


def test_curves_are_those_of_a_slow_loop():
    scored = made()
    numbers = count_detections(scored)
    assert numbers.curves[3] is None and numbers.objects[3].tolist() == [0, 0, 0, 0]
    for label, curve in enumerate(numbers.curves[:3]):
        hits, count = [], 0
        for image in scored.images:
            truth, found = (
                [e for e in of_image(part, image) if e['category_id'] == IDS[label]]
                for part in (scored.truth, scored.found)
            )
            count += sum(not t['iscrowd'] for t in truth)
            pairs = [p for p in matched(truth, found) if p[1] is None or not p[1]['iscrowd']]
            hits += [(one['score'], best is not None) for one, best in pairs]
        assert numbers.objects[label, 0] == count > 5
        hits.sort(key=lambda hit: -hit[0])
        right = np.cumsum([hit for _, hit in hits])
        recall, precision = right / count, right / np.arange(1, len(hits) + 1)
        for r, p, s in zip(*curve):
            reached = np.flatnonzero(recall >= r - 1e-12)
            best, score = (
                (precision[reached].max(), hits[reached[0]][0]) if len(reached) else (0, 0)
            )
            assert (p, s) == (pytest.approx(best), score)
        np.testing.assert_allclose(
            curve.f1, 2 * curve.recall * curve.precision / (curve.recall + curve.precision + 1e-16)
        )
        best, score = curve.best
        assert best == curve.f1.max() > 0.2 and score == curve.score[curve.f1.argmax()]


@pytest.mark.parametrize('backend', ['faster_coco_eval', 'pycocotools'])
@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_average_precision_is_that_of_pycocotools(kind, backend):
    """Over all classes, of each, and by size; the metric's own summary first."""
    scored = made(kind)
    numbers = count_detections(scored, backend)
    assert numbers.backend.startswith(backend)
    with redirect_stdout(StringIO()):
        parts = scored.truth, scored.found
        run = COCOeval(*(index_of(COCO, scored.images, scored.categories, p) for p in parts), kind)
        run.params.maxDets = [100, 300, 1000]
        run.evaluate()
        run.accumulate()
        run.summarize()
    np.testing.assert_allclose([*numbers.means.values()], run.stats[:6], atol=1e-12)
    np.testing.assert_allclose(numbers.by_size['AP'][1:], run.stats[3:6], atol=1e-12)
    np.testing.assert_allclose(numbers.by_size['AR'][1:], run.stats[9:], atol=1e-12)
    assert len({*numbers.means.values()}) == 6 and min(run.stats) > 0
    precision = run.eval['precision'][..., -1]  # (T, R, K, A), K in the order of the ids
    for label, ident in enumerate(IDS):
        own = precision[:, :, sorted(IDS).index(ident)]
        cells = [own[..., 0], own[0, :, 0], own[5, :, 0], *(own[..., a] for a in (1, 2, 3))]
        expected = [part[part > -1].mean() if (part > -1).any() else np.nan for part in cells]
        values = [part[label] for part in numbers.figures.values()]
        np.testing.assert_allclose(values, expected, atol=1e-12)


def test_curves_are_those_of_faster_coco_eval():
    scored = made()
    parts = (index_of(FasterCOCO, scored.images, scored.categories, p)
             for p in (scored.truth, scored.found))  # fmt: skip
    theirs = Curves(*parts, iou_tresh=0.5, useCats=True).build_curve('class')
    numbers = count_detections(scored)
    ours = {ident: curve for ident, curve in zip(IDS, numbers.curves) if curve}
    assert [curve['category_id'] for curve in theirs] == sorted(ours)
    for curve in theirs:
        own = ours[curve['category_id']]
        for key, values in zip(('recall_list', 'precision_list', 'scores'), own, strict=True):
            np.testing.assert_allclose(values, curve[key], atol=1e-12)


def test_the_score_of_the_largest_mean_f1():
    numbers = count_detections(made())
    curves = [curve for curve in numbers.curves if curve]
    values = {}
    for score in {s for c in curves for s, p in zip(c.score, c.precision) if p}:
        f1 = [
            ([0.0] + [f for f, s, p in zip(c.f1, c.score, c.precision) if p and s >= score])[-1]
            for c in curves
        ]
        values[score] = np.mean(f1)
    best = max(values, key=values.get)
    assert numbers.operating_point == (best, pytest.approx(values[best]))
    assert 0.2 < best < 0.9 and values[best] > 0.3
    np.testing.assert_allclose(numbers.mean_f1[1], [values[s] for s in numbers.mean_f1[0]])


def test_nothing_is_found_and_there_is_nothing():
    scored = made()
    none = ScoredDetections(**{**vars(scored), 'found': []})
    numbers = count_detections(none)
    assert numbers.means['AP'] == 0 and numbers.operating_point == (0.3, 0.0)
    matrix, images = confuse_detections(none, 0.3)
    assert matrix[:, 4].sum() == matrix.sum() == numbers.objects[:, 0].sum()
    assert worst_images(images, 99)[0].f1 == 0
    empty = ScoredDetections(**{**vars(scored), 'truth': []})
    numbers = count_detections(empty)
    assert np.isnan(numbers.means['AP']) and numbers.mean_curve[0].size == 0
    matrix, _ = confuse_detections(empty, 0.0)
    assert matrix[4].sum() == matrix.sum() == len(scored.found)


def test_the_worst_images_first_and_those_without_errors_not_at_all():
    images = [
        ImageErrors(1, 3, 0, 0, 0),
        ImageErrors(2, 0, 0, 1, 0),
        ImageErrors(3, 1, 1, 0, 1),
        ImageErrors(4, 0, 1, 2, 3),
        ImageErrors(5, 9, 0, 1, 0),
    ]
    assert [image.image_id for image in worst_images(images, 3)] == [4, 2, 3]
    assert [image.image_id for image in worst_images(images, 9)] == [4, 2, 3, 5]
    assert images[2].f1 == pytest.approx(2 / 5)
