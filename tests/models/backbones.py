"""What the backbones have in common: figures, levels, freezing, checkpointing, learning."""

import torch
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

from mmattn.plugins.flops import flop_counter
from tests.conftest import randomise


def randomised(model, seed=1):
    torch.manual_seed(seed)
    return randomise(model).double()


def set_mode(model, training):
    model.train(training)  # mmdet's returns None
    return model


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def counted(build):
    """M parameters, M running statistics, G multiply-adds at 224x224; a classifier on top."""
    with torch.device('meta'), flop_counter() as flops:
        model, classifier = set_mode(build(), False), nn.Linear(2048, 1000)
        classifier(model(torch.empty(1, 3, 224, 224))[-1].mean((2, 3)))
    parameters = sum(p.numel() for m in (model, classifier) for p in m.parameters())
    statistics = sum(2 * m.num_features for m in norms(model))
    return parameters / 1e6, statistics / 1e6, flops.get_total_flops() / 2e9


def equal(found, wanted, tolerance=1e-10):
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)


def levels_have_strides(model, channels):
    for height, width in ((1, 1), (33, 70), (64, 97)):
        shapes = [y.shape for y in set_mode(model, False)(torch.randn(1, 3, height, width))]
        assert shapes == [
            (1, c, -(-height // s), -(-width // s)) for c, s in zip(channels, (4, 8, 16, 32))
        ]


def freezes_as_mmdet(build):
    """Module by module below stem and stages: which learn, which are in training mode."""

    def states(**options):
        for model in build(**options), ResNet(50, base_channels=8, **options):
            model.train()
            parts = ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4')
            yield [
                (
                    {p.requires_grad for p in getattr(model, part).parameters()},
                    {m.training for m in getattr(model, part).modules() if not norms(m)},
                    {m.training for m in norms(getattr(model, part))},
                )
                for part in parts
            ]

    for frozen in (-1, 0, 2, 4):
        for norm_eval in (False, True):
            ours, theirs = states(frozen_stages=frozen, norm_eval=norm_eval)
            assert ours == theirs


def checkpointing_keeps_gradients(build):
    x, found = torch.randn(2, 3, 33, 40, dtype=torch.float64), []
    for with_cp in False, True:
        model, runs = set_mode(randomised(build(with_cp=with_cp, norm_eval=False)), True), []
        model.layer2[0].conv1.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        outputs = model(x)
        sum(y.square().sum() for y in outputs).backward()
        assert len(runs) == (2 if with_cp else 1)
        found.append([*outputs, *(p.grad for p in model.parameters())])
    equal(*found)


def every_parameter_learns(model):
    model.eval()
    without = {
        f'{path}.{name}'
        for path, m in model.named_modules()
        for name in getattr(m, 'without_effect', ())
    }
    seen = set()
    for seed in range(3):  # a few activations are dead in one draw
        randomised(model, seed)
        outputs = model(torch.randn(2, 3, 64, 96, dtype=torch.float64))
        model.zero_grad()
        sum((y * torch.randn_like(y)).sum() for y in outputs).backward()
        seen |= {name for name, value in model.named_parameters() if value.grad.any()}
    assert {name for name, _ in model.named_parameters()} - without <= seen


def trains_in_retinanet(backbone, channels):
    """One step of mmdet's detector, with the backbone found by name."""
    cfg = dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
        backbone=backbone,
        neck=dict(type='FPN', in_channels=channels, out_channels=8, num_outs=5),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=2,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[4, 8, 16, 32, 64],
            ),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
        model.init_weights()
        sample = DetDataSample(
            metainfo=dict(img_shape=(64, 96), batch_input_shape=(64, 96)),
            gt_instances=InstanceData(
                bboxes=torch.tensor([[8.0, 8.0, 40.0, 48.0]]), labels=torch.tensor([1])
            ),
        )
        images = [torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
        before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
        step = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        data = dict(inputs=images, data_samples=[sample, sample.clone()])
        losses = model.train().train_step(data, step)
    assert all(loss.isfinite().all() for loss in losses.values())
    after = dict(model.backbone.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())


def norm(x, w, path, training):
    """Batch norm, written out."""
    mean, var = w[f'{path}.running_mean'], w[f'{path}.running_var']
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    mean, var, weight, bias = (
        v[:, None, None] for v in (mean, var, w[f'{path}.weight'], w[f'{path}.bias'])
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias
