"""Grad-CAM equals its formula, in a segmentor and in both kinds of detectors."""

import sys

import cv2
import numpy as np
import pytest
import torch

from mmattn.benchmarks.cases import perturb_constants
from mmattn.engine.network import build_network
from mmattn.errors import UsageError
from mmattn.inference.attention_view import view_attention
from mmattn.inference.grad_cam import ClassScores, grad_cam
from tests.conftest import ROOT

LAYER = 'backbone.layer3'
CONFIGS = dict(
    segmentor='fcn_r18_street', one_stage='retinanet_r18_bccd', two_stage='mask_rcnn_r18_street'
)


def network(kind):
    torch.manual_seed(0)
    model, _ = build_network(ROOT / 'configs' / f'{CONFIGS[kind]}.py')
    return perturb_constants(model).eval()


@pytest.mark.parametrize('kind', CONFIGS)
def test_it_is_the_formula(kind):
    model = network(kind)
    x = torch.randn(1, 3, 128, 160)
    boxes = torch.tensor([[10.0, 10, 60, 70], [50, 20, 150, 110]])
    found, category = grad_cam(model, x, LAYER, boxes=boxes)
    scores = ClassScores(model, boxes)
    maps = []
    handle = model.backbone.layer3.register_forward_hook(lambda m, a, y: maps.append(y))
    every = scores(x)
    handle.remove()
    assert every.shape[0] == 1 and category == every.argmax()
    vision = sys.modules.get('torchvision')
    assert vision is None or hasattr(vision, '__file__')  # what stands in is gone
    (gradient,) = torch.autograd.grad(every[0, category], maps[0])
    alpha = gradient.mean((2, 3), keepdim=True)  # eq. 1
    wanted = (alpha * maps[0]).sum(1).relu()[0].detach().numpy()  # eq. 2
    wanted = cv2.resize(wanted / wanted.max(), (160, 128))
    assert found.shape == (128, 160) and found.max() == pytest.approx(1, abs=1e-3)
    assert wanted.std() > 0.01
    np.testing.assert_allclose(found, (wanted - wanted.min()) / np.ptp(wanted), atol=0.05)
    other = grad_cam(model, x, LAYER, (category + 1) % every.shape[1], boxes)[0]
    assert not np.allclose(found, other, atol=0.05)


def test_scores_of_a_segmentor_are_means_over_its_own_labels():
    model = network('segmentor')
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        logits = model.decode_head(model.extract_feat(x))[0].flatten(1)
        found = ClassScores(model)(x)[0]
    labels = logits.argmax(0)
    for k, value in enumerate(found):
        own = labels == k
        assert value.item() == pytest.approx(
            logits[k, own if own.any() else slice(None)].mean().item(), rel=1e-4
        )


def test_scores_of_detectors_are_their_highest_logits():
    x = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        model = network('one_stage')
        levels = model.bbox_head(model.extract_feat(x))[0]
        classes = model.bbox_head.cls_out_channels
        every = torch.cat([t[0].permute(1, 2, 0).reshape(-1, classes) for t in levels])
        torch.testing.assert_close(ClassScores(model)(x)[0], every.amax(0))
        model, boxes = network('two_stage'), torch.tensor([[10.0, 10, 60, 70]])
        rois = torch.cat([torch.zeros(1, 1), boxes], 1)
        logits = model.roi_head._bbox_forward(model.extract_feat(x), rois)['cls_score']
        torch.testing.assert_close(ClassScores(model, boxes)(x)[0], logits[0, :-1])


def test_the_page_has_it_also_without_attention(tmp_path):
    torch.save(dict(state_dict=network('segmentor').state_dict()), tmp_path / 'net.pth')
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'photo.png'), image)
    config = ROOT / 'configs' / 'fcn_r18_street.py'
    arguments = [config, tmp_path / 'net.pth', tmp_path / 'photo.png']
    done = view_attention(*arguments, out_dir=tmp_path / 'out', cam=LAYER, category='road')
    (block,) = done.blocks
    assert (block.path, block.views[0].name) == (LAYER, 'Grad-CAM of road')
    assert cv2.imread(str(done.pictures[0])).shape == (64, 96, 3)
    with pytest.raises(UsageError, match='--category street: there are road, '):
        view_attention(*arguments, out_dir=tmp_path / 'out', cam=LAYER, category='street')


def test_a_map_of_zeros_is_said(tmp_path, monkeypatch):
    torch.save(dict(state_dict=network('one_stage').state_dict()), tmp_path / 'net.pth')
    cv2.imwrite(str(tmp_path / 'photo.png'), np.zeros((96, 128, 3), np.uint8))
    said = []
    monkeypatch.setattr('mmattn.inference.attention_view.warn', said.append)
    zeros = np.zeros((96, 128), np.float32)
    monkeypatch.setattr('mmattn.inference.attention_view.grad_cam', lambda *args: (zeros, 1))
    config = ROOT / 'configs' / 'retinanet_r18_bccd.py'
    view_attention(
        config, tmp_path / 'net.pth', tmp_path / 'photo.png', out_dir=tmp_path / 'o', cam=LAYER
    )
    assert 'no position supports WBC' in said[0]


def test_refused(monkeypatch):
    model, x = network('segmentor'), torch.randn(1, 3, 64, 96)
    with pytest.raises(UsageError, match='no such module; nearest: .*backbone.layer3'):
        grad_cam(model, x, 'backbone.layer33')
    with pytest.raises(UsageError, match='gives no single map'):
        grad_cam(model, x, 'backbone')
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    with pytest.raises(UsageError, match='pip install grad-cam'):
        grad_cam(model, x, LAYER)
