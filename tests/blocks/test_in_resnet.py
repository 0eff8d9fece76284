"""Blocks in stock ResNets: found by name, starting as the network that was there, and learning."""

import functools
import types

import pytest
import torch
from torch import nn

from mmattn import insert
from mmattn.blocks import AFNB, CMPESE, AttentionGate
from tests.blocks.contract import registered

pytestmark = pytest.mark.openmmlab

BLOCKS = registered()
POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
STAGES = (False, True, False, True)
WIDTHS = dict(stem_channels=32, base_channels=32)  # half, as most time goes into convolutions


def resnet(host, **options):
    if host == 'mmdet':
        from mmdet.models import ResNet

        return ResNet(50, **WIDTHS, **options)
    from mmseg.models import ResNetV1c

    return ResNetV1c(depth=50, **WIDTHS, **options)


def arguments(cls):
    """The authors', but for groups: 64 of them do not divide the narrow convolutions of stage 1."""
    names = cls.__init__.__code__.co_varnames
    return cls.typical | (dict(groups=16) if 'groups' in names else {})


def is_plugin(cls):
    return 'plugin' not in cls.build(**cls.examples[0]).limits


def plugin(cls, position, init='identity'):
    cfg = dict(type=f'mmattn.{cls.__name__}', init=init, **arguments(cls))
    return dict(cfg=cfg, stages=STAGES, position=position)


@functools.cache
def plain(host):
    """A narrow ResNet-50 with weights and statistics drawn at random, small enough to keep values."""
    torch.manual_seed(1)
    model = resnet(host)
    model.init_weights()
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model


def load(model, host):
    """The plain network's weights into one with blocks; nothing but blocks may be missing."""
    missing, unexpected = model.load_state_dict(plain(host).state_dict(), strict=False)
    assert not unexpected
    return missing


@pytest.mark.parametrize(
    'host, position', [*(('mmdet', position) for position in POSITIONS), ('mmseg', 'after_conv3')]
)
@pytest.mark.parametrize('name', BLOCKS)
def test_as_a_plugin_it_starts_as_the_plain_network(name, position, host):
    cls = BLOCKS[name]
    if not is_plugin(cls):
        with pytest.raises((TypeError, ValueError)):  # what is declared is so
            resnet(host, plugins=[plugin(cls, position)])(torch.randn(1, 3, 32, 64))
        return
    model = resnet(host, plugins=[plugin(cls, position)])
    model.init_weights()
    missing = load(model, host)
    model.eval()
    assert any(cls._abbr_ in key for key in missing) or not dict(cls.build(64).named_parameters())
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        for found, wanted in zip(model(x), plain(host)(x), strict=True):
            assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()


def with_sk(model):
    """Selective kernels in place of the 3x3 convolutions of the last stage."""
    plugin = dict(cfg=dict(type='mmattn.SKConv2d', init='identity'), replace='layer4.*.conv2')
    return [model.get_submodule(path) for path in insert(model, [plugin])]


def with_cmpese(model):
    """Competitive excitation in place of the additions of the last stage."""
    blocks = []
    for unit in model.layer4:
        unit.add = CMPESE(unit.conv3.out_channels, init='identity')
        blocks.append(unit.add)

        def forward(self, x):
            y = self.relu(self.norm1(self.conv1(x)))
            y = self.norm3(self.conv3(self.relu(self.norm2(self.conv2(y)))))
            return self.relu(self.add(y, x if self.downsample is None else self.downsample(x)))

        unit.forward = types.MethodType(forward, unit)
    return blocks


def with_afnb(model):
    """Fusion of stages 3 and 4, on the last feature map."""
    block, forward = AFNB(512, 1024, init='identity'), model.forward
    model.fusion = block
    model.forward = lambda x: (lambda f: (*f[:3], block(f[2], f[3])))(forward(x))
    return [block]


def with_gate(model):
    """The map of stage 3 gated by that of stage 4."""
    block, forward = AttentionGate(512, 1024, init='identity'), model.forward
    model.gate = block
    model.forward = lambda x: (lambda f: (*f[:2], block(f[2], f[3]), f[3]))(forward(x))
    return [block]


def with_plugin(cls):
    def put(model):
        return [m for m in model.modules() if isinstance(m, cls)]

    return put


PUT = {name: with_plugin(cls) for name, cls in BLOCKS.items()}
PUT |= {'SKConv2d': with_sk, 'CMPESE': with_cmpese, 'AFNB': with_afnb, 'AttentionGate': with_gate}


@pytest.mark.parametrize('name', BLOCKS)
def test_in_resnet50_it_starts_as_the_plain_network_and_every_parameter_learns(name):
    cls = BLOCKS[name]
    options = {} if not is_plugin(cls) else dict(plugins=[plugin(cls, 'after_conv3')])
    model = resnet('mmdet', norm_eval=False, **options)
    model.init_weights()
    load(model, 'mmdet')
    model.eval()
    blocks = PUT[name](model)
    assert blocks
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for found, wanted in zip(model(x), plain('mmdet')(x), strict=True):
            assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    target = [torch.randn_like(y) for y in model(x)]
    step = torch.optim.SGD(model.parameters(), lr=1e-3)
    seen = {}
    for k in range(4):
        model.train(k < 3)  # at last without updates, for what batch norms remove in training
        step.zero_grad()
        sum(((y - t).square().mean() for y, t in zip(model(x), target, strict=True))).backward()
        for i, block in enumerate(blocks):
            for key, value in block.named_parameters():
                if value.grad is not None and value.grad.abs().max() > 0:
                    seen.setdefault(i, set()).add(key)
        step.step()
    for i, block in enumerate(blocks):
        every = {k for k, _ in block.named_parameters()} - set(block.without_effect)
        assert every <= seen[i], f'without a gradient: {sorted(every - seen[i])}'
