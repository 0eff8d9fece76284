"""Blocks in networks of segmentation_models.pytorch, and its page."""

import pytest
import torch
from torch import nn

import mmattn
from mmattn.plugins import keep_trainable, named_plugins
from tests.libraries.checks import CHECKS, Case, close, run_page, trained

smp = pytest.importorskip(
    'segmentation_models_pytorch', reason='segmentation-models-pytorch is missing'
)
load_file = pytest.importorskip('safetensors.torch').load_file


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


def test_a_saved_network_comes_back_with_its_blocks(tmp_path):
    case = CASES['Unet']
    model = trained(case)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match='Unexpected key.*cbam'):
        smp.from_pretrained(tmp_path)
    loaded = smp.from_pretrained(tmp_path, strict=False).eval()
    close(case.outputs(loaded), case.outputs(case.plain()))  # blocks are missing, nothing else
    mmattn.insert(loaded, [dict(cfg=case.cfg, **place) for place in case.places])
    loaded.load_state_dict(load_file(tmp_path / 'model.safetensors'))
    close(case.outputs(loaded), case.outputs(model))


def test_blocks_of_a_frozen_encoder_are_frozen_unless_kept_trainable():
    model = CASES['Unet'].with_blocks()
    inside = [block for path, block in named_plugins(model) if path.startswith('encoder')]
    model.freeze_encoder()
    model.train()

    def learn():
        norms = [m for block in inside for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        return {p.requires_grad for block in inside for p in block.parameters()} | {
            norm.training for norm in norms
        }

    assert learn() == {False}
    keep_trainable(model)
    assert learn() == {True}
    plain = [
        p
        for p in model.encoder.parameters()
        if not any(p is q for b in inside for q in b.parameters())
    ]
    assert plain and not any(p.requires_grad for p in plain)


@pytest.mark.parametrize(
    'name, stages',
    {
        'resnext50_32x4d': [f'encoder.layer{k}' for k in range(1, 5)],
        'mit_b0': [f'encoder.block{k}' for k in range(1, 5)],
        'timm-efficientnet-b0': [f'encoder.blocks.{k}' for k in range(7)],
        'tu-convnext_atto': [f'encoder.model.stages_{k}' for k in range(4)],
    }.items(),
)
def test_stages_of_encoders(name, stages):
    model = smp.Unet(name, encoder_weights=None)
    found = mmattn.insert(model, [dict(cfg=dict(type='SE', reduction=4), position='after_stage')])
    assert found == [f'{stage}.se' for stage in stages]


@pytest.mark.parametrize(
    'name, at',
    {
        'efficientnet-b0': "at='encoder._blocks.0', .* 'encoder._blocks.10', 'encoder._blocks.15'",
        'mobilenet_v2': "at='encoder.features.1', .* 'encoder.features.18'",
    }.items(),
)
def test_encoders_without_stages_say_what_to_write(name, at):
    with pytest.raises(ValueError, match=at):
        plugin = dict(cfg=dict(type='SE', reduction=4), position='after_stage')
        mmattn.insert(smp.Unet(name, encoder_weights=None), [plugin])


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_page('smp')
    assert len(list(named_plugins(names['model']))) == 9
    assert all('.cbam.' in key or '.se.' in key for key in names['missing'])
    printed = capsys.readouterr().out
    assert 'CBAM after encoder.layer4' in printed and 'torch.Size([1, 1, 2, 2])' in printed
