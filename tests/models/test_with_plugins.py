"""Detectors with attention train, test, and start as the detector that was there."""

import functools

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmattn.checkpoint.load import load_initial_weights, load_weights
from mmattn.checkpoint.read import read_checkpoint
from mmattn.config.load import load_config
from mmattn.plugins import named_plugins
from tests.conftest import ROOT, randomise

BLOCKS = ('cbam', 'se', 'sa', 'sge', 'gc', 'nl', 'rcca', 'sk', 'bam', 'scse')
DETECTORS = ('faster_rcnn', 'retinanet', 'mask_rcnn')
PROPOSALS = dict(nms_pre=60, max_per_img=30)


def small(config):
    """Options for narrow heads, few proposals and few detections, whatever their scores."""
    options = {'model.backbone.init_cfg': None}
    if 'retinanet' in config:
        options |= {f'model.test_cfg.{key}': value for key, value in PROPOSALS.items()}
        return options | {'model.bbox_head.stacked_convs': 1, 'model.test_cfg.score_thr': 0.0}
    for part in 'train_cfg.rpn_proposal', 'test_cfg.rpn':
        options |= {f'model.{part}.{key}': value for key, value in PROPOSALS.items()}
    return options | {
        'model.roi_head.bbox_head.fc_out_channels': 64,
        'model.train_cfg.rpn.sampler.num': 32,
        'model.train_cfg.rcnn.sampler.num': 16,
        'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.rcnn.max_per_img': 10,
    }


def build(config, attention=None, plugins=(), **changes):
    """The detector of a config, before any initialisation of weights."""
    path = ROOT / 'configs' / f'{config}.py'
    cfg = load_config(path, small(config) | changes, attention=attention)
    if plugins:
        cfg.model.plugins = list(plugins)
    init_default_scope('mmdet')
    return MODELS.build(cfg.model)


def images(masks=False):
    sizes = [(3, 64, 96), (3, 96, 64)]
    return demo_mm_inputs(2, sizes, num_items=[2, 3], num_classes=3, with_mask=masks)


def detections(model):
    """All tensors that a test step gives, image by image."""
    model.eval()
    with torch.no_grad():
        samples = model.test_step(images())
    return [dict(sample.pred_instances.items()) for sample in samples]


def same(found, wanted, tolerance=0.0):
    assert len(found) == len(wanted) == 2
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys() and len(b['scores']) > 0
        assert torch.equal(a['labels'], b['labels'])
        for key, value in b.items():
            torch.testing.assert_close(a[key], value, rtol=tolerance, atol=tolerance, msg=key)


def awake(model):
    """Plugins drawn at random, as zeros would hide faults; layers keep the size of values."""
    for _, block in named_plugins(model):
        with torch.no_grad():
            for value in randomise(block).parameters():
                if value.dim() > 1:
                    value.div_(0.3 * value[0].numel() ** 0.5)
    return model


def effective(block):
    """Parameters that change what a block returns in training, where a norm removes biases."""
    names = {name for name, _ in block.named_parameters()} - set(block.without_effect)
    return {n for n in names if not (n.endswith('.conv.bias') and f'{n[:-9]}bn.weight' in names)}


def losses(model):
    """The sum of all losses of one batch, as training has it."""
    model.train()
    data = model.data_preprocessor(images(hasattr(model, 'with_mask') and model.with_mask), True)
    parts = model(**data, mode='loss')
    total, logged = model.parse_losses(parts)
    assert all(value.isfinite().all() for value in logged.values())
    return total


@pytest.mark.parametrize('name', BLOCKS)
@pytest.mark.parametrize('detector', DETECTORS[1:])  # Mask R-CNN is a Faster R-CNN with masks
def test_it_trains_and_tests_and_its_checkpoint_says_all(detector, name, tmp_path):
    model = awake(build(f'{detector}_r50_coco', name))
    blocks = dict(named_plugins(model))
    assert blocks
    losses(model).backward()
    for path, block in blocks.items():
        for key, value in block.named_parameters():
            assert value.grad is not None and value.grad.isfinite().all(), f'{path}.{key}'
            if key in effective(block):
                assert value.grad.any(), f'{path}.{key} has no gradient'
    wanted = detections(model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'a.pth')
    for value in model.state_dict().values():
        value.zero_()
    content = read_checkpoint(tmp_path / 'a.pth')
    (tmp_path / 'a.pth').unlink()  # of a hundred megabytes
    load_weights(model, content['state_dict'], 'a.pth')
    same(detections(model), wanted)
    if detector == 'mask_rcnn':
        assert all(image['masks'].shape[1:] for image in wanted)


@functools.cache
def plain(detector):
    """Weights of a plain detector and what it detects; statistics keep the size of values."""
    torch.manual_seed(1)
    model = build(f'{detector}_r50_coco')
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.state_dict(), detections(model)


@pytest.mark.parametrize(
    'detector, name',
    [('faster_rcnn', name) for name in BLOCKS]
    + [(detector, name) for detector in DETECTORS[1:] for name in ('cbam', 'sk')],
)
def test_it_starts_from_a_plain_checkpoint_as_the_plain_detector(detector, name):
    weights, wanted = plain(detector)
    model = build(f'{detector}_r50_coco', name)
    said = load_initial_weights(model, weights, 'plain.pth')
    assert 'plain.pth' in said and 'new: ' in said
    same(detections(model), wanted, 1e-5)
    awake(model)
    with pytest.raises(AssertionError):
        same(detections(model), wanted, 1e-5)


@pytest.mark.parametrize('times', [1, 2])
def test_initialisation_keeps_identity_starts_also_below_plain_containers(times):
    """Which mmengine does not enter, but for the convolutions that it finds inside."""
    kinds = ['SE', 'CBAM', 'ContextBlock', 'NonLocal2d', 'BAM', 'SCSE', 'CrissCrossAttention']
    arguments = dict(ContextBlock=dict(ratio=1 / 4))
    plugins = [
        dict(cfg=dict(type=f'mmattn.{kind}', init='identity') | arguments.get(kind, {}), at=place)
        for kind in kinds
        for place in ('bbox_head.cls_convs.*', 'neck.fpn_convs.*', 'backbone.layer2.*')
    ]
    model = build('retinanet_r18_bccd', plugins=plugins)
    for _ in range(times):
        model.init_weights()
    blocks = dict(named_plugins(model))
    assert len(blocks) == len(kinds) * (1 + len(model.neck.fpn_convs) + 2)
    for path, block in blocks.items():
        for training in False, True:
            x = torch.randn(2, block.in_channels, 6, 7)
            assert torch.equal(block.train(training)(x), x), path


def test_initialisation_does_not_undo_what_was_loaded():
    model = build('retinanet_r18_bccd', 'se')
    model.init_weights()
    awake(model)
    before = {key: value.clone() for key, value in model.state_dict().items() if '.se.' in key}
    model.init_weights()
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize('learn', [False, True])
def test_plugins_learn_in_frozen_stages_only_if_they_are_told_to(learn):
    bam = dict(type='mmattn.BAM', reduction=4)
    changes = {'model.backbone.frozen_stages': 2, 'model.backbone.norm_eval': True}
    plugins = [dict(cfg=bam, position='after_stage', learn=learn)]
    model = build('faster_rcnn_r18_bccd', plugins=plugins, **changes)
    assert all(  # before anyone calls train
        value.requires_grad == (learn or k > 2)
        for k in range(1, 5)
        for value in getattr(model.backbone, f'layer{k}').bam.parameters()
    )
    for mode in True, False, True:
        model.train(mode)
        for k in range(1, 5):
            block = getattr(model.backbone, f'layer{k}').bam
            assert all(v.requires_grad == (learn or k > 2) for v in block.parameters()), k
            norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
            assert norms and all(norm.training == (learn and mode) for norm in norms)
        stem = model.backbone
        assert not stem.layer2[0].conv1.weight.requires_grad and not stem.bn1.training
        assert stem.layer3[0].conv1.weight.requires_grad and not stem.layer3[0].bn1.training


def test_plugins_that_learn_move_and_frozen_ones_do_not():
    moved = {}
    for learn in False, True:
        bam = dict(type='mmattn.BAM', reduction=4)
        plugins = [dict(cfg=bam, position='after_stage', learn=learn)]
        changes = {'model.backbone.frozen_stages': 2, 'model.backbone.norm_eval': True}
        model = awake(build('faster_rcnn_r18_bccd', plugins=plugins, **changes))
        block = model.backbone.layer1.bam
        before = {key: value.clone() for key, value in block.named_parameters()}
        needed = [value for value in model.parameters() if value.requires_grad]
        step = OptimWrapper(torch.optim.SGD(needed, lr=0.1))
        step.update_params(losses(model))
        after = block.state_dict()
        moved[learn] = {key for key, value in before.items() if not torch.equal(after[key], value)}
    assert moved[False] == set()
    assert moved[True] >= effective(block)


def test_without_plugins_it_is_the_stock_detector():
    torch.manual_seed(2)
    kinds = {}
    for kind in 'mmattn.MaskRCNN', 'mmdet.MaskRCNN':
        cfg = load_config(ROOT / 'configs/mask_rcnn_r18_street.py', small('mask_rcnn')).model
        cfg.type = kind
        init_default_scope('mmdet')
        kinds[kind] = MODELS.build(cfg)
    ours, stock = kinds.values()
    assert type(stock).__module__.startswith('mmdet') and type(ours) is not type(stock)
    stock.init_weights()
    assert list(ours.state_dict()) == list(stock.state_dict())
    with pytest.raises(AssertionError):
        same(detections(ours), detections(stock))
    ours.load_state_dict(stock.state_dict(), strict=True)
    same(detections(ours), detections(stock))
    for model in ours, stock:
        model.train()
    assert [m.training for m in ours.modules()] == [m.training for m in stock.modules()]
    assert [p.requires_grad for p in ours.parameters()] == [
        p.requires_grad for p in stock.parameters()
    ]


@pytest.mark.parametrize('learn', [False, True])
def test_a_segmentor_has_plugins_too(learn):
    cfg = load_config(ROOT / 'configs/fcn_r18_street.py', attention='bam').model
    cfg.plugins[0].learn = learn
    for part in cfg.backbone, cfg.decode_head, cfg.auxiliary_head:
        part.norm_cfg = dict(type='BN')
    cfg.backbone.frozen_stages = 1
    init_default_scope('mmseg')
    model = MODELS.build(cfg)
    assert cfg.type == 'mmattn.EncoderDecoder'
    model.train()
    block = model.backbone.layer1.bam
    assert all(value.requires_grad == learn for value in block.parameters())
    assert model(torch.randn(2, 3, 64, 64)).shape[:2] == (2, 19)
