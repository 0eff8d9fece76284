"""Exports and Grad-CAM of segmentors are about what the config computes, whatever its head returns."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mmattn.benchmarks.cases import perturb_constants
from mmattn.engine.network import build_network
from mmattn.errors import UsageError
from mmattn.inference import export as module
from mmattn.inference import export_program
from mmattn.inference.attention_view import view_attention
from mmattn.inference.export import ExportMismatch, describe, export
from mmattn.inference.grad_cam import ClassScores
from mmattn.inference.predictor import Predictor
from mmattn.models.logits import predicted_logits
from tests.conftest import ROOT

NET = """
_base_ = ['{root}/configs/{base}.py']
pipeline = [
    dict(type='LoadImageFromFile'), {steps}
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
model = dict(
    backbone=dict(_delete_=True, type='FourConvolutions'),
    data_preprocessor=dict(size=(32, 32){divisor}),
    auxiliary_head=None, test_cfg={test_cfg},
    decode_head=dict(num_classes=3, channels=8, {head}))
meta = dict(classes=('a', 'b', 'c'), palette=[[40, 40, 40], [220, 60, 40], [40, 90, 220]])
own = dict(_delete_=True, type='BaseSegDataset', data_root='.', metainfo=meta, pipeline=pipeline)
train_dataloader = dict(dataset=own)
val_dataloader = dict(dataset=own)
test_dataloader = dict(dataset=own)
"""
ONE = 'in_channels=12, in_index=3'
HEADS = dict(
    CCHead=('ccnet', ONE),
    ANNHead=(
        'ann',
        'in_channels=[10, 12], in_index=[2, 3], project_channels=4, key_pool_scales=(1, 2)',
    ),
    DAHead=('danet', f'{ONE}, pam_channels=4'),
    NLHead=('nonlocal', ONE),
    GCHead=('gcnet', ONE),
)
STOCK = dict(
    EncHead="in_channels=[8, 12], in_index=[1, 3], _delete_=True, type='mmseg.EncHead', num_codes=4, use_se_loss=True, "
    "norm_cfg=dict(type='BN'), loss_se_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=True)",
    DAHead=f"{ONE}, _delete_=True, type='mmseg.DAHead', pam_channels=4",
)


@MODELS.register_module(force=True)
class FourConvolutions(nn.Module):
    """The least that a decode head can stand on: four maps, of strides 2, 4, 8 and 8."""

    def __init__(self):
        super().__init__()
        sizes = [(3, 6, 2), (6, 8, 2), (8, 10, 2), (10, 12, 1)]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, s, 1) for a, b, s in sizes)

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x).relu()
            maps.append(x)
        return tuple(maps)


def network(folder, base, head, steps='', divisor='', test_cfg="dict(mode='whole')"):
    """-> config and weights of a network that labels several classes."""
    if not (ROOT / 'configs' / f'{base}.py').exists():
        base = f'{base}_r18_street'
    path = folder / 'net.py'
    path.write_text(
        NET.format(root=ROOT, base=base, head=head, steps=steps, divisor=divisor, test_cfg=test_cfg)
    )
    torch.manual_seed(0)
    model = perturb_constants(build_network(path)[0])
    nn.init.normal_(model.decode_head.conv_seg.weight)
    with torch.no_grad():
        logits = predicted_logits(model.eval(), torch.randn(1, 3, 64, 64))
        model.decode_head.conv_seg.bias -= logits.mean((0, 2, 3))
    weights = folder / 'net.pth'
    torch.save(dict(state_dict=model.state_dict()), weights)
    return path, weights


@pytest.fixture
def photo(tmp_path):
    patches = np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    image = np.repeat(np.repeat(patches, 16, 0), 16, 1)
    cv2.imwrite(str(tmp_path / 'photo.png'), image)
    return tmp_path / 'photo.png'


def run(path, image):
    x = torch.from_numpy(cv2.imread(str(image)).astype(np.float32)).permute(2, 0, 1)[None]
    return torch.export.load(path).module()(x)[0].detach()


@pytest.mark.parametrize('name', [*HEADS, *(f'stock {name}' for name in STOCK)])
def test_every_head_is_exported_and_explained(name, photo, tmp_path):
    if name.startswith('stock'):
        config, weights = network(tmp_path, 'fcn', STOCK[name.removeprefix('stock ')])
    else:
        config, weights = network(tmp_path, *HEADS[name])
    found = export(config, weights, 'torch', out=tmp_path / 'net.pt2', images=[photo])
    predictor = Predictor.of(config, weights, device='cpu')
    wanted = predictor(photo)
    logits = run(found.path, photo)
    assert len(wanted.pred_sem_seg.data.unique()) > 1
    torch.testing.assert_close(logits, wanted.seg_logits.data, rtol=1e-4, atol=1e-4)
    (compared,) = found.comparisons
    assert found.left_out == '' and compared.logits < 1e-4 and compared.labels < 1e-3
    assert '96x64: difference to infer' in describe(found) and '(N, 3, H, W) float32' in describe(
        found
    )
    x = torch.randn(1, 3, 64, 96)
    own = predicted_logits(predictor.model, x)
    full = predictor.model.encode_decode(x, [dict(img_shape=(64, 96))])
    corners = predictor.model.align_corners
    torch.testing.assert_close(
        full, nn.functional.interpolate(own, (64, 96), mode='bilinear', align_corners=corners)
    )
    flat = own[0].flatten(1)
    means = [row[flat.argmax(0) == k] for k, row in enumerate(flat)]
    means = torch.stack([m.mean() if len(m) else row.mean() for m, row in zip(means, flat)])
    torch.testing.assert_close(ClassScores(predictor.model)(x)[0], means)
    done = view_attention(
        config, weights, photo, out_dir=tmp_path / 'view', cam='backbone.layers.3', device='cpu'
    )
    assert done.blocks[-1].views[0].kind == 'map'


SLIDE = "dict(mode='slide', crop_size=(32, 32), stride=(24, 24))"
LEFT = dict(
    slide=(dict(test_cfg=SLIDE), 'sliding windows of 32x32 at strides of 24x24'),
    padding=(
        dict(divisor=', test_cfg=dict(size_divisor=80)'),
        'padding to multiples of 80 with 0 after normalising',
    ),
    resize=(
        dict(steps="dict(type='Resize', scale=(144, 96), keep_ratio=True),"),
        'Resize(scale=(144, 96), keep_ratio=True)',
    ),
)


@pytest.mark.parametrize('kind', LEFT)
def test_what_the_config_does_besides_is_said_with_its_figure(kind, photo, tmp_path):
    changes, text = LEFT[kind]
    config, weights = network(tmp_path, 'fcn', ONE, **changes)
    found = export(config, weights, 'torch', out=tmp_path / 'net.pt2', images=[photo])
    assert found.left_out == text and f'not in it: {text}' in describe(found)
    wanted = Predictor.of(config, weights, device='cpu')(photo)
    logits, truth = run(found.path, photo), wanted.seg_logits.data
    (compared,) = found.comparisons
    share = (logits.argmax(0) != wanted.pred_sem_seg.data[0]).float().mean().item()
    assert compared.labels == pytest.approx(share) and 0 < share < 0.9
    difference = ((logits - truth).abs().max() / truth.abs().max()).item()
    assert compared.logits == pytest.approx(difference, rel=1e-3) and difference > 0.01
    assert compared.complete < 1e-4
    line = f'{difference:.1e} of the largest logit, {100 * share:.1f} % other labels; with the st'
    assert line in describe(found)


def test_a_program_that_is_not_what_infer_computes_is_not_written(photo, tmp_path, monkeypatch):
    """Though it equals its own wrapper."""
    config, weights = network(tmp_path, *HEADS['CCHead'])
    forward = export_program.ExportedSegmentor.forward
    monkeypatch.setattr(
        export_program.ExportedSegmentor, 'forward', lambda self, x: forward(self, x / 255)
    )
    monkeypatch.setattr(module, 'export_torch', lambda p, *_: (lambda path: None, lambda x: [p(x)]))
    with pytest.raises(ExportMismatch, match='as torch differs from what infer computes by'):
        export(config, weights, 'torch', out=tmp_path / 'net.pt2', images=[photo])
    assert not (tmp_path / 'net.pt2').exists()


def test_noise_of_a_network_of_gray_images(tmp_path):
    class Gray(FourConvolutions):
        def __init__(self):
            super().__init__()
            self.layers[0] = nn.Conv2d(1, 6, 3, 2, 1)

    MODELS.register_module('GrayConvolutions', module=Gray, force=True)
    config, _ = network(tmp_path, *HEADS['GCHead'])
    text = config.read_text().replace('FourConvolutions', 'GrayConvolutions')
    text = text.replace("'LoadImageFromFile'", "'LoadImageFromFile', color_type='grayscale'")
    text = text.replace('size=(32, 32)', 'size=(32, 32), mean=[99.], std=[50.], bgr_to_rgb=False')
    config.write_text(text)
    weights = tmp_path / 'gray.pth'
    torch.save(dict(state_dict=perturb_constants(build_network(config)[0]).state_dict()), weights)
    found = export(config, weights, 'torch', out=tmp_path / 'net.pt2')
    assert len(found.comparisons) == 2 and max(one.logits for one in found.comparisons) < 1e-4
    assert "(N, 1, H, W) float32, as LoadImageFromFile(color_type='grayscale')" in describe(found)


def test_cascades_are_refused_by_name(tmp_path):
    config, _ = network(tmp_path, *HEADS['CCHead'])
    model, _ = build_network(config)
    model.decode_head = nn.ModuleList([model.decode_head, model.decode_head])
    with pytest.raises(UsageError, match='cascades of decode heads, here CCHead, CCHead'):
        module.build_program(model, torch.zeros(1, 3, 64, 64), config)
