"""Masks drawn at random: what a check passes, pycocotools draws as a slow loop does.

Nothing drawn here reaches pycocotools in the process of the tests: a polygon with nan in it makes
it take all memory there is. Children with little memory try it instead.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mmattn.datasets.coco_masks import check_masks
from mmattn.errors import DataError
from mmattn.evaluation import coco_files as evaluation

CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_CPU, (20, 25))
import json, zlib
from pycocotools import mask
for line in sys.stdin:
    number, shape, height, width = json.loads(line)
    print(number, flush=True)
    try:
        drawn = []
        for _ in range(2):
            if type(shape) is list:
                made = mask.merge(mask.frPyObjects(shape, height, width))
            elif type(shape['counts']) is list:
                made = mask.frPyObjects(shape, height, width)
            else:
                made = shape
            drawn.append(mask.decode(made))
        first, second = drawn
        safe = first.shape == (height, width) and first.max() <= 1 and (first == second).all()
        answer = [int(first.sum()), zlib.crc32(first.tobytes('F'))] if safe else 'wild'
    except Exception as error:
        answer = type(error).__name__
    print(number, json.dumps(answer), flush=True)
"""
NAN, INF = float('nan'), float('inf')


def tried(cases):
    """What pycocotools makes of each: [pixels, crc32], the name of an exception, or 'dead'."""
    answers, todo = {}, [[n, *case] for n, case in enumerate(cases)]
    while todo:
        lines = ''.join(json.dumps(case) + '\n' for case in todo)
        child = subprocess.run(
            [sys.executable, '-c', CHILD],
            input=lines, capture_output=True, text=True, timeout=60,
            env=os.environ | dict(OPENBLAS_NUM_THREADS='1'),
        )  # fmt: skip
        said = [line.split(' ', 1) for line in child.stdout.splitlines()]
        answers |= {int(words[0]): json.loads(words[1]) for words in said if len(words) == 2}
        if child.returncode == 0:
            break
        assert said, child.stderr
        last = int(said[-1][0])
        answers.setdefault(last, 'dead')
        todo = [case for case in todo if case[0] > last]
    return [answers[n] for n in range(len(cases))]


def compressed(runs):
    """Counts as pycocotools writes them, from the description of the format."""
    text = ''
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            low, value = value & 31, value >> 5
            more = value != (-1 if low & 16 else 0)
            text += chr((low | 32 * more) + 48)
            if not more:
                break
    return text


def draw(rng):
    """A segmentation, mostly sound, of an image of a few pixels."""
    height, width = (int(n) for n in rng.integers(1, 40, 2))
    kind, spoilt = rng.integers(3), rng.random() < 0.5
    if kind == 0:
        scale = rng.choice([1, 1, 1, 3, 1e3])
        points = (rng.random(2 * rng.integers(3, 7)) * 1.2 - 0.1) * scale * max(height, width)
        points = points.round(int(rng.integers(0, 3))).tolist()
        if spoilt:
            odd = [NAN, INF, -INF, 1e30, 1e7, -1e9, None, '1', True]
            points[rng.integers(len(points))] = odd[rng.integers(len(odd))]
        return [points][: rng.integers(2) if spoilt and rng.random() < 0.1 else 1], height, width
    cuts = np.sort(rng.integers(0, height * width + 1, rng.integers(0, 8)))
    runs = np.diff(cuts, prepend=0, append=height * width).tolist()
    size = [height, width]
    if spoilt and rng.random() < 0.6:
        odd = [0, -1, 5, 2**31, 2**32, 10**6, height * width]
        runs[rng.integers(len(runs))] = odd[rng.integers(len(odd))]
    elif spoilt and rng.random() < 0.3:
        size = [[width, height + 1], [10**6, 10**6], [0, 0], [-1, 5]][rng.integers(4)]
    if kind == 1:
        return dict(size=size, counts=runs), height, width
    text = compressed(runs)
    if spoilt and rng.random() < 0.6:
        at, other = rng.integers(len(text)), chr(rng.integers(40, 120))
        text = [text[:at] + other + text[at + 1 :], text[:at], text + other][rng.integers(3)]
    return dict(size=size, counts=text), height, width


def slow(shape, height, width):
    """[pixels, crc32] of a mask of runs, pixel by pixel; of a polygon, None."""
    import zlib

    if type(shape) is list:
        return None
    runs = shape['counts']
    if type(runs) is str:
        runs, at = [], 0
        while at < len(shape['counts']):
            value = shift = 0
            while True:
                code = ord(shape['counts'][at]) - 48
                value, shift, at = value | (code & 31) << shift, shift + 5, at + 1
                if not code & 32:
                    value -= (code >> 4 & 1) << shift
                    break
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    pixels = b''.join(bytes([i % 2]) * run for i, run in enumerate(runs))
    assert len(pixels) == height * width
    return [sum(pixels), zlib.crc32(pixels)]


def before_training(shape, height, width):
    annotation, warnings = dict(id=1, segmentation=shape), []
    sizes = np.array([[width, height]], np.float64)
    options = dict(masks=True, poly2mask=True, tolerant=False, warnings=warnings)
    check_masks([annotation], sizes, **options)


def before_scoring(shape, height, width):
    evaluation._rle(shape, dict(height=height, width=width))


@pytest.mark.parametrize('check', [before_training, before_scoring])
def test_what_passes_is_drawn_as_a_slow_loop_draws_it(check, monkeypatch):
    idle = SimpleNamespace(frPyObjects=lambda *_: None, merge=lambda *_: None)
    monkeypatch.setattr(evaluation, 'mask', idle)  # the check alone
    rng, passed, refused = np.random.default_rng(0), [], 0
    for _ in range(1500):
        case = draw(rng)
        try:
            check(json.loads(json.dumps(case[0])), *case[1:])
            passed.append(case)
        except (DataError, ValueError):
            refused += 1
    assert len(passed) > 500 and refused > 300
    for case, answer in zip(passed, tried(passed), strict=True):
        assert type(answer) is list, (case, answer)
        assert slow(*case) in (None, answer), case


def test_triangles_have_the_area_of_the_formula():
    rng, cases, areas = np.random.default_rng(1), [], []
    for _ in range(100):
        (x1, y1, x2, y2, x3, y3) = points = (rng.random(6) * 40).round(1).tolist()
        cases.append(([points], 40, 40))
        sides = np.hypot([x1 - x2, x2 - x3, x3 - x1], [y1 - y2, y2 - y3, y3 - y1])
        areas.append((abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)) / 2, sides.sum() / 2 + 2))
    for case, (pixels, _), (area, doubt) in zip(cases, tried(cases), areas, strict=True):
        before_training(*case)
        assert abs(pixels - area) <= doubt, case


@pytest.mark.parametrize(
    'shape',
    [
        [[1, 1, NAN, 1, 5, 5]],
        [[1, 1, INF, 1, 5, 5]],
        [[1, 1, 1e30, 1, 5, 5]],
        dict(size=[10**6, 10**6], counts=[0, 10**12]),
    ],
)
def test_without_the_check_a_child_dies(shape):
    """The reason for the checks, and proof that this test would notice."""
    with pytest.raises(DataError):
        before_training(shape, 10, 10)
    with pytest.raises(ValueError):
        before_scoring(shape, 10, 10)
    (answer,) = tried([(shape, 10, 10)])
    assert type(answer) is str  # dead, or out of its little memory
