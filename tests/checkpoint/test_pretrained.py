"""Pretrained weights by each class's own method: equal to what the stock path loads."""

import argparse
import logging

import pytest
import torch
from mmdet.models import PyramidVisionTransformer, ResNet
from mmdet.models import SwinTransformer as DetSwin
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmseg.models import BEiT, MixVisionTransformer, PIDNet, VisionTransformer
from torch import nn

from mmattn.checkpoint import read as checkpoint
from mmattn.checkpoint.load import load_initial_weights
from mmattn.checkpoint.pretrained import report_pretrained
from mmattn.checkpoint.read import read_checkpoint
from mmattn.config import safe_files
from mmattn.engine.train import train
from mmattn.errors import CheckpointError
from tests.checkpoint.test_start_from import (
    still,  # noqa: F401, a fixture
)
from tests.engine.killing import DETECTOR


@pytest.fixture(autouse=True)
def own_readers():
    """As a command has them; a test before may have installed them or not."""
    safe_files.install()


def swin_of_its_authors(dims=(8, 16, 32, 64)):
    """As published: under `model`, with their names, unfold order and a classifier."""

    def t(*shape):
        return torch.randn(*shape) * 0.1

    model = {'patch_embed.proj.weight': t(dims[0], 3, 4, 4), 'patch_embed.proj.bias': t(dims[0])}
    model |= {'patch_embed.norm.weight': t(dims[0]), 'patch_embed.norm.bias': t(dims[0])}
    for stage, d in enumerate(dims):
        p = f'layers.{stage}.blocks.0.'
        for norm in 'norm1', 'norm2':
            model |= {f'{p}{norm}.weight': t(d), f'{p}{norm}.bias': t(d)}
        model[f'{p}attn.relative_position_bias_table'] = t(169, 2**stage)
        model[f'{p}attn.relative_position_index'] = torch.zeros(49, 49, dtype=torch.long)
        parts = {'attn.qkv': (3 * d, d), 'attn.proj': (d, d)}
        parts |= {'mlp.fc1': (4 * d, d), 'mlp.fc2': (d, 4 * d)}
        for name, shape in parts.items():
            model |= {f'{p}{name}.weight': t(*shape), f'{p}{name}.bias': t(shape[0])}
        if stage < 3:
            model[f'layers.{stage}.downsample.reduction.weight'] = t(2 * d, 4 * d)
            for part in 'weight', 'bias':
                model[f'layers.{stage}.downsample.norm.{part}'] = t(4 * d)
    return dict(model=model | {'head.weight': t(10, dims[-1]), 'head.bias': t(10)})


def swin(**more):
    return DetSwin(
        embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), convert_weights=True, **more
    )


def pvt(**more):
    return PyramidVisionTransformer(
        embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], **more
    )


def mit(**more):
    return MixVisionTransformer(
        embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], **more
    )


def vit(**more):
    return VisionTransformer(
        img_size=32, patch_size=16, embed_dims=8, num_layers=1, num_heads=1, **more
    )


def beit(**more):
    return BEiT(img_size=32, patch_size=16, embed_dims=8, num_layers=1, num_heads=1, **more)


def pidnet(**more):
    return PIDNet(channels=4, ppm_channels=4, num_stem_blocks=1, num_branch_blocks=1, **more)


def own_state(make):
    """A file with a class's own keys, drawn at random, and a classifier."""
    state = {
        k: torch.randn_like(v) if v.is_floating_point() else v
        for k, v in make().state_dict().items()
    }
    return state | {'head.weight': torch.ones(3, 8), 'head.bias': torch.ones(3)}


CASES = {
    'Swin of its authors': (swin, lambda: swin_of_its_authors()),
    'PVT': (pvt, lambda: dict(state_dict=own_state(pvt))),
    'MiT': (mit, lambda: own_state(mit)),
    'MiT under model': (mit, lambda: dict(model=own_state(mit), epoch=3)),
    'ViT': (vit, lambda: dict(state_dict=own_state(vit))),
    'BEiT': (beit, lambda: own_state(beit)),
    'PIDNet': (pidnet, lambda: own_state(pidnet)),
}


def begun(make, source, say=True):
    torch.manual_seed(4)
    model = nn.Sequential()
    model.backbone = make(init_cfg=ConfigDict(type='Pretrained', checkpoint=str(source)))
    if say:
        with report_pretrained(model, read_checkpoint):
            model.backbone.init_weights()
    else:
        model.backbone.init_weights()
    return model.backbone.state_dict()


@pytest.mark.parametrize('name', CASES)
def test_every_class_loads_what_the_stock_path_loads(name, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmattn.checkpoint.pretrained.print_log', lambda text, **_: said.append(text)
    )
    make, content = CASES[name]
    torch.save(content(), tmp_path / 'a.pth')
    found = begun(make, tmp_path / 'a.pth')
    if 'model' in name.split():  # mmengine would look for the keys beside the weights
        torch.save(torch.load(tmp_path / 'a.pth')['model'], tmp_path / 'a.pth')
    wanted, random = begun(make, tmp_path / 'a.pth', say=False), make().state_dict()
    assert all(torch.equal(found[k], v) for k, v in wanted.items())
    moved = [k for k, v in random.items() if not torch.equal(found[k], v)]
    assert len(moved) > 0.6 * len(random)
    assert len(said) == 1 and f' tensors loaded from {tmp_path / "a.pth"}' in said[0]
    assert said[0].startswith('backbone: ')


def test_what_is_missing_names_the_key_of_the_config(tmp_path):
    for make in swin, mit, vit, beit, pidnet:
        with pytest.raises(
            CheckpointError, match=r'does not exist.* model\.backbone\.init_cfg=None'
        ):
            begun(make, tmp_path / 'none.pth')


@pytest.mark.parametrize(
    'cfg, key, none',
    [
        (dict(pretrained='a.pth', backbone={}), 'model.pretrained', 'model.pretrained'),
        (
            dict(pretrained=None, backbone=dict(pretrained='a.pth')),
            'model.backbone.pretrained',
            'model.backbone.pretrained',
        ),
        (dict(backbone={}), 'model.backbone.init_cfg.checkpoint', 'model.backbone.init_cfg'),
    ],
)
def test_it_names_the_key_that_is_in_the_config(tmp_path, cfg, key, none):
    """That None starts from random weights is what tests/engine/test_end_to_end.py does."""
    for make in vit, pvt, mit:
        model = nn.Sequential()
        model.backbone = make(init_cfg=ConfigDict(type='Pretrained', checkpoint='none.pth'))
        message = rf'with --cfg-options {key}=FILE, or .* with --cfg-options {none}=None$'
        reported = report_pretrained(model, read_checkpoint, cfg)
        with pytest.raises(CheckpointError, match=message), reported:
            model.backbone.init_weights()


def test_a_class_that_cannot_convert_a_file_says_so(tmp_path):
    torch.save(swin_of_its_authors(), tmp_path / 'a.pth')

    def plain_swin(**more):
        return DetSwin(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), **more)

    with pytest.raises(CheckpointError, match='cannot be read by SwinTransformer') as error:
        begun(plain_swin, tmp_path / 'a.pth')
    assert '--cfg-options model.backbone.convert_weights=True' in str(error.value)
    begun(swin, tmp_path / 'a.pth')  # the remedy
    torch.save({'x.weight': torch.ones(2)}, tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match=r'model\.backbone\.init_cfg\.checkpoint=FILE'):
        begun(swin, tmp_path / 'b.pth')


# ---- files that fit for the most part, which the stock tools train on ---------------------------
def test_a_part_that_a_file_lacks_or_has_too_much_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmattn.checkpoint.pretrained.print_log',
        lambda text, level=0, **_: said.append((text, level)),
    )
    plain = ResNet(18, base_channels=8, stem_channels=8)
    torch.save(plain.state_dict() | {'incre.weight': torch.ones(3)}, tmp_path / 'a.pth')

    def four_bands(**more):
        return ResNet(18, base_channels=8, stem_channels=8, in_channels=4, **more)

    found = begun(four_bands, tmp_path / 'a.pth')
    assert torch.equal(found['layer4.1.conv2.weight'], plain.state_dict()['layer4.1.conv2.weight'])
    (text, level) = said[0]
    assert '1 of another shape: conv1.weight' in text and '1 left over: incre.weight' in text
    assert level == logging.WARNING


def test_a_network_of_another_kind_is_refused(tmp_path):
    narrow = dict(base_channels=8, stem_channels=8)
    torch.save(ResNet(50, **narrow).state_dict(), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='does not fit the model: .* of another shape: layer'):
        begun(lambda **more: ResNet(18, **narrow, **more), tmp_path / 'a.pth')
    half = {k: v for k, v in ResNet(18, **narrow).state_dict().items() if 'layer4' not in k}
    torch.save(half, tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match='missing: layer4'):
        begun(lambda **more: ResNet(18, **narrow, **more), tmp_path / 'b.pth')


def test_weights_are_loaded_before_what_a_class_does_with_them(tmp_path):
    class Folds(ResNet):
        def init_weights(self):
            super().init_weights()
            self.conv1.weight.data *= 2

    plain = ResNet(18, base_channels=8, stem_channels=8).state_dict()
    torch.save(plain, tmp_path / 'a.pth')
    found = begun(
        lambda **more: Folds(18, base_channels=8, stem_channels=8, **more), tmp_path / 'a.pth'
    )
    assert torch.equal(found['conv1.weight'], 2 * plain['conv1.weight'])


# ---- weights under other names -------------------------------------------------------------------
@pytest.mark.parametrize(
    'content, taken',
    [
        (dict(model='a', optimizer=dict(state={}), epoch=3), 'model'),
        (dict(model='a', model_ema='b', args=dict(lr=0.1)), 'model'),
        (dict(ema='a', epoch=3), 'ema'),
        (dict(model_state_dict='a', loss=0.5), 'model_state_dict'),
        (dict(state_dict='a', state_dict_ema='b'), 'state_dict'),
    ],
)
def test_weights_under_another_name(tmp_path, monkeypatch, content, taken):
    said, weights = [], dict(a={'w': torch.ones(2)}, b={'w': torch.zeros(2)})
    monkeypatch.setattr(checkpoint, 'print_log', lambda text, **_: said.append(text))
    monkeypatch.setattr(checkpoint, '_logged', set())
    content = {k: weights.get(v, v) if isinstance(v, str) else v for k, v in content.items()}
    torch.save(content, tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')
    assert found['state_dict']['w'].tolist() == [1, 1]
    assert bool(said) == (taken != 'state_dict') and all(
        f'under {taken!r}' in text for text in said
    )


@pytest.mark.parametrize(
    'names, why',
    [
        (['model', 'net'], 'weights under model and net, which of them is unknown'),
        (['ema', 'model_ema'], 'weights under model_ema and ema, which of them is unknown'),
        (['student'], 'holds no weights. It has student'),
    ],
)
def test_weights_that_cannot_be_told_apart(tmp_path, names, why):
    torch.save({name: {'w': torch.ones(2)} for name in names}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=why):
        read_checkpoint(tmp_path / 'a.pth')


def test_the_arguments_of_a_script_are_no_plain_values(tmp_path):
    content = dict(model={'w': torch.ones(2)}, args=argparse.Namespace(lr=0.1))
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'argparse\.Namespace\): it is refused') as error:
        read_checkpoint(tmp_path / 'a.pth')
    line = str(error.value).split('trained: ')[1].rstrip('.')  # the remedy, applied
    exec(line, dict(torch=torch, checkpoint=content, FILE=tmp_path / 'b.pth'))
    assert read_checkpoint(tmp_path / 'b.pth')['state_dict']['w'].tolist() == [1, 1]


# ---- a backbone's file for --init-from -----------------------------------------------------------
class Detector(BaseModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.bbox_head = backbone, nn.Linear(2, 2)


def test_a_bare_file_of_a_backbone_goes_into_the_backbone():
    narrow = dict(base_channels=8, stem_channels=8)
    model, plain = Detector(ResNet(18, **narrow)), ResNet(18, **narrow)
    head = model.bbox_head.weight.clone()
    weights = plain.state_dict() | {'fc.weight': torch.ones(3), 'fc.bias': torch.ones(3)}
    said = load_initial_weights(model, weights, 'a.pth', partial=True)
    assert said.startswith(f'{len(plain.state_dict())} tensors loaded from a.pth into the backbone')
    assert 'left: the classifier (backbone.fc.weight, backbone.fc.bias)' in said
    assert all(
        torch.equal(model.backbone.state_dict()[k], v) for k, v in plain.state_dict().items()
    )
    assert torch.equal(model.bbox_head.weight, head)
    with pytest.raises(CheckpointError, match='2 missing: bbox_head.weight.*--init-from'):
        load_initial_weights(model, plain.state_dict(), 'a.pth')


def test_a_file_that_a_backbone_converts_has_a_line_for_the_config(tmp_path):
    content = swin_of_its_authors()
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='none of its .* keys match') as error:
        load_initial_weights(Detector(swin()), content['model'], tmp_path / 'a.pth', partial=True)
    line = str(error.value).split('write in the config: ')[1]
    assert '--init-from' not in str(error.value)
    given = eval(line.removeprefix('model = '), dict(dict=dict))['backbone']  # the remedy, applied
    assert begun(swin, given['init_cfg']['checkpoint'])


def test_init_from_takes_weights_under_model(still, tmp_path):  # noqa: F811
    narrow = {'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8}
    options = still | narrow | {'model.neck.in_channels': [8, 16, 32, 64]}
    plain = ResNet(18, base_channels=8, stem_channels=8, norm_eval=False).state_dict()
    torch.save(dict(model=plain, epoch=3), tmp_path / 'resnet.pth')
    train(
        DETECTOR, work_dir=tmp_path / 'run', validate=False, rehearsal=False, cfg_options=options,
        init_from=tmp_path / 'resnet.pth',
    )  # fmt: skip
    found = read_checkpoint(tmp_path / 'run' / 'iter_1.pth')['state_dict']
    for key, tensor in plain.items():
        if 'running' not in key and 'num_batches' not in key:
            assert torch.equal(found[f'backbone.{key}'], tensor), key
