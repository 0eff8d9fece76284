"""Stages by any name, the maps that modules return, and blocks in maps (N, H, W, C)."""

import copy
import io

import pytest
import torch
from torch import nn

import mmattn
from mmattn.plugins import named_plugins
from mmattn.plugins.observed_maps import layout_of
from mmattn.plugins.stages import find_stages
from tests.conftest import randomise

CBAM = dict(type='CBAM', reduction=2)
STAGE = dict(cfg=CBAM, position='after_stage')


class Unit(nn.Module):
    """A residual block that does not tell its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.mix(x).tanh()


class Last(nn.Module):
    """The same on (N, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x):
        return x + self.mix(self.norm(x)).tanh()


class Merge(nn.Module):
    """(N, H, W, C) -> (N, H / 2, W / 2, 2 C), with a view, which not every layout allows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(4 * channels, 2 * channels)

    def forward(self, x):
        n, h, w, c = x.shape
        x = x.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3)
        return self.reduce(x.reshape(n, h // 2, w // 2, 4 * c))


class Stage(nn.Module):
    def __init__(self, reduction: nn.Module, blocks: nn.Sequential) -> None:
        super().__init__()
        self.downsample, self.blocks = reduction, blocks

    def forward(self, x):
        return self.blocks(self.downsample(x))


class Backbone(nn.Module):
    """Stem and two stages, the parts under the names of a library, run in the order given."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.order = list(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for name in self.order:
            x = self._modules[name](x)
        return x


class ToLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1).contiguous()


def stem(channels=8):
    return nn.Sequential(nn.Conv2d(3, channels, 4, 4), nn.BatchNorm2d(channels))


def units(channels):
    return nn.Sequential(Unit(channels), Unit(channels))


def down():
    return nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 16, 2, 2))


def last(channels):
    return nn.Sequential(Last(channels), Last(channels))


def features():
    return nn.Sequential(stem(), units(8), down(), units(16))


def stages():
    return nn.Sequential(Stage(nn.Identity(), units(8)), Stage(down(), units(16)))


NETWORKS = {
    'layer': (
        dict(conv1=nn.Conv2d(3, 8, 4, 4), layer1=units(8), pool=nn.Conv2d(8, 16, 1), layer2=units(16)),
        ['layer1', 'layer2'],
    ),
    'features': (dict(features=features()), ['features.1', 'features.3']),
    'stages': (dict(stem=stem(), stages=stages()), ['stages.0', 'stages.1']),
    'stages_': (
        dict(stem=stem(), stages_0=Stage(nn.Identity(), units(8)), stages_1=Stage(down(), units(16))),
        ['stages_0', 'stages_1'],
    ),
    'backbone': (
        dict(
            neck=nn.ModuleDict(dict(layer1=units(3), layer2=units(3))),
            backbone=Backbone(dict(features=features())),
        ),
        ['backbone.features.1', 'backbone.features.3'],
    ),
    'last': (
        dict(
            embed=nn.Sequential(*stem(), ToLast()),
            layers=nn.Sequential(Stage(nn.Identity(), last(8)), Stage(Merge(8), last(16))),
        ),
        ['layers.0', 'layers.1'],
    ),
    'last features': (
        dict(features=nn.Sequential(nn.Sequential(*stem(), ToLast()), last(8), Merge(8), last(16))),
        ['features.1', 'features.3'],
    ),
}  # fmt: skip


def network(name):
    parts = {key: part for key, part in NETWORKS[name][0].items() if key != 'neck'}
    model = Backbone(copy.deepcopy(parts))
    if 'neck' in NETWORKS[name][0]:
        model.neck = copy.deepcopy(NETWORKS[name][0]['neck'])
    return randomise(model).eval()


@pytest.mark.parametrize('name', NETWORKS)
def test_stages_are_found_with_the_channels_of_their_maps(name):
    model = network(name)
    assert find_stages(model) == NETWORKS[name][1]
    paths = mmattn.insert(model, [STAGE])
    assert paths == [f'{path}.cbam' for path in NETWORKS[name][1]]
    blocks = dict(named_plugins(model)).values()
    assert [block.in_channels for block in blocks] == [8, 16]
    layout = 'NHWC' if 'last' in name else 'NCHW'
    assert [block.plugin.layout for block in blocks] == [layout] * 2
    assert find_stages(model) == NETWORKS[name][1]  # blocks do not count
    assert model(torch.randn(1, 3, 32, 48)).isfinite().all()


@pytest.mark.parametrize('name', ['stages', 'features', 'last', 'last features'])
def test_blocks_of_a_stage_are_counted(name):
    model = network(name)
    plugin = dict(cfg=CBAM, position='after_add', blocks=(-1,), stages=(False, True))
    inside = '' if 'features' in name else '.blocks'
    assert mmattn.insert(model, [plugin]) == [f'{NETWORKS[name][1][1]}{inside}.1.cbam']


@pytest.mark.parametrize('name', ['last', 'last features'])
def test_in_nhwc_it_is_the_block_between_two_permutes(name):
    plain, model = network(name), network(name)
    model.load_state_dict(plain.state_dict())
    mmattn.insert(model, [STAGE])
    randomise(model).load_state_dict(plain.state_dict(), strict=False)
    blocks = [block for _, block in named_plugins(model)]

    def by_hand(number):
        def hook(module, inputs, y):
            return blocks[number].forward(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()

        return hook

    for number, path in enumerate(NETWORKS[name][1]):
        plain.get_submodule(path).register_forward_hook(by_hand(number))
    x = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)
    assert not torch.allclose(model(x), network(name)(x), atol=1e-2)


class Doubled(nn.Module):
    """Returns another memory format than it gets."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()

    def forward(self, x):
        assert x.shape[1] in (8, 16)
        return 2 * x.contiguous()


def test_in_nhwc_the_network_gets_back_what_it_can_view():
    model, x = network('last'), torch.randn(2, 3, 32, 48)
    mmattn.insert(model, [dict(cfg=dict(type=Doubled), position='after_stage')])
    seen = []
    model.layers[0].register_forward_hook(lambda module, inputs, y: seen.append(y))
    model(x)
    assert seen[0].is_contiguous() and seen[0].view(2, -1).shape == (2, 8 * 12 * 8)


def test_in_nhwc_it_is_copied_saved_reported_and_recorded():
    model, x = network('last features'), torch.randn(2, 3, 32, 48)
    mmattn.insert(model, [dict(STAGE, cfg=dict(CBAM, init='identity'))])
    found = mmattn.report(model, (32, 48))
    assert [row.maps for row in found.rows] == [[(1, 8, 8, 12)], [(1, 16, 4, 6)]]
    assert all(row.identity for row in found.rows)
    randomise(model)
    with mmattn.record(model) as maps:
        expected = model(x)
    assert maps['features.1.cbam']['spatial'][0].shape == (2, 1, 8, 12)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in copy.deepcopy(model), torch.load(file, weights_only=False):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize('layout', ['NCHW', 'NHWC'])
def test_a_layout_that_is_written_counts(layout):
    model = Backbone(dict(act=nn.ReLU()))  # which runs on anything
    cfg = dict(type='SE', reduction=2, in_channels=6)
    with pytest.raises(ValueError, match=r"layout='NCWH', allowed are NCHW and NHWC"):
        mmattn.insert(model, [dict(cfg=cfg, at='act', layout='NCWH')])
    (path,) = mmattn.insert(model, [dict(cfg=cfg, at='act', layout=layout)])
    block = randomise(model).get_submodule(path)
    x = torch.randn(2, 6, 6, 6).relu()
    found = block.forward(x if layout == 'NCHW' else x.permute(0, 3, 1, 2))
    torch.testing.assert_close(model(x), found if layout == 'NCHW' else found.permute(0, 2, 3, 1))


def test_a_layout_of_a_replacement_is_refused():
    cfg = dict(type='SKConv2d', init='identity')
    with pytest.raises(ValueError, match='layout goes with position and at, not with replace'):
        mmattn.insert(network('features'), [dict(cfg=cfg, replace='features.2.1', layout='NHWC')])


@pytest.mark.parametrize(
    'shape, size, layout',
    [
        ((1, 64, 56, 88), (224, 352), 'NCHW'),
        ((1, 56, 88, 64), (224, 352), 'NHWC'),
        ((1, 56, 88, 138), (224, 352), 'NHWC'),
        ((1, 36, 56, 88), (224, 352), 'NCHW'),
        ((1, 512, 4, 6), (224, 352), 'NCHW'),
        ((1, 7, 7, 768), (224, 224), 'NHWC'),
        ((1, 56, 56, 56), (224, 224), '?'),
        ((1, 512, 1, 1), (224, 352), 'NCHW'),
        ((1, 49, 768), (224, 224), ''),
        ((4, 49, 3, 32), (224, 224), ''),
    ],
)
def test_the_layout_of_a_shape(shape, size, layout):
    assert layout_of(shape, size) == layout


# ---- what cannot be placed ----
class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class Several(nn.Module):
    def forward(self, x):
        return [x, x]


@pytest.mark.parametrize(
    'module, message',
    [
        (Tokens(), r'end \(Tokens\) returns a tensor \(1, 4928, 8\), not a map'),
        (Several(), r'end \(Several\) returns a list, not a map .* Name a module that returns one'),
    ],
)
def test_what_is_no_map_is_refused(module, message):
    model = Backbone(dict(stem=stem(), end=module))
    with pytest.raises(ValueError, match=message):
        mmattn.insert(model, [dict(cfg=CBAM, at='end')])
    assert not list(named_plugins(model))


class Loop(nn.Module):
    """timm's RegStage runs its children in this way."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.b1, self.b2 = Unit(channels), Unit(channels)

    def forward(self, x):
        for block in self.children():
            x = block(x)
        return x


class DenseBlock(nn.ModuleDict):
    """torchvision's runs its members in this way."""

    def forward(self, x):
        for _, layer in self.items():
            x = torch.cat([x, layer(x)], 1)
        return x


@pytest.mark.parametrize('stage', [Loop(8), DenseBlock(dict(layer1=Unit(8)))])
def test_a_stage_that_would_run_the_block_as_one_of_its_children_is_refused(stage):
    model = Backbone(dict(stem=stem(), s1=stage))
    with pytest.raises(ValueError, match=r's1 \(\w+\) runs all its children, .* with at'):
        mmattn.insert(model, [dict(cfg=CBAM, at='s1')])
    assert len(mmattn.insert(model, [dict(cfg=CBAM, at='s1.*')])) >= 1


def test_without_stages_the_error_names_the_last_module_of_each_size():
    flat = nn.Sequential(stem(), Unit(8), Unit(8), down(), Unit(16))
    model = Backbone(dict(features=flat))
    with pytest.raises(ValueError, match=r"at='features.2', 'features.4'\.$"):
        mmattn.insert(model, [STAGE])
    assert len(mmattn.insert(model, [dict(cfg=CBAM, at=f'features.{n}') for n in (2, 4)][:1])) == 1


def test_parallel_branches_are_no_stages():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch1, self.branch2, self.out = units(8), units(8), nn.Conv2d(8, 8, 41)

        def forward(self, x):
            return self.branch1(x) + self.branch2(x)

    with pytest.raises(ValueError, match='position needs stages'):
        mmattn.insert(Backbone(dict(stem=stem(), mixed=Branches())), [STAGE])


def test_the_network_may_run_only_at_one_size():
    class Fixed(Unit):
        img_size = (96, 96)

        def forward(self, x):
            if x.shape[2:] != (24, 24):
                raise ValueError('only 96x96')
            return super().forward(x)

    model = Backbone(dict(stem=stem(), block=Fixed(8)))
    mmattn.insert(model, [dict(cfg=CBAM, at='block')])
    assert model.block.cbam.in_channels == 8


class Square(Last):
    """Takes 32x32 only, so that 8 channels of 8x8 may be of either layout."""

    img_size = 32

    def forward(self, x):
        if x.shape[1] != x.shape[2]:
            raise ValueError('only 32x32')
        return super().forward(x)


def test_a_shape_that_fits_both_layouts_is_that_of_its_class_or_asked_for():
    embed = nn.Sequential(*stem(), ToLast())
    stages = nn.Sequential(nn.Sequential(Square(8)), Merge(8), nn.Sequential(Square(16)))
    model = Backbone(dict(embed=embed, layers=stages))
    mmattn.insert(model, [STAGE])
    assert [block.plugin.layout for _, block in named_plugins(model)] == ['NHWC', 'NHWC']
    model = Backbone(dict(embed=embed, block=Square(8)))
    with pytest.raises(ValueError, match=r"block returns a map \(1, 8, 8, 8\), .* layout='NCHW'"):
        mmattn.insert(model, [dict(cfg=CBAM, at='block')])
    mmattn.insert(model, [dict(cfg=CBAM, at='block', layout='NHWC')])
    assert model.block.cbam.plugin.layout == 'NHWC' and model.block.cbam.in_channels == 8


def test_a_module_that_runs_with_different_channels_is_asked_for():
    act = nn.ReLU()
    model = Backbone(dict(stem=stem(), act=act, down=down(), again=act))
    with pytest.raises(ValueError, match=r'out of act \(ReLU\) is unknown. Write in_channels'):
        mmattn.insert(model, [dict(cfg=CBAM, at='act')])


def test_the_dry_runs_leave_nothing_in_the_network():
    class Caching(Unit):
        grid = None

        def forward(self, x):
            if self.grid is None:
                self.grid = x.new_ones(1, 1, 1, 1)
                self.seen = list(x.shape)
            return super().forward(x * self.grid)

    model = Backbone(dict(stem=stem(), block=Caching(8)))
    model.train()
    model.stem.eval()
    modes = [module.training for module in model.modules()]
    mmattn.insert(model, [dict(cfg=CBAM, at='block')])
    mmattn.report(model, (64, 64))
    assert model.block.grid is None and not hasattr(model.block, 'seen')
    assert [m.training for n, m in model.named_modules() if 'cbam' not in n] == modes
    assert model(torch.randn(2, 3, 64, 64)).isfinite().all()
