"""Blocks in detectors of ultralytics, also through its trainer, and its recipe page."""

import os
import tempfile

import pytest
import torch
from torch import nn

os.environ.setdefault('YOLO_OFFLINE', '1')  # nothing is fetched or sent
os.environ.setdefault('YOLO_CONFIG_DIR', tempfile.mkdtemp())

from tests.libraries.checks import CHECKS, Case

pytest.importorskip('ultralytics', reason='ultralytics is missing')

from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel


def yolo():
    model = DetectionModel('yolo11n.yaml', nc=2, verbose=False)
    model.args = get_cfg()
    for name, module in model.named_modules():  # those of ultralytics shrink the maps to nothing
        if isinstance(module, nn.Conv2d) and not name.endswith('dfl.conv'):
            nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
    return model


def loss(model, images):
    """The loss of the library: one box in the middle of each image."""
    number = torch.arange(len(images))
    boxes = torch.tensor([0.5, 0.5, 0.4, 0.4]).repeat(len(images), 1)
    batch = dict(img=images, batch_idx=number, cls=number[:, None] % 2, bboxes=boxes)
    return model(batch)[0].sum()


CASES = {
    'yolo11n': Case(
        build=yolo,
        places=(dict(at='model.[68]'), dict(at='model.22')),
        hosts=('model.6', 'model.8', 'model.22'),
        channels=(128, 256, 256),
        loss=loss,
    ),
}


@pytest.mark.parametrize('check', CHECKS)
@pytest.mark.parametrize('name', CASES)
def test_network(name, check):
    CHECKS[check](CASES[name])
