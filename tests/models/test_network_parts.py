"""Parts of networks: compiled with a way back, in channels_last, in bfloat16."""

import copy

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import nn

from mmattn.models import parts as module
from mmattn.models.memory_format import use_channels_last
from mmattn.models.operators import adapt_operators
from mmattn.models.parts import compile_parts, named_parts, use_float_outputs


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.bn(self.conv(x))
        torch._dynamo.graph_break()
        return nn.functional.dropout(x, 0.5, self.training)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.conv(x).relu()


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.decode_head = Backbone(), Head()
        self.auxiliary_head = nn.ModuleList([Head(), Head()])
        self.loss = nn.ReLU()

    def forward(self, x):
        x = self.backbone(x)
        outs = [head.forward(x) for head in (self.decode_head, *self.auxiliary_head)]
        return sum(outs)


@pytest.fixture
def said(monkeypatch):
    torch._dynamo.reset()
    texts = []
    monkeypatch.setattr(module, 'warn', texts.append)
    yield texts
    torch._dynamo.reset()


def step(network, size=(8, 12)):
    torch.manual_seed(3)
    y = network(torch.randn(2, 3, *size))
    y.square().mean().backward()
    return y.detach(), [p.grad for p in network.parameters()], list(network.buffers())


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert all(map(torch.equal, a, b)) if isinstance(a, list) else torch.equal(a, b)


def refuse(graph, inputs):
    if 'dropout' in graph.code:  # after the norm has updated its statistics
        raise RuntimeError('no such kernel.\nAnd more of it')
    return graph.forward


@pytest.mark.parametrize(
    'options, reason',
    [
        (dict(backend=refuse), r'RuntimeError: no such kernel'),
        (dict(backend='eager', fullgraph=True), r'Unsupported: '),
    ],
)
def test_what_cannot_be_compiled_is_one_sentence_and_runs_as_without(said, options, reason):
    network = Network()
    other = copy.deepcopy(network)
    keys = list(network.state_dict())
    assert compile_parts(network, options) == [
        'backbone', 'decode_head', 'auxiliary_head.0', 'auxiliary_head.1'
    ]  # fmt: skip
    for size in (8, 12), (6, 10):
        same(step(network, size), step(other, size))
    assert list(network.state_dict()) == keys
    assert len(said) == 1 and said[0].startswith('backbone (Backbone) cannot be compiled: ')
    assert reason in said[0] and said[0].endswith('. The network runs uncompiled.')
    network.eval(), other.eval()
    assert torch.equal(network(torch.ones(1, 3, 5, 5)), other(torch.ones(1, 3, 5, 5)))


def test_what_can_be_compiled_is_once_for_training_and_evaluation(said):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    network = Network()
    other = copy.deepcopy(network)
    compile_parts(network, dict(backend=count))
    for size in (8, 12), (6, 10), (9, 9), (16, 8):
        same(step(network, size), step(other, size))
    training = len(graphs)
    assert 5 <= training <= 6  # two of the backbone, one of each head: for any size
    network.eval(), other.eval()
    with torch.no_grad():
        for size in (7, 7), (8, 11), (5, 6):
            x = torch.randn(1, 3, *size)
            assert torch.equal(network(x), other(x))
    assert training < len(graphs) <= 3 * training and not said
    with torch.no_grad():
        copied = copy.deepcopy(network)  # runs its own weights
        copied.decode_head.conv.bias.add_(1)
        assert not torch.equal(copied(x), network(x))


def rois():
    return torch.tensor([[0, 3.0, 2.0, 41.0, 29.0], [1, 300.7, 1.0, 341.0, 33.3]])


def test_compiled_operators_take_every_memory_format_and_bfloat16():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 16, 48)
    layers = RoIAlign(7, 0.125), ModulatedDeformConv2dPack(4, 5, 3, padding=1)
    nn.init.normal_(layers[1].conv_offset.weight)
    for layer, inputs in zip(layers, ((x, rois()), (x,))):
        network = nn.Sequential(layer)
        expected = layer(*inputs)
        use_channels_last(network)
        found = layer(inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:])
        torch.testing.assert_close(found, expected)
        with torch.autocast('cpu', torch.bfloat16):
            found = layer(inputs[0].bfloat16(), *inputs[1:])
        torch.testing.assert_close(found, layer(inputs[0].bfloat16().float(), *inputs[1:]))
        adapt_operators(network)
        assert layer.forward.args[0].__self__ is layer  # once
        copied = copy.deepcopy(layer)
        assert copied.forward.args[0].__self__ is copied


def test_boxes_keep_their_precision_in_bfloat16():
    cfg = dict(type='RoIAlign', output_size=3, sampling_ratio=2)
    extractor = SingleRoIExtractor(cfg, 4, [8])
    maps = torch.randn(2, 4, 16, 48).bfloat16()
    expected = extractor((maps.float(),), rois())
    adapt_operators(nn.Sequential(extractor))
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(extractor((maps,), rois()), expected)


def test_heads_return_fp32_under_autocast():
    network = Network().eval()
    use_float_outputs(network)
    with torch.autocast('cpu', torch.bfloat16):
        x = network.backbone(torch.randn(1, 3, 8, 8))
        assert network.decode_head.forward(x).dtype is torch.float32
        assert network.decode_head.conv(x).dtype is torch.bfloat16


def test_parts_of_a_detector():
    from mmengine.registry import MODELS, init_default_scope

    from mmattn.config.load import load_config
    from tests.engine.killing import DETECTOR

    cfg = load_config(DETECTOR)
    init_default_scope(cfg.default_scope)
    names = [name for name, _ in named_parts(MODELS.build(cfg.model))]
    assert names == ['backbone', 'neck', 'rpn_head', 'roi_head.bbox_head', 'roi_head.mask_head']
