"""Blocks in networks of torchvision: classification, detection and segmentation."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import mmattn
from mmattn.plugins import named_plugins
from tests.libraries.checks import CHECKS, IDENTITY, Case, close, run_page, tensors, trained

torchvision = pytest.importorskip('torchvision', reason='torchvision is not installed here')
models = torchvision.models
feature_extraction = pytest.importorskip('torchvision.models.feature_extraction')

PLAIN = dict(weights=None, weights_backbone=None)
STAGE = dict(position='after_stage')
RESNET50 = (256, 512, 1024, 2048)


def resnet() -> nn.Module:
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)


def convnext() -> nn.Module:
    config = models.convnext.CNBlockConfig
    widths = pairwise((16, 24, 32, 40, None))
    return models.ConvNeXt([config(a, b, 1) for a, b in widths], num_classes=5)


def efficientnet() -> nn.Module:
    config = models.efficientnet.MBConvConfig
    widths = pairwise((16, 16, 24, 40, 80))
    return models.EfficientNet([config(2, 3, 2, a, b, 1) for a, b in widths], 0.2, num_classes=5)


def swin() -> nn.Module:
    sizes = dict(patch_size=[4, 4], window_size=[4, 4], embed_dim=16, num_classes=5)
    return models.SwinTransformer(**sizes, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])


def detector(name: str, **options) -> nn.Module:
    """Images keep their size, and few boxes are taken, as random weights find some everywhere."""
    build = getattr(models.detection, f'{name}_resnet50_fpn')
    model = build(**PLAIN, min_size=64, max_size=64, num_classes=4, **options)
    if hasattr(model, 'roi_heads'):  # boxes stay within the image
        nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=1e-3)
    return model


def detect(model: nn.Module, images: Tensor) -> tuple:
    """The result for each image, and the maps of the backbone, which no threshold cuts."""
    return model(list(images)), model.backbone(images)


def loss_of_boxes(model: nn.Module, images: Tensor) -> Tensor:
    mask = torch.zeros(1, *images.shape[2:], dtype=torch.uint8)
    mask[:, 10:40, 20:50] = 1
    corners = torch.tensor([[20.0, 10.0, 50.0, 40.0]])
    targets = [dict(boxes=corners, labels=torch.tensor([1]), masks=mask) for _ in images]
    return sum(model(list(images), targets).values())


def loss_of_pixels(model: nn.Module, images: Tensor) -> Tensor:
    labels = torch.randint(5, (len(images), *images.shape[2:]))
    return nn.functional.cross_entropy(model(images)['out'], labels)


TWO_STAGES = dict(
    rpn_pre_nms_top_n_train=30, rpn_post_nms_top_n_train=20, rpn_post_nms_top_n_test=10,
    box_score_thresh=-1.0, box_detections_per_img=5, box_batch_size_per_image=16,
)  # fmt: skip
ONE_STAGE = dict(score_thresh=-1.0, detections_per_img=5, topk_candidates=20)
DETECTOR = dict(
    places=(STAGE, dict(at='backbone.fpn.layer_blocks.0')),
    hosts=(*(f'backbone.body.layer{n}' for n in (1, 2, 3, 4)), 'backbone.fpn.layer_blocks.0'),
    channels=(*RESNET50, 256),
    call=detect,
    loss=loss_of_boxes,
    fails=dict(
        half='nms_kernel.* not implemented', bfloat16='nms_kernel.* not implemented',
        export='data-dependent',
    ),
)  # fmt: skip
CASES = {
    'resnet': Case(
        resnet,
        (STAGE, dict(position='before_add', stages=(0, 0, 0, 1), blocks=(-1,))),
        ('layer1', 'layer2', 'layer3', 'layer4.0', 'layer4'),
        (64, 128, 256, 512, 512),
    ),
    'convnext': Case(
        convnext, (STAGE,), tuple(f'features.{n}' for n in (1, 3, 5, 7)), (16, 24, 32, 40)
    ),
    'efficientnet': Case(
        efficientnet, (STAGE,), tuple(f'features.{n}' for n in (1, 2, 3, 4)), (16, 24, 40, 80)
    ),
    'swin': Case(
        swin,
        (STAGE, dict(position='after_add', stages=(0, 0, 1, 0), blocks=(0,))),
        ('features.1', 'features.3', 'features.5.0', 'features.5', 'features.7'),
        (16, 32, 64, 64, 128),
    ),
    'faster_rcnn': Case(partial(detector, 'fasterrcnn', **TWO_STAGES), **DETECTOR),
    'mask_rcnn': Case(partial(detector, 'maskrcnn', **TWO_STAGES), **DETECTOR),
    'retinanet': Case(partial(detector, 'retinanet', **ONE_STAGE), **DETECTOR),
    'deeplabv3': Case(
        partial(models.segmentation.deeplabv3_resnet50, **PLAIN, num_classes=5),
        (STAGE, dict(at='classifier.0')),
        (*(f'backbone.layer{n}' for n in (1, 2, 3, 4)), 'classifier.0'),
        (*RESNET50, 256),
        size=(16, 24),
        loss=loss_of_pixels,
    ),
}
# Compiled once: the backbones and the detection parts are those of RetinaNet.
RUNS = [(n, c) for n in CASES for c in CHECKS if not (c == 'compile' and n.endswith('rcnn'))]


@pytest.mark.parametrize('name, check', RUNS)
def test_network(name, check):
    CHECKS[check](CASES[name])


@pytest.mark.parametrize('name', ['faster_rcnn', 'mask_rcnn', 'retinanet'])
def test_the_detectors_that_are_compared_find_boxes(name):
    results, _ = detect(CASES[name].plain(), CASES[name].images())
    assert sum(len(result['boxes']) for result in results) > 0


def test_inductor_compiles_a_stage_of_resnet_with_its_block():
    stage, x = trained(CASES['resnet']).layer1, torch.rand(1, 64, 16, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        close([torch.compile(stage)(x)], [stage(x)], 1e-4)


def test_after_a_stage_of_swin_it_is_the_block_between_two_permutes():
    case = CASES['swin']
    model, plain = trained(case), case.plain()
    for path, block in named_plugins(model):
        assert block.plugin.layout == 'NHWC'

        def by_hand(module, inputs, y, block=block):
            return block.forward(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()

        plain.get_submodule(path.rpartition('.')[0]).register_forward_hook(by_hand)
    close(case.outputs(model), case.outputs(plain))


@pytest.mark.parametrize(
    'name, channels',
    [
        ('convnext_tiny', (96, 192, 384, 768)),
        ('efficientnet_b0', (16, 24, 40, 80, 112, 192, 320)),
        ('efficientnet_v2_s', (24, 48, 64, 128, 160, 256)),
        ('swin_t', (96, 192, 384, 768)),
        ('swin_v2_t', (96, 192, 384, 768)),
        ('regnet_y_400mf', (48, 104, 208, 440)),
        ('resnext50_32x4d', RESNET50),
        ('shufflenet_v2_x0_5', (48, 96, 192)),
    ],
)
def test_other_sizes_and_families_have_their_channels(name, channels):
    model = getattr(models, name)(weights=None)
    mmattn.insert(model, [dict(STAGE, cfg=IDENTITY)])
    assert [block.in_channels for _, block in named_plugins(model)] == list(channels)


@pytest.mark.parametrize(
    'name, message',
    [
        ('mobilenet_v3_small', "MobileNetV3 has none. .* at='features.0', 'features.1', 'feat"),
        ('vgg11', "VGG has none. .* at='features.1', 'features.4', 'features.9'"),
        ('densenet121', 'features.denseblock1 .* runs all its children'),
        ('vit_b_32', 'VisionTransformer has none. Name modules with at'),
    ],
)
def test_other_families_say_what_to_write(name, message):
    with pytest.raises(ValueError, match=message):
        mmattn.insert(getattr(models, name)(weights=None), [dict(STAGE, cfg=IDENTITY)])


def test_in_a_frozen_backbone_with_frozen_norms_blocks_learn():
    frozen = torchvision.ops.misc.FrozenBatchNorm2d
    model = models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name='resnet18', weights=None, norm_layer=frozen, trainable_layers=1
    )
    paths = mmattn.insert(model, [dict(cfg=IDENTITY, position='before_add', blocks=(-1,))])
    assert paths == [f'body.layer{n}.1.cbam' for n in (1, 2, 3, 4)]
    assert [block.in_channels for _, block in named_plugins(model)] == [64, 128, 256, 512]
    assert not model.body.layer1[0].conv1.weight.requires_grad
    assert all(p.requires_grad for _, block in named_plugins(model) for p in block.parameters())


@pytest.mark.parametrize('name, node', [('resnet', 'flatten'), ('convnext', 'classifier.1')])
def test_features_are_extracted_with_the_blocks_acting(name, node):
    model, images = trained(CASES[name]), CASES[name].images()
    extract = feature_extraction.create_feature_extractor(
        model, [node], tracer_kwargs=dict(leaf_modules=[mmattn.CBAM])
    )
    head = model.fc if name == 'resnet' else model.classifier[2]
    with torch.no_grad():
        close([head(extract(images)[node])], tensors(model(images)))


@pytest.mark.parametrize('name', ['resnet', 'faster_rcnn'])
def test_torchscript_compiles_no_blocks_by_script(name):
    torch.jit.script(CASES[name].plain())
    with pytest.raises(Exception, match='contextlib|RunPlugins|functools.partial'):
        torch.jit.script(CASES[name].with_blocks())


@pytest.mark.parametrize('name', ['resnet', 'swin'])
def test_torchscript_compiles_blocks_by_trace(name, tmp_path):
    model, images = trained(CASES[name]), CASES[name].images()
    path = tmp_path / 'program.pt'
    torch.jit.trace(model, images, check_trace=False).save(path)
    program = torch.jit.load(path)
    with torch.no_grad():
        close([program(images)], [model(images)], 1e-4)  # fused, so rounded otherwise


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page('torchvision')
