"""Blocks in networks of segmentation_models.pytorch, and its recipe page."""

import pytest
import torch

from tests.libraries.checks import CHECKS, Case

smp = pytest.importorskip(
    'segmentation_models_pytorch', reason='segmentation-models-pytorch is missing'
)


def dice(model, images):
    """The loss of the library, on a target of three classes."""
    target = torch.arange(images[:, 0].numel()).reshape(images[:, 0].shape) % 3
    return smp.losses.DiceLoss('multiclass')(model(images), target)


STAGES = tuple(f'encoder.layer{k}' for k in range(1, 5))
CASES = {
    'Unet': Case(
        build=lambda: smp.Unet(
            'resnet18',
            encoder_weights=None,
            decoder_channels=(64, 32, 16, 16, 8),
            classes=3,
        ),
        places=(dict(position='after_stage'), dict(at='decoder.blocks.[02]')),
        hosts=(*STAGES, 'decoder.blocks.0', 'decoder.blocks.2'),
        channels=(64, 128, 256, 512, 64, 16),
        loss=dice,
    ),
    'DeepLabV3Plus': Case(
        build=lambda: smp.DeepLabV3Plus(
            'resnet18', encoder_weights=None, decoder_channels=32, classes=3
        ),
        places=(dict(position='before_add', blocks=(-1,)), dict(at='decoder.aspp')),
        hosts=(*(f'{stage}.1' for stage in STAGES), 'decoder.aspp'),
        channels=(64, 128, 256, 512, 32),
        loss=dice,
    ),
    'encoder': Case(
        build=lambda: smp.encoders.get_encoder('resnet18', weights=None),
        places=(dict(position='after_stage', stages=(False, False, True, True)),),
        hosts=('layer3', 'layer4'),
        channels=(256, 512),
    ),
}


@pytest.mark.parametrize('check', CHECKS)
@pytest.mark.parametrize('name', CASES)
def test_network(name, check):
    CHECKS[check](CASES[name])
