"""Names of blocks: those of other registries, attributes of a network, and a failed insertion."""

import copy

import pytest
import torch
from mmdet.models import RetinaNet as StockRetinaNet
from mmdet.registry import MODELS as DET_MODELS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope, init_default_scope
from mmseg.registry import MODELS as SEG_MODELS
from torch import nn

from mmattn.blocks import SE
from mmattn.config.check import check_config
from mmattn.config.load import load_config
from mmattn.engine.network import build_network
from mmattn.errors import UsageError
from mmattn.plugins import insert, named_plugins
from tests.config.test_config import others

SE_AFTER = dict(cfg=dict(type='SE', reduction=2), at='blocks.*')


class Gate(nn.Module):
    """As timm's blocks: an attention that may be there, and is used if it is."""

    def __init__(self, **attributes) -> None:
        super().__init__()
        self.conv1, self.out_channels = nn.Conv2d(4, 4, 1), 4
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        x = self.conv1(x)
        se = self.se if isinstance(getattr(self, 'se', None), nn.Module) else None
        return x if se is None else se(x)


class Network(nn.Module):
    def __init__(self, **attributes) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Gate(**attributes), Gate(**attributes))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Registered(Gate):
    """The slot is one of modules, and empty."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module('se', None)


@pytest.mark.parametrize('attributes', [dict(se=None), dict(se=True), dict(se=None, se_2=None)])
def test_an_attribute_that_is_no_module_is_left_alone_and_the_block_runs_once(attributes):
    model = Network(**attributes)
    before = list(model.state_dict())
    x = torch.randn(2, 4, 5, 3)
    plain = copy.deepcopy(model)
    name = 'se_3' if 'se_2' in attributes else 'se_2'
    paths = insert(model, [SE_AFTER])
    assert paths == [f'blocks.0.{name}', f'blocks.1.{name}']
    assert model.blocks[0].se is attributes['se']
    assert [key for key in model.state_dict() if '.se' not in key] == before
    expected = x
    for block, (_, se) in zip(plain.blocks, named_plugins(model)):
        expected = se(block(expected))
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(ValueError, match=f"blocks.0 has a {name} already. .*postfix='_2'"):
        insert(model, [SE_AFTER])
    again = insert(model, [dict(SE_AFTER, cfg=dict(SE_AFTER['cfg'], postfix='_own'))])
    assert again == ['blocks.0.se_own', 'blocks.1.se_own']  # what the sentence says helps


def test_an_empty_slot_of_modules_stays_empty():
    model = nn.Sequential()
    model.blocks = nn.Sequential(Registered())
    assert insert(model, [SE_AFTER]) == ['blocks.0.se_2'] and model.blocks[0].se is None


def test_a_module_of_the_name_in_use_is_still_refused():
    with pytest.raises(ValueError, match='blocks.0 has a se already'):
        insert(Network(se=SE(4, reduction=2)), [SE_AFTER])


def test_what_failed_half_way_leaves_no_trace():
    model = Network()
    model.blocks[1].se = SE(4, reduction=2)  # where it fails, after the first block
    x = torch.randn(2, 4, 5, 3)
    before, expected = list(model.state_dict()), model(x)
    second = dict(cfg=dict(type='SE', reduction=2), at='blocks.0.conv1')
    replaced = dict(cfg=dict(type='DCNv2'), replace='blocks.0.conv1')
    plugins = [second, SE_AFTER]
    for plugin in plugins, [*plugins, replaced]:
        modules, hooks = (
            dict(model.named_modules()),
            [len(m._forward_hooks) for m in model.modules()],
        )
        with pytest.raises(ValueError, match='already'):
            insert(model, plugin)
        assert list(model.state_dict()) == before and torch.equal(model(x), expected)
        assert dict(model.named_modules()) == modules
        assert [len(m._forward_hooks) for m in model.modules()] == hooks
    del model.blocks[1].se
    assert len(insert(model, plugins)) == 3


class _Tiny(nn.Module):
    _abbr_ = 'tiny_gate'

    def __init__(self, in_channels: int, factor: float = 2.0) -> None:
        super().__init__()
        self.in_channels, self.factor = in_channels, factor

    def forward(self, x):
        return x * self.factor


@pytest.fixture(params=['mmdet', 'mmseg', 'mmengine'])
def tiny(request):
    """A block that is registered in one of the registries, under a name of that."""
    registry = dict(mmdet=DET_MODELS, mmseg=SEG_MODELS, mmengine=ROOT_MODELS)[request.param]
    registry.register_module('TinyGate', module=_Tiny, force=True)
    yield request.param
    registry.module_dict.pop('TinyGate')


def own(tmp_path, text: str):
    base = others('mmdet retinanet/retinanet_r50_fpn_1x_coco.py')
    (tmp_path / 'a.py').write_text(f"_base_ = '{base}'\n{text}\n")
    return tmp_path / 'a.py'


@pytest.mark.parametrize('where', ['plugins', 'backbone.plugins'])
def test_a_block_of_another_registry_is_found(where, tiny, tmp_path):
    kind = 'mmseg.TinyGate' if tiny == 'mmseg' else 'TinyGate'  # as any type of that config
    plugin = dict(cfg=dict(type=kind), position='after_conv3')
    model = dict(plugins=[plugin]) if where == 'plugins' else dict(backbone=dict(plugins=[plugin]))
    path = own(tmp_path, f"model = dict(type='mmattn.RetinaNet', **{model})")
    network, _ = build_network(path)
    assert [type(block) for _, block in named_plugins(network)] == [_Tiny] * 16
    assert next(iter(dict(named_plugins(network)))) == 'backbone.layer1.0.tiny_gate'


def test_a_network_of_the_package_itself_finds_its_blocks(tmp_path):
    DET_MODELS.register_module('TinyGate', module=_Tiny, force=True)
    try:
        cfg = Config.fromfile(others('mmdet retinanet/retinanet_r50_fpn_1x_coco.py'))
        cfg.model.backbone.init_cfg = None
        init_default_scope('mmdet')
        network = DET_MODELS.build(cfg.model)
        DefaultScope._instance_dict.clear()  # as in a script
        assert type(network) is StockRetinaNet
        plugin = dict(
            cfg=dict(type='TinyGate'), position='after_add', stages=(True, False, False, False)
        )
        assert len(insert(network, [plugin])) == 3
    finally:
        DET_MODELS.module_dict.pop('TinyGate')


def test_a_block_of_no_registry_names_the_nearest_that_then_works(tmp_path):
    SEG_MODELS.register_module('SegGate', module=_Tiny, force=True)
    try:
        for kind in 'SegGate', 'SegGat':
            plugin = dict(cfg=dict(type=kind), position='after_conv3')
            path = own(tmp_path, f"model = dict(type='mmattn.RetinaNet', plugins=[{plugin}])")
            with pytest.raises(UsageError, match=f"'{kind}' is not registered") as said:
                build_network(path)
            if kind == 'SegGate':
                assert str(said.value).endswith('Did you mean mmseg.SegGate?')
        plugin['cfg']['type'] = 'mmseg.SegGate'
        path = own(tmp_path, f"model = dict(type='mmattn.RetinaNet', plugins=[{plugin}])")
        assert len(list(named_plugins(build_network(path)[0]))) == 16
        with pytest.raises(
            ValueError, match=r'no such type is registered. Did you mean mmseg.SegGate\?$'
        ):
            insert(Network(), [dict(cfg=dict(type='SegGate'), at='blocks.*')])
    finally:
        SEG_MODELS.module_dict.pop('SegGate')


def test_cbam_without_its_scope_works_in_our_networks_and_is_named_elsewhere(tmp_path):
    plugin = dict(cfg=dict(type='CBAM'), position='after_conv3')
    path = own(tmp_path, f"model = dict(type='mmattn.RetinaNet', plugins=[{plugin}])")
    assert len(list(named_plugins(build_network(path)[0]))) == 16
    path = own(tmp_path, f'model = dict(backbone=dict(plugins=[{plugin}]))')
    with pytest.raises(UsageError, match="'CBAM' is not registered. Did you mean mmattn.CBAM?"):
        check_config(load_config(path))
    plugin['cfg']['type'] = 'mmattn.CBAM'
    check_config(load_config(own(tmp_path, f'model = dict(backbone=dict(plugins=[{plugin}]))')))


def test_basic_blocks_of_the_stock_network_say_which_network_takes_plugins(tmp_path):
    base = others('mmdet retinanet/retinanet_r18_fpn_1x_coco.py')
    plugin = dict(
        cfg=dict(type='mmattn.CBAM'), stages=(True, True, True, True), position='after_conv2'
    )
    text = f"_base_ = '{base}'\nmodel = dict(backbone=dict(init_cfg=None, plugins=[{plugin}]))\n"
    (tmp_path / 'a.py').write_text(text)
    with pytest.raises(UsageError, match="depth of 18. Write type='mmattn.RetinaNet', which does"):
        build_network(tmp_path / 'a.py')
    (tmp_path / 'a.py').write_text(
        text.replace('model = dict(', "model = dict(type='mmattn.RetinaNet', ")
    )
    assert len(list(named_plugins(build_network(tmp_path / 'a.py')[0]))) == 8  # the remedy helps
