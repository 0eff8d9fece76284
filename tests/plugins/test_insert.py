"""Blocks act where they are told to, in the order written, and leave the rest of a network alone."""

import copy
import io
import pickle

import pytest
import torch
from mmdet.models import FPN, ResNet, ResNeXt
from mmengine.config import ConfigDict
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS, init_default_scope
from mmseg.models import ResNetV1c
from torch import nn

from mmattn import SE, SKConv2d, insert
from mmattn.config.leaves import replace_type
from mmattn.config.load import load_config
from mmattn.plugins import keep_trainable, named_plugins
from tests.conftest import ROOT, randomise

BASIC = ('after_conv1', 'after_conv2', 'before_add', 'after_add', 'after_stage')
DEEP = ('after_conv1', 'after_conv2', 'after_conv3', 'before_add', 'after_add', 'after_stage')
NARROW = dict(base_channels=8, stem_channels=8)


class Line(nn.Module):
    """x * weight + bias: two of them do not commute, and none commutes with an activation."""

    def __init__(self, in_channels, weight=None, bias=None):
        super().__init__()
        shape = (in_channels, 1, 1)
        self.weight = nn.Parameter(
            torch.randn(shape) if weight is None else torch.ones(shape) * weight
        )
        self.bias = nn.Parameter(torch.randn(shape) if bias is None else torch.ones(shape) * bias)

    def forward(self, x):
        return x * self.weight + self.bias


class Block(nn.Module):
    """A residual block as torchvision writes it: one activation for all places."""

    def __init__(self, inplanes, planes, deep, stride=1, downsample=None):
        super().__init__()
        widths = [inplanes, planes, planes, 4 * planes] if deep else [inplanes, planes, planes]
        for k in range(1, len(widths)):
            kernel = 1 if deep and k != 2 else 3
            step = stride if k == (2 if deep else 1) else 1
            conv = nn.Conv2d(widths[k - 1], widths[k], kernel, step, kernel // 2, bias=False)
            self.add_module(f'conv{k}', conv)
            self.add_module(f'bn{k}', nn.BatchNorm2d(widths[k]))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, 'conv3'):
            y = self.bn3(self.conv3(self.relu(y)))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Acting(Block):
    """A residual block as timm writes it: activations of their own, and SE behind the last norm."""

    def __init__(self, inplanes, planes, deep, stride=1, downsample=None):
        super().__init__(inplanes, planes, deep, stride, downsample)
        del self.relu
        self.act1, self.act2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        if deep:
            self.act3 = nn.ReLU(inplace=True)
        self.se = SE(4 * planes if deep else planes, reduction=2)

    def forward(self, x):
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        if hasattr(self, 'conv3'):
            y = self.bn3(self.conv3(self.act2(y)))
        y = self.se(y)
        y += x if self.downsample is None else self.downsample(x)
        return (self.act3 if hasattr(self, 'conv3') else self.act2)(y)


class Residual(nn.Module):
    """A ResNet of torchvision's or timm's attributes; returns the maps of its stages."""

    def __init__(self, block, deep, blocks=(2, 1, 1, 2), width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for k, count in enumerate(blocks, start=1):
            planes, units = width * 2 ** (k - 1), []
            for number in range(count):
                stride = 2 if k > 1 and number == 0 else 1
                wide = 4 * planes if deep else planes
                side = None
                if stride > 1 or channels != wide:
                    conv = nn.Conv2d(channels, wide, 1, stride, bias=False)
                    side = nn.Sequential(conv, nn.BatchNorm2d(wide))
                units.append(block(channels, planes, deep, stride, side))
                channels = wide
            self.add_module(f'layer{k}', nn.Sequential(*units))

    def forward(self, x):
        x, maps = self.maxpool(self.relu(self.bn1(self.conv1(x)))), []
        for k in range(1, 5):
            x = self.get_submodule(f'layer{k}')(x)
            maps.append(x)
        return tuple(maps)


HOSTS = {
    'mmdet basic': lambda: ResNet(18, norm_eval=False, **NARROW),
    'mmdet bottleneck': lambda: ResNet(50, norm_eval=False, **NARROW),
    'mmseg basic': lambda: ResNetV1c(depth=18, **NARROW),
    'mmseg bottleneck': lambda: ResNetV1c(depth=50, **NARROW),
    'torchvision basic': lambda: Residual(Block, False),
    'torchvision bottleneck': lambda: Residual(Block, True),
    'timm basic': lambda: Residual(Acting, False),
    'timm bottleneck': lambda: Residual(Acting, True),
}
PLACES = [(h, p) for h in HOSTS for p in (BASIC if h.endswith('basic') else DEEP)]


def host(name='mmdet basic'):
    """With weights drawn at random, and in double precision, which holds whatever they give."""
    model = randomise(HOSTS[name]()).double()
    model.eval()  # returns nothing in mmdet
    return model


def image(batch=1):
    return torch.randn(batch, 3, 64, 64, dtype=torch.float64)


def line(postfix='', **place):
    return dict(cfg=dict(type=Line, postfix=postfix), **place)


def double_and_one(**place):
    return dict(cfg=dict(type=Line, weight=2, bias=1, postfix='_a'), **place)


def triple(**place):
    return dict(cfg=dict(type=Line, weight=3, bias=0, postfix='_b'), **place)


def equal(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def block_by_hand(block, x, position, plugin):
    """The forward of a residual block without hooks, with the plugin where it is promised."""
    last = 3 if hasattr(block, 'conv3') else 2
    y = x
    for k in range(1, last + 1):
        y = getattr(block, f'bn{k}')(getattr(block, f'conv{k}')(y))
        if k < last:
            y = y.relu()
        if position == f'after_conv{k}' or (k == last and position == 'before_add'):
            y = plugin(y)
    if hasattr(block, 'se'):
        y = block.se(y)
    y = (y + (x if block.downsample is None else block.downsample(x))).relu()
    return plugin(y) if position == 'after_add' else y


def network_by_hand(plain, model, x, position, chosen=None):
    """The forward of a plain ResNet with the plugins of `model`, of those chosen by path."""
    stem = getattr(plain, 'stem', None)
    x = plain.maxpool(stem(x) if stem else plain.bn1(plain.conv1(x)).relu())
    maps = []
    for k in range(1, 5):
        for n, block in enumerate(getattr(plain, f'layer{k}')):
            path = f'layer{k}.{n}'
            here = position if chosen is None or path in chosen else None
            plugin = getattr(model.get_submodule(path), 'line', None)
            x = block_by_hand(block, x, here, plugin)
        if position == 'after_stage':
            x = getattr(model, f'layer{k}').line(x)
        maps.append(x)
    return maps


# -- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, position', PLACES)
def test_it_acts_exactly_at_its_position(name, position):
    plain = host(name)
    model = copy.deepcopy(plain)
    paths = insert(model, [line(position=position)])
    units = sum(len(getattr(plain, f'layer{k}')) for k in range(1, 5))
    assert len(paths) == (4 if position == 'after_stage' else units)
    x = image()
    assert not equal(model(x), plain(x))
    assert equal(model(x), network_by_hand(plain, model, x, position))


@pytest.mark.parametrize(
    'place, wanted',
    [
        (dict(blocks=(-1,)), ['layer1.1', 'layer2.0', 'layer3.0', 'layer4.1']),
        (dict(blocks=(0,), stages=(True, False, False, True)), ['layer1.0', 'layer4.0']),
        (dict(blocks=(-1, 0, 1), stages=[1, 0, 0, 0]), ['layer1.0', 'layer1.1']),
        (dict(stages=(False, True, False, True)), ['layer2.0', 'layer4.0', 'layer4.1']),
    ],
)
def test_stages_and_blocks_choose(place, wanted):
    plain = host('torchvision bottleneck')
    model = copy.deepcopy(plain)
    paths = insert(model, [line(position='before_add', **place)])
    assert paths == [f'{path}.line' for path in wanted]
    x = image()
    assert equal(model(x), network_by_hand(plain, model, x, 'before_add', wanted))


def test_blocks_are_counted_without_plugins_behind_the_stage():
    model = host('torchvision basic')
    insert(model, [line('_s', position='after_stage')])
    paths = insert(model, [line(position='after_add', blocks=(-1,))])
    assert paths == ['layer1.1.line', 'layer2.0.line', 'layer3.0.line', 'layer4.1.line']


@pytest.mark.parametrize('position', ['after_conv1', 'after_conv2', 'after_conv3'])
def test_it_equals_mmdets_own_plugins(position):
    cfg = dict(type='mmattn.ContextBlock', ratio=1 / 4)
    plugins = [dict(cfg=cfg, stages=(False, True, True, False), position=position)]
    stock = randomise(ResNet(50, plugins=plugins, **NARROW)).double()
    ours = ResNet(50, **NARROW).double()
    insert(ours, plugins)
    stock.eval(), ours.eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    x = image()
    assert equal(ours(x), stock(x))


# -- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('position', ['after_conv1', 'before_add', 'after_add', 'after_stage'])
@pytest.mark.parametrize('order', [(double_and_one, triple), (triple, double_and_one)])
def test_several_at_a_position_apply_in_the_order_written(order, position):
    model = host()
    other = copy.deepcopy(model)
    insert(model, [f(position=position) for f in order])
    # (2x + 1) 3 = 6x + 3, and 2 (3x) + 1 = 6x + 1
    bias = 3 if order[0] is double_and_one else 1
    insert(other, [dict(cfg=dict(type=Line, weight=6, bias=bias), position=position)])
    x = image()
    for found, wanted in zip(model(x), other(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize('at', ['relu', 'body'])
def test_several_behind_a_module_apply_in_the_order_written(at):
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    for order, bias in ((double_and_one, triple), 3), ((triple, double_and_one), 1):
        model = nn.ModuleDict(dict(relu=nn.ReLU(), body=nn.Sequential(nn.Conv2d(4, 4, 1))))
        randomise(model).double()
        before = model[at](x)
        plugins = [f(at=at) for f in order]
        for plugin in plugins:
            plugin['cfg']['in_channels'] = 4
        insert(model, plugins)
        torch.testing.assert_close(model[at](x), 6 * before + bias, rtol=1e-12, atol=1e-12)


def test_calls_of_insert_one_after_the_other_are_as_one_call():
    one, two = host('torchvision basic'), None
    two = copy.deepcopy(one)
    plugins = [double_and_one(at='layer1.0.bn1'), triple(at='layer1.0.bn1')]
    insert(one, plugins)
    for plugin in plugins:
        insert(two, [plugin])
    x = image()
    assert equal(one(x), two(x))
    assert list(one.state_dict()) == list(two.state_dict())


def network(config, kind, backbone, plugins=None):
    """A network of a config with a narrow ResNet-50."""
    cfg = load_config(ROOT / 'configs' / config)
    replace_type(cfg.model, 'SyncBN', 'BN')
    init_default_scope(cfg.default_scope)
    model = cfg.model.to_dict()
    model |= dict(type=kind, backbone=dict(depth=50, norm_eval=False) | NARROW | backbone)
    if plugins is not None:
        model['plugins'] = plugins
    if 'neck' in model:
        model['neck']['in_channels'] = [32, 64, 128, 256]
    else:
        model['decode_head']['in_channels'] = 256
        model['auxiliary_head']['in_channels'] = 128
    return MODELS.build(ConfigDict(model))


def written(first, position):
    two = [double_and_one(position=position), triple(position=position)]
    return two if first == 'double_and_one' else two[::-1]


def merged(first, position):
    bias = 3 if first == 'double_and_one' else 1
    return [dict(cfg=dict(type=Line, weight=6, bias=bias), position=position)]


def features(model, weights):
    """Of the backbone, with the weights and the image that all have."""
    backbone = model.backbone.double()
    backbone.eval()
    missing, unexpected = backbone.load_state_dict(weights, strict=False)
    assert missing and all('line' in key for key in missing) and not unexpected
    torch.manual_seed(5)
    return backbone(image())


def close(found, wanted):
    return all(torch.allclose(a, b, rtol=1e-9, atol=0) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize('position', ['after_conv2', 'after_conv3'])
@pytest.mark.parametrize('first', ['double_and_one', 'triple'])
@pytest.mark.parametrize('kind', ['ResNet', 'mmdet.ResNet'])
def test_in_detectors_several_plugins_apply_in_the_order_written(kind, first, position):
    config, ours = 'faster_rcnn_r18_bccd.py', 'mmattn.FasterRCNN'
    weights, two = host('mmdet bottleneck').state_dict(), written(first, position)
    single = network(config, ours, dict(type=kind), merged(first, position))
    wanted = features(single, weights)
    within = network(config, ours, dict(type=kind), two)
    below = network(config, ours, dict(type=kind, plugins=two))
    first_below = network(config, ours, dict(type=kind, plugins=two[:1]), two[1:])
    for model in within, below, first_below:
        assert close(features(model, weights), wanted)
        assert set(model.state_dict()) == set(within.state_dict())


@pytest.mark.parametrize('position', ['after_conv2', 'after_conv3'])
@pytest.mark.parametrize('first', ['double_and_one', 'triple'])
@pytest.mark.parametrize('kind', ['ResNetV1c', 'mmseg.ResNetV1c', 'ResNet'])
def test_in_segmentors_several_plugins_apply_in_the_order_written(kind, first, position):
    """Of which the stock network runs only the last."""
    config, ours = 'fcn_r18_street.py', 'mmattn.EncoderDecoder'
    stock = host('mmseg bottleneck') if 'V1c' in kind else host('mmdet bottleneck')
    weights, two = stock.state_dict(), written(first, position)
    wanted = features(network(config, ours, dict(type=kind), merged(first, position)), weights)
    theirs = network(config, 'EncoderDecoder', dict(type=kind, plugins=two))
    assert not close(features(theirs, weights), wanted)
    within = network(config, ours, dict(type=kind), two)
    below = network(config, ours, dict(type=kind, plugins=two))
    first_below = network(config, ours, dict(type=kind, plugins=two[:1]), two[1:])
    for model in within, below, first_below:
        assert close(features(model, weights), wanted)
    assert set(below.state_dict()) == set(theirs.state_dict())


def test_plugins_of_a_basic_backbone_are_put_where_the_stock_one_has_none():
    two = written('triple', 'after_conv2')
    model = network(
        'faster_rcnn_r18_bccd.py', 'mmattn.FasterRCNN', dict(type='ResNet', plugins=two)
    )
    assert len(list(named_plugins(model))) == 2 * 16


# -- behind modules -------------------------------------------------------------------------------


def test_a_star_stays_within_one_step_of_a_path():
    model = host('torchvision basic')
    assert insert(model, [line(at='layer1.*')]) == ['layer1.0.line', 'layer1.1.line']
    found = insert(model, [line('_b', at='layer*.0.bn?')])
    assert found == [f'layer{k}.0.bn{n}.line_b' for k in range(1, 5) for n in (1, 2)]
    with pytest.raises(ValueError, match=r"at='\*.conv1' matches no module"):
        insert(model, [line(at='*.conv1')])


def test_an_exact_path_finds_a_plugin_and_a_star_does_not():
    model = host('torchvision basic')
    insert(model, [dict(cfg=dict(type='mmattn.SE', reduction=2), position='after_conv1')])
    every = [f'layer{k}.{n}' for k in range(1, 5) for n in range(len(getattr(model, f'layer{k}')))]
    wanted = {f'{path}.{name}' for path in every for name in ('conv1', 'bn1', 'conv2', 'bn2')}
    found = insert(model, [line(at='layer*.*.[bcs]*'), line('_s', at='layer2.0.se')])
    assert {path.rsplit('.', 1)[0] for path in found[:-1]} == wanted
    assert found[-1] == 'layer2.0.se.line_s'


def test_it_acts_behind_the_module_that_is_named():
    plain = host('torchvision basic')
    model = copy.deepcopy(plain)
    insert(model, [line(at='layer2.0.conv1'), line(at='bn1')])
    x = image()
    block, seen = plain.layer2[0], model.layer2[0].conv1.line
    y = plain.layer1(plain.maxpool(model.bn1.line(plain.bn1(plain.conv1(x))).relu()))
    z = block.bn2(block.conv2(block.bn1(seen(block.conv1(y))).relu()))
    y = plain.layer4(plain.layer3((z + block.downsample(y)).relu()))
    assert torch.equal(model(x)[-1], y)


def test_in_a_sequential_it_is_the_last_child():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Sequential(nn.Conv2d(5, 4, 1), nn.ReLU())
    )
    plain = copy.deepcopy(model)
    assert insert(model, [line(at='2')]) == ['2.line']
    x = torch.randn(2, 3, 4, 6)
    assert list(dict(model[2].named_children())) == ['0', '1', 'line']
    assert torch.equal(model(x), model[2].line(plain(x)))


@pytest.mark.parametrize('container', [nn.ModuleList, lambda m: nn.ModuleDict(dict(zip('ab', m)))])
def test_a_list_of_modules_is_refused_and_what_is_inside_is_named(container):
    model = nn.ModuleDict(dict(convs=container([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)])))
    with pytest.raises(ValueError, match=r'convs is a Module(List|Dict), .* inside: convs\.\*'):
        insert(model, [line(at='convs')])
    assert len(insert(model, [line(at='convs.*')])) == 2


def test_channels_that_cannot_be_told_are_asked_for_and_taken():
    model = nn.ModuleDict(dict(act=nn.ReLU()))
    with pytest.raises(ValueError, match=r'out of act \(ReLU\) is unknown. Write in_channels'):
        insert(model, [line(at='act')])
    insert(model, [dict(cfg=dict(type=Line, in_channels=3), at='act')])
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(model.act(x), model.act.line(x.relu()))


def test_a_module_that_returns_several_maps_is_refused_at_the_first_forward():
    model = nn.Sequential()
    model.neck = FPN([8, 16], 4, num_outs=2)
    insert(model, [dict(cfg=dict(type='mmattn.SE', reduction=2), at='neck')])
    with pytest.raises(TypeError, match=r'plugin se after neck: there is a tuple, not one map'):
        model.neck([torch.randn(1, 8, 8, 8), torch.randn(1, 16, 4, 4)])


def test_a_shared_module_has_one_plugin_that_runs_with_it():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), relu, nn.Conv2d(3, 3, 1), relu)
    plain = copy.deepcopy(model)
    (path,) = insert(model, [dict(cfg=dict(type=Line, in_channels=3), at='1')])
    block, x = model.get_submodule(path), torch.randn(1, 3, 4, 5)
    assert torch.equal(model(x), block(plain[2](block(plain[0](x).relu())).relu()))


# -- instead of convolutions ----------------------------------------------------------------------


GROUPED = {
    'plain': lambda: ResNet(50, norm_eval=False, **NARROW),
    'grouped': lambda: ResNeXt(depth=50, groups=4, base_width=4, base_channels=16, norm_eval=False),
}
CONV2 = 'layer[2-4].*.conv2'


def grouped(name):
    """A network with weights that keep the size of values, as single precision needs."""
    model = GROUPED[name]()
    model.init_weights()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1)  # 0 at the end of a branch would hide it
    model.eval()
    return model


@pytest.mark.parametrize('name', GROUPED)
def test_selective_kernels_start_as_the_convolutions_that_they_replace(name):
    plain = randomise(GROUPED[name]()).double()
    plain.eval()
    model = copy.deepcopy(plain)
    paths = insert(model, [dict(cfg=dict(type='mmattn.SKConv2d', init='identity'), replace=CONV2)])
    assert len(paths) == 13 and all(isinstance(model.get_submodule(p), SKConv2d) for p in paths)
    assert equal(model(image()), plain(image())) is False  # another image: the test can fail
    x = image()
    assert equal(model(x), plain(x))
    assert set(model.state_dict()) >= {k for k in plain.state_dict() if '.conv2.' not in k}
    randomise(model.layer3[1].conv2.rho)
    assert not equal(model(x), plain(x))


@pytest.mark.parametrize('name', GROUPED)
@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_deformable_convolutions_start_as_the_convolutions_that_they_replace(kind, name):
    pytest.importorskip('mmcv._ext', reason='mmcv has no compiled operators')
    plain = grouped(name)
    model = copy.deepcopy(plain)
    paths = insert(model, [dict(cfg=dict(type=kind, deform_groups=1), replace=CONV2)])
    assert all(hasattr(model.get_submodule(path), 'conv_offset') for path in paths)
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        for found, wanted in zip(model(x), plain(x), strict=True):
            assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
        nn.init.normal_(model.layer3[1].conv2.conv_offset.weight)
        assert not torch.allclose(model(x)[-1], plain(x)[-1], rtol=1e-3)


def test_a_paper_start_has_groups_of_its_own():
    model = ResNet(50, **NARROW)
    cfg = dict(type='mmattn.SKConv2d', init='paper')
    with pytest.raises(ValueError, match='groups=32, but groups must divide in_channels=16'):
        insert(model, [dict(cfg=cfg, replace='layer2.*.conv2')])
    insert(
        model,
        [
            dict(cfg=cfg, replace='layer3.*.conv2'),
            dict(cfg=dict(cfg, groups=2), replace='layer2.0.conv2'),
        ],
    )
    assert model.layer3[0].conv2.convs[0][0].groups == 32
    assert model.layer2[0].conv2.convs[0][0].groups == 2
    before = model.layer4[0].conv2
    assert (model.layer3[0].conv2.convs[0][0].stride, before.stride) == ((2, 2), (2, 2))


@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize('position', ['after_conv1', 'after_conv2', 'before_add'])
def test_plugins_around_a_replaced_convolution_stay(position, turned):
    plain = host('mmdet bottleneck')
    model, other = copy.deepcopy(plain), copy.deepcopy(plain)
    sk = dict(cfg=dict(type='mmattn.SKConv2d', init='identity'), replace='layer*.*.conv*')
    two = [line(position=position), sk]
    insert(model, two[::-1] if turned else two)
    for plugin in two[::-1] if turned else two:  # in calls of their own
        insert(other, [plugin])
    other.load_state_dict(model.state_dict())
    x = image()
    wanted = network_by_hand(plain, model, x, position)
    assert equal(model(x), wanted)
    assert equal(other(x), wanted)


@pytest.mark.parametrize('turned', [False, True])
def test_replacements_come_first_and_a_star_finds_them(turned):
    plain = host('mmdet bottleneck')
    model = copy.deepcopy(plain)
    sk = dict(cfg=dict(type='mmattn.SKConv2d', init='identity'), replace='layer2.*.conv2')
    two = [sk, line(at='layer2.*.conv2')]
    paths = insert(model, two[::-1] if turned else two)
    assert set(paths[4:]) == {f'layer2.{n}.conv2.line' for n in range(4)}
    x = plain.layer1(image()[:, :1].expand(-1, 8, -1, -1))
    wanted = x
    for block, own in zip(plain.layer2, model.layer2):
        y = block.bn1(block.conv1(wanted)).relu()
        y = block.bn2(own.conv2.line(block.conv2(y))).relu()
        side = wanted if block.downsample is None else block.downsample(wanted)
        wanted = (block.bn3(block.conv3(y)) + side).relu()
    assert torch.equal(model.layer2(x), wanted)


@pytest.mark.parametrize(
    'kind, message',
    [
        ('bn1', r'layer1.0.bn1 is a BatchNorm2d; only convolutions are replaced'),
        ('relu', r'layer1.0.relu is a ReLU; only convolutions are replaced'),
    ],
)
def test_only_convolutions_are_replaced(kind, message):
    sk = dict(cfg=dict(type='mmattn.SKConv2d', init='identity'), replace=f'layer1.*.{kind}')
    with pytest.raises(ValueError, match=message):
        insert(host(), [sk])


def test_a_block_that_is_no_convolution_replaces_none():
    with pytest.raises(ValueError, match='SE.*is no convolution, it has no out_channels.* Use at'):
        insert(host(), [dict(cfg=dict(type='mmattn.SE'), replace='layer1.*.conv1')])


def test_a_replacement_that_cannot_start_from_the_weights_says_so():
    cfg = dict(type='mmattn.SKConv2d', init='identity', groups=2)
    with pytest.raises(
        ValueError, match=r"cannot start from weight .* same groups and bias, or init='paper'"
    ):
        insert(host(), [dict(cfg=cfg, replace='layer1.*.conv2')])


# -- what stays as it is --------------------------------------------------------------------------


MIXED = (
    line('_a', position='after_conv1'),
    line('_b', position='before_add', stages=(False, True, True, True)),
    line('_c', position='after_add', blocks=(0,)),
    line('_d', position='after_stage'),
    line('_e', at='layer3.0.conv2'),
    dict(
        cfg=dict(type='mmattn.ContextBlock', ratio=1 / 4), position='after_add', stages=(1, 0, 0, 1)
    ),
    dict(cfg=dict(type='mmattn.SCSE', reduction=2), at='layer4.*'),
)


def mixed(name='mmdet bottleneck', **options):
    """A network with plugins of every kind, in double precision."""
    model = ResNet(50, norm_eval=False, **NARROW, **options) if options else HOSTS[name]()
    insert(model, MIXED)
    for module in model.modules():  # keeps the size of values over 50 layers
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    awake(model).double().eval()
    return model


def rebuilt(model, name='mmdet bottleneck'):
    """Another network of the same weights, without copying."""
    other = mixed(name)
    other.load_state_dict(model.state_dict())
    return other


def awake(model):
    """Plugins drawn at random, so that none starts as the identity."""
    for _, block in named_plugins(model):
        randomise(block)
    return model


@pytest.mark.parametrize('name', HOSTS)
def test_keys_of_the_network_stay(name):
    model = host(name)
    before = model.state_dict()
    own = dict(model.named_modules())
    paths = insert(model, MIXED)
    after = model.state_dict()
    assert set(before) < set(after)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    starts = tuple(f'{path}.' for path in paths)
    assert all(key.startswith(starts) for key in set(after) - set(before))
    assert all(model.get_submodule(name) is module for name, module in own.items())


def test_what_was_given_is_not_changed():
    given = copy.deepcopy(list(MIXED))
    insert(host('torchvision bottleneck'), given)
    assert given == list(MIXED)
    backbone = dict(type='ResNet', plugins=[line('_a', position='after_conv2')])
    before = copy.deepcopy(backbone)
    network('faster_rcnn_r18_bccd.py', 'mmattn.FasterRCNN', backbone)
    assert backbone == before


def test_nothing_is_drawn_for_a_network_without_plugins():
    state = torch.get_rng_state()
    assert insert(nn.Sequential(nn.ReLU()), []) == []
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('name', ['mmdet bottleneck', 'torchvision bottleneck'])
def test_a_deep_copy_is_a_network_of_its_own(name):
    model, x = mixed(name), image()
    wanted = model(x)
    twin = copy.deepcopy(model)
    assert equal(twin(x), wanted)
    awake(twin)
    assert equal(model(x), wanted)
    assert equal(twin(x), rebuilt(twin, name)(x)) and not equal(twin(x), wanted)


def test_it_is_pickled_and_saved_as_a_whole():
    model, x = mixed(), image()
    wanted = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False):
        assert equal(other(x), wanted)
        awake(other)
        assert equal(other(x), rebuilt(other)(x)) and not equal(other(x), wanted)
        assert equal(model(x), wanted)


def test_an_average_of_weights_has_the_plugins():
    model, x = mixed(), image()
    mean = ExponentialMovingAverage(model, momentum=0.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    awake(model)
    mean.update_parameters(model)  # the first copies
    assert equal(mean(x), model(x))
    awake(model)
    mean.update_parameters(model)
    (path, block), *_ = named_plugins(model)
    key = f'{path}.{next(iter(block.state_dict()))}'
    assert not torch.equal(mean.module.state_dict()[key], before[key])
    assert equal(mean(x), rebuilt(mean.module)(x))
    assert not equal(mean(x), model(x))


def test_gradients_of_a_distributed_network_reach_the_plugins(tmp_path):
    dist = torch.distributed
    store = dist.FileStore(str(tmp_path / 'store'), 1)
    dist.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        model = mixed()
        model.train()
        wrapped = nn.parallel.DistributedDataParallel(model)
        sum(y.square().mean() for y in wrapped(image(2))).backward()
    finally:
        dist.destroy_process_group()
    for path, block in named_plugins(model):
        for name, value in block.named_parameters():
            if name not in getattr(block, 'without_effect', ()):
                assert value.grad.isfinite().all() and value.grad.any(), f'{path}.{name}'


def gradients(model, x):
    model.zero_grad()
    y = model(x)
    sum(part.square().mean() for part in y).backward()
    return y, {name: value.grad.clone() for name, value in model.named_parameters()}


def assert_same_gradients(found, wanted, tolerance=1e-9):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        scale = max(1e-6, value.abs().max().item())
        assert (found[name] - value).abs().max() <= tolerance * scale, name


def test_activation_checkpointing_changes_nothing():
    plain, stored = mixed(with_cp=False), mixed(with_cp=True)
    stored.load_state_dict(plain.state_dict())
    plain.train(), stored.train()
    x = image(2).requires_grad_()
    (a, wanted), (b, found) = gradients(plain, x), gradients(stored, x)
    assert equal(a, b)
    assert_same_gradients(found, wanted)


@pytest.mark.parametrize('name', ['mmdet basic', 'torchvision bottleneck'])
@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_it_compiles_as_one_graph(backend, name):
    torch._dynamo.reset()
    model = mixed(name)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = image()
    for found, wanted in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    awake(model)
    for found, wanted in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('name', ['mmdet basic', 'torchvision bottleneck'])
def test_it_exports(name):
    model, x = mixed(name), image()
    program = torch.export.export(model, (x,))
    for found, wanted in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_channels_last():
    model, x = mixed(), image()
    wanted = model(x)
    last = model.to(memory_format=torch.channels_last)
    for found, value in zip(last(x.to(memory_format=torch.channels_last)), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('place', [*DEEP, 'bn1', 'maxpool', 'relu'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_a_block_has_the_dtype_of_the_network(dtype, place):
    model = HOSTS['torchvision bottleneck']().eval().to(dtype)
    where = dict(position=place) if place in DEEP else dict(at=place)
    channels = dict(in_channels=4) if where.get('at') else {}
    cfg = dict(type='mmattn.SE', reduction=2, **channels)
    for path in insert(model, [dict(cfg=cfg, **where)]):
        assert all(v.dtype == dtype for v in model.get_submodule(path).parameters()), path
    assert all(y.dtype == dtype for y in model(torch.randn(1, 3, 64, 64, dtype=dtype)))


@pytest.mark.parametrize('place', [*DEEP, 'bn1', 'maxpool', 'relu'])
def test_a_block_is_on_the_device_of_the_network(place):
    model = HOSTS['torchvision bottleneck']().to('meta')
    where = dict(position=place) if place in DEEP else dict(at=place)
    channels = dict(in_channels=4) if where.get('at') else {}
    for path in insert(model, [dict(cfg=dict(type=Line, **channels), **where)]):
        assert all(v.is_meta for v in model.get_submodule(path).parameters()), path


@pytest.mark.parametrize('training', [False, True])
def test_a_block_is_in_the_mode_of_the_network(training):
    model = HOSTS['torchvision basic']().train(training)
    cfg = dict(type='mmattn.SKConv2d', init='identity')
    insert(model, [*MIXED[:4], dict(cfg=cfg, replace='layer2.*.conv1')])
    assert all(m.training == training for m in model.modules())


def test_what_is_advised_for_networks_of_others_keeps_plugins_learning():
    model = ResNet(18, frozen_stages=2, **NARROW)
    cfg = dict(type='mmattn.BAM', reduction=2)
    with pytest.raises(
        ValueError, match=r'call mmattn.plugins.keep_trainable\(model\) after model'
    ):
        insert(model, [dict(cfg=cfg, position='before_add', learn=True)])
    insert(model, [dict(cfg=cfg, position='before_add')])
    model.train()
    assert not any(value.requires_grad for value in model.layer1[0].bam.parameters())
    keep_trainable(model)
    assert all(
        value.requires_grad for _, block in named_plugins(model) for value in block.parameters()
    )
    assert all(module.training for _, block in named_plugins(model) for module in block.modules())
    assert not model.layer1[0].conv1.weight.requires_grad


# -- errors ---------------------------------------------------------------------------------------


SE_ = dict(type='mmattn.SE', reduction=2)


@pytest.mark.parametrize(
    'plugin, message',
    [
        (
            dict(cfg=SE_, at='layer1.0.bn9'),
            r"plugins\[0\] \(mmattn.SE\): at='layer1.0.bn9' matches no module of ResNet; the nearest paths are layer1.0.bn",
        ),
        (
            dict(cfg=SE_, replace='layer5.*.conv2'),
            r"replace='layer5.\*.conv2' matches no module of ResNet; the nearest paths are layer",
        ),
        (
            dict(cfg=SE_, position='after_conv3'),
            r"position='after_conv3', but layer1.0 \(BasicBlock\) has after_conv1, after_conv2, before_add, after_add, after_stage. before_add is",
        ),
        (
            dict(cfg=SE_, position='after_stages'),
            r"position='after_stages', but layer1.0 \(BasicBlock\) has",
        ),
        (
            dict(cfg=SE_, position='after_add', stages=(True, False)),
            r'stages=\(True, False\): 4 stages need a bool each, 2 are given',
        ),
        (
            dict(cfg=SE_, position='after_stage', stages=(True,) * 5),
            r'4 stages need a bool each, 5 are given',
        ),
        (dict(cfg=SE_, position='after_add', blocks=(2,)), r'blocks=\(2,\): layer1 has 2 blocks'),
        (
            dict(cfg=SE_, position='after_add', blocks=(0, -3)),
            r'blocks=\(0, -3\): layer1 has 2 blocks',
        ),
        (
            dict(cfg=SE_, position='after_add', blocks=-1),
            r'plugins\[0\] \(mmattn.SE\): .*blocks=-1',
        ),
        (
            dict(cfg=SE_, position='after_add', stages=True),
            r'plugins\[0\] \(mmattn.SE\): .*stages=True',
        ),
        (dict(cfg=SE_, at=3), r'plugins\[0\] \(mmattn.SE\): .*at=3'),
        (
            dict(cfg=SE_, at='relu', stages=(True,) * 4),
            'stages and blocks go with position, not with at',
        ),
        (
            dict(cfg=SE_, replace='layer1.0.conv1', blocks=(0,)),
            'stages and blocks go with position, not with replace',
        ),
        (
            dict(cfg=SE_, postion='after_add'),
            'has no key postion; allowed cfg, stages, blocks, position, at, replace, learn',
        ),
        (
            dict(cfg=SE_, position='after_add', at='relu'),
            'needs one of position, at, replace, and has position and at',
        ),
        (dict(cfg=SE_), 'needs one of position, at, replace, and has none'),
        (
            dict(cfg=SE_, position='after_add', learn=True),
            r'learn=True works in networks of mmattn, .*keep_trainable\(model\)',
        ),
        (
            dict(cfg=dict(type='mmattn.CBAN'), position='after_add'),
            r'\(mmattn.CBAN\): no such type is registered. Did you mean mmattn.CBAM',
        ),
        (dict(cfg=dict(type='mmattn.SE', reductoin=4), position='after_add'), r'SE.*reductoin'),
        (
            dict(cfg=dict(type='mmattn.SE', reduction=100), position='after_add'),
            r'\(mmattn.SE\) at layer1.0: SE: reduction=100, allowed 1..in_channels=8',
        ),
        (
            dict(cfg=dict(type='mmattn.CMPESE', reduction=2), position='after_add'),
            r'cannot be inserted after layer1.0: needs residual and identity',
        ),
        (
            dict(cfg=dict(type='mmattn.SKConv2d', groups=1), position='before_add'),
            r'cannot be inserted after layer1.0.bn2: it is a convolution',
        ),
        (
            dict(cfg=dict(type='mmattn.AFNB', high_in_channels=8), position='after_add'),
            r'cannot be inserted after layer1.0: needs two maps',
        ),
        (
            dict(cfg=dict(reduction=4), position='after_add'),
            r'plugins\[0\]=.*write dict\(cfg=dict\(type=...\), ...\)',
        ),
        (dict(position='after_add'), r'write dict\(cfg=dict\(type=...\), ...\)'),
        (dict(cfg='mmattn.SE', position='after_add'), r'write dict\(cfg=dict\(type=...\), ...\)'),
        (dict(cfg=3, position='after_add'), r'write dict\(cfg=dict\(type=...\), ...\)'),
        (dict(cfg=dict(type=None), position='after_add'), r'plugins\[0\]'),
        ('mmattn.SE', r"plugins\[0\]='mmattn.SE': write dict\(cfg=dict\(type=...\), ...\)"),
        (None, r'plugins\[0\]=None: write dict'),
    ],
)
def test_a_plugin_that_cannot_be_put_says_why_and_leaves_the_network(plugin, message):
    model = ResNet(18, **NARROW)
    before, given = list(model.state_dict()), copy.deepcopy(plugin)
    with pytest.raises(ValueError, match=message):
        insert(model, [plugin])
    assert list(model.state_dict()) == before
    assert plugin == given


def test_the_number_in_the_list_is_named():
    with pytest.raises(ValueError, match=r'plugins\[1\] \(Line\): needs one of'):
        insert(host(), [line(position='after_add'), dict(cfg=dict(type=Line))])


def test_two_of_a_kind_at_one_place_need_a_postfix():
    for place in dict(position='after_add'), dict(at='layer1.0.bn1'), dict(position='after_stage'):
        with pytest.raises(ValueError, match="has a line already. .*postfix='_2'"):
            insert(host(), [line(**place), line(**place)])
        paths = insert(host(), [line(**place), line('_2', **place)])
        half = len(paths) // 2
        assert [f'{path}_2' for path in paths[:half]] == paths[half:]


def test_a_network_without_stages_has_no_positions():
    with pytest.raises(
        ValueError, match='position needs stages named layer1, .*Sequential has none. .* at'
    ):
        insert(nn.Sequential(nn.Conv2d(3, 3, 1)), [line(position='after_add')])


@pytest.mark.parametrize(
    'plugins', [['mmattn.SE'], [None], [dict(cfg=SE_, position='after_conv9')]]
)
def test_a_backbones_plugin_that_cannot_be_understood_says_so(plugins):
    with pytest.raises(ValueError, match=r'plugins\[0\]'):
        network(
            'faster_rcnn_r18_bccd.py', 'mmattn.FasterRCNN', dict(type='ResNet', plugins=plugins)
        )


class Broken(nn.Module):
    """Two blocks, each of them a graph of its own for torch.compile."""

    def __init__(self):
        super().__init__()
        self.units = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(3)
        )

    def forward(self, x):
        for unit in self.units:
            torch._dynamo.graph_break()
            x = unit(x)
        return x


@pytest.mark.parametrize('at', ['units.1.0', 'units.2.1'])
def test_compiled_code_of_a_sibling_without_plugins_is_not_taken(at):
    model = randomise(Broken()).eval()
    insert(model, [line(at=at)])
    x = torch.randn(1, 4, 5, 7)
    for network in model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        torch._dynamo.reset()
        assert torch.equal(torch.compile(network, backend='eager')(x), model(x))
        host = network.get_submodule(at)
        assert host.forward.__self__ is host  # not of the network that was copied
