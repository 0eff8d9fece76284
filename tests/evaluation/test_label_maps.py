"""Saved label maps of any classes: scored as by hand, and as the metric of a test does."""

import json

import numpy as np
import pytest
from PIL import Image

from mmattn.errors import DataError, UsageError
from mmattn.evaluation.iou_metric import IoUMetric
from mmattn.evaluation.label_maps import evaluate_label_maps
from tests.evaluation.test_iou import made, maps
from tests.test_tools import tool

CLASSES = ('a', 'b', 'c', 'd')


@pytest.fixture
def folders(tmp_path):
    """Three images, two of one name; a truth with a palette, class d nowhere."""
    pairs = []
    for number, (truth, prediction) in enumerate(maps([0, 1, 2], images=3)):
        name = ('x/1.png', 'y/1.png', '2.png')[number]
        for kind, values in ('truth', truth), ('maps', prediction):
            path = tmp_path / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(values.astype(np.uint8))
            if kind == 'truth':
                image.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
            image.save(path)
        pairs.append((truth, prediction))
    return tmp_path / 'truth', tmp_path / 'maps', pairs


def test_figures_are_those_by_hand_and_of_the_metric(folders, capsys, tmp_path):
    truth, found, pairs = folders
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    for pair in pairs:
        metric.process({}, [made(*pair)])
    expected = metric.evaluate(3)
    scores = evaluate_label_maps(truth, found, CLASSES)
    for name in 'aAcc', 'mIoU', 'mAcc':
        assert round(100 * scores.numbers[name], 2) == expected[name]
    t, p = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    kept = t != 255
    both, either = ((t == 1) & (p == 1)).sum(), (((t == 1) | (p == 1)) & kept).sum()
    assert scores.per_class['IoU.b'] == both / either and scores.per_class['IoU.d'] is None
    out = tmp_path / 'scores.json'
    files = ['--annotations', str(truth), '--predictions', str(found), '--json', str(out)]
    assert tool('evaluate')(['labels', *files, '--classes', 'a, b,c,d']) == 0
    assert json.loads(out.read_text())['numbers'] == scores.numbers
    shown = capsys.readouterr().out
    assert f'mIoU                     {scores.numbers["mIoU"]:.6f}' in shown and 'absent' in shown


def test_what_cannot_be_compared_is_named(folders):
    truth, found, _ = folders

    def refused(pattern, classes=CLASSES, error=DataError):
        with pytest.raises(error, match=pattern):
            evaluate_label_maps(truth, found, classes)

    refused(r'truth/2.png holds 2, allowed: 0..1 of the 2 classes and 255.*--classes', ('a', 'b'))
    refused('name each class once', ('a', 'a'), UsageError)
    values = np.array(Image.open(found / '2.png'))
    Image.fromarray(values[:5]).save(found / '2.png')
    refused(r'truth/2.png is 17x13, its prediction 17x5')
    Image.fromarray(np.where(values == 0, 9, values)).save(found / '2.png')
    refused(r'maps/2.png holds 9, allowed: 0..3 of the 4 classes\. ')
    Image.fromarray(np.dstack([values] * 3)).save(found / '2.png')
    refused('maps/2.png is of mode RGB')
    (found / '2.png').write_bytes(b'none')
    refused('maps/2.png cannot be read')
    (found / '2.png').unlink()
    refused(r'1 of 3 label maps have none below .*maps, e.g. 2.png is missing')
