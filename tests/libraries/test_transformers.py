"""Blocks in convolutional networks of Hugging Face transformers, and its recipe page."""

import pytest
import torch

from tests.libraries.checks import CHECKS, Case

transformers = pytest.importorskip('transformers', reason='transformers is missing')


def resnet():
    cfg = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], layer_type='basic')
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**cfg, num_labels=3))


def convnext():
    cfg = transformers.ConvNextConfig(hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 2, 1])
    cfg.num_labels = 3
    return transformers.ConvNextForImageClassification(cfg)


def backbone():
    cfg = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type='basic')
    return transformers.ResNetBackbone(
        transformers.ResNetConfig(**cfg, out_features=['stage1', 'stage2'])
    )


def loss(model, images):
    return model(images, labels=torch.arange(len(images))).loss


CASES = {
    'ResNet': Case(
        build=resnet,
        places=(
            dict(at='resnet.encoder.stages.*'),
            dict(at='resnet.encoder.stages.*.layers.0.layer.1'),
        ),
        hosts=(
            'resnet.encoder.stages.0.layers.0.layer.1',
            'resnet.encoder.stages.0',
            'resnet.encoder.stages.1.layers.0.layer.1',
            'resnet.encoder.stages.1',
        ),
        channels=(16, 16, 32, 32),
        loss=loss,
    ),
    'ConvNext': Case(
        build=convnext,
        places=(dict(at='convnext.encoder.stages.*'),),
        hosts=tuple(f'convnext.encoder.stages.{k}' for k in range(4)),
        channels=(16, 32, 32, 64),
        loss=loss,
    ),
    'backbone': Case(
        build=backbone,
        places=(dict(at='encoder.stages.*'),),
        hosts=('encoder.stages.0', 'encoder.stages.1'),
        channels=(16, 32),
    ),
}


@pytest.mark.parametrize('check', CHECKS)
@pytest.mark.parametrize('name', CASES)
def test_network(name, check):
    CHECKS[check](CASES[name])
