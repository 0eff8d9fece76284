"""The report says where blocks are, what they cost and whether they learn, and changes nothing."""

import copy

import pytest
import torch
from mmdet.models import ResNet
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmattn import BAM, SE, SKConv2d, insert
from mmattn.config.leaves import replace_type
from mmattn.config.load import load_config
from mmattn.plugins import keep_trainable, named_plugins, report
from tests.conftest import ROOT, randomise

PLACEMENTS = ROOT / 'configs' / '_base_' / 'attention'
SIZE = (64, 96)
LEVELS = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]  # of a pyramid, for an image of that size
NARROW = dict(base_channels=8, stem_channels=8)


def se(**place):
    return dict(cfg=dict(type='mmattn.SE', reduction=4), **place)


def bam(**place):
    return dict(cfg=dict(type='mmattn.BAM', reduction=2), **place)


def se_macs(channels, reduction=4):
    return 2 * channels * (channels // reduction)


def se_parameters(channels, reduction=4):
    return se_macs(channels, reduction) + channels // reduction + channels


def detector(config, *plugins, **backbone):
    """A network of a config on ResNet-18 with plugins."""
    cfg = load_config(ROOT / 'configs' / config)
    replace_type(cfg.model, 'SyncBN', 'BN')
    cfg.model.backbone.update(backbone)
    if plugins:
        cfg.model.plugins = list(plugins)
    init_default_scope(cfg.default_scope)
    return MODELS.build(ConfigDict(cfg.model))


def faster(*plugins, **backbone):
    return detector('faster_rcnn_r18_bccd.py', *plugins, **backbone)


# -- rows -----------------------------------------------------------------------------------------


def test_a_block_of_a_plain_network_is_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), SE(8, reduction=2))
    found = report(model, (20, 30))
    (row,) = found.rows
    assert (row.path, row.type, row.place, row.channels) == ('1', 'SE', '', 8)
    assert row.parameters == 2 * 8 * 4 + 4 + 8
    assert (row.maps, row.runs, row.macs) == ([(1, 8, 10, 15)], 1, 2 * 8 * 4)
    assert found.macs == 8 * 3 * 9 * 10 * 15 + 2 * 8 * 4
    assert found.parameters == 8 * 27 + 8 + row.parameters
    assert (found.size, found.warnings) == ((20, 30), [])


@pytest.mark.parametrize('init', ['paper', 'identity'])
def test_a_block_without_parameters_is_a_row_of_zeros(init):
    model = nn.Sequential()
    model.conv = nn.Conv2d(3, 8, 1)
    insert(model, [dict(cfg=dict(type='mmattn.SimAM', init=init), at='conv')])
    found = report(model, (5, 6))
    (row,) = found.rows
    assert (row.path, row.channels, row.parameters) == ('conv.simam', 8, int(init == 'identity'))
    assert (row.macs, row.maps, row.frozen) == (0, [(1, 8, 5, 6)], False)
    assert row.identity == (init == 'identity') and not found.warnings
    assert f' {row.parameters} ' in str(found)


@pytest.mark.parametrize('learn', [True, False])
def test_a_block_without_parameters_cannot_be_frozen(learn):
    plugin = dict(cfg=dict(type='mmattn.SimAM'), at='backbone.layer*.*.conv2', learn=learn)
    found = report(faster(plugin, frozen_stages=2), SIZE)
    assert [(row.parameters, row.frozen) for row in found.rows] == [(0, False)] * 8
    assert not found.warnings


def test_matrix_products_are_counted():
    model = nn.Sequential()
    model.conv = nn.Conv2d(3, 8, 1)
    insert(model, [dict(cfg=dict(type='mmattn.NonLocal2d', reduction=2), at='conv')])
    (row,) = report(model, (5, 6)).rows
    assert row.path == 'conv.nonlocal_block'
    # three convolutions to 4 channels, one back, and pairs of 30 positions with 4 values twice
    assert row.macs == 4 * (8 * 4 * 30) + 2 * 30 * 30 * 4


def test_rows_say_path_and_place():
    model = ResNet(18, **NARROW)
    plugins = [
        se(position='after_conv1', blocks=(0,), stages=(True, False, False, False)),
        se(position='after_add', blocks=(1,), stages=(False, True, False, False)),
        se(position='after_stage', stages=(False, False, False, True)),
        se(at='layer3.0.bn2'),
    ]
    paths = insert(model, plugins)
    rows = {row.path: row for row in report(model, SIZE).rows}
    assert set(rows) == set(paths)
    wanted = {
        'layer1.0.se': ('before layer1.0.conv2', 8, (16, 24)),
        'layer2.1.se': ('after layer2.1', 16, (8, 12)),
        'layer4.se': ('after layer4', 64, (2, 3)),
        'layer3.0.bn2.se': ('after layer3.0.bn2', 32, (4, 6)),
    }
    for path, (place, channels, size) in wanted.items():
        row = rows[path]
        assert (row.place, row.channels, row.type) == (place, channels, 'SE')
        assert row.maps == [(1, channels, *size)]
        assert (row.runs, row.macs) == (1, se_macs(channels))
        assert row.parameters == se_parameters(channels)


def test_a_shared_block_is_one_row_with_all_its_runs():
    shared = SE(4, reduction=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.MaxPool2d(2), shared, shared)
    (row,) = report(model, (8, 12)).rows
    assert row.runs == 3
    assert row.maps == [(1, 4, 8, 12), (1, 4, 4, 6), (1, 4, 4, 6)]
    assert (row.macs, row.parameters) == (3 * 16, 16 + 2 + 4)


def test_a_plugin_behind_a_shared_module_runs_with_it():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.MaxPool2d(2), relu)
    cfg = dict(type='mmattn.SE', reduction=2, in_channels=4)
    insert(model, [dict(cfg=cfg, at='1')])
    found = report(model, (8, 12))
    assert (found.rows[0].runs, found.rows[0].macs) == (2, 2 * 16)
    assert '8x12 4x6 2 times' in str(found)


def test_a_block_inside_a_block_is_counted_once():
    model = nn.Sequential()
    model.conv = nn.Conv2d(3, 16, 1)
    insert(model, [dict(cfg=dict(type='mmattn.DualAttention'), at='conv')])
    found = report(model, (8, 8))
    own = sum(value.numel() for value in model.conv.dual_attention.parameters())
    whole = own + 3 * 16 + 16
    assert found.parameters == whole and found.rows[0].parameters == own
    assert f': {own:,} of {whole:,} parameters' in str(found)


@pytest.mark.parametrize('size', [(32, 32), (64, 96), (800, 1344)])
def test_maps_are_those_of_the_size_that_is_asked_for(size):
    model = faster(se(position='after_stage'))
    found = report(model, size)
    strides = 4, 8, 16, 32
    assert [row.maps for row in found.rows] == [
        [(1, 64 * 2**k, -(-size[0] // stride), -(-size[1] // stride))]
        for k, stride in enumerate(strides)
    ]
    assert found.size == size and f'one image of {size[1]}x{size[0]}' in str(found)


# -- detectors and segmentors ---------------------------------------------------------------------


def test_faster_rcnn_from_backbone_to_boxes():
    model = faster(
        se(position='before_add', stages=(False, False, False, True)),
        se(at='neck.fpn_convs.*'),
        se(at='rpn_head.rpn_conv'),
        se(at='roi_head.bbox_roi_extractor'),
    )
    found = report(model, SIZE)
    rows = {row.path: row for row in found.rows}
    assert len(rows) == 2 + 4 + 1 + 1 and found.warnings == []
    assert rows['backbone.layer4.1.se'].maps == [(1, 512, 2, 3)]
    for k, size in enumerate(LEVELS[:4]):
        row = rows[f'neck.fpn_convs.{k}.se']
        assert (row.maps, row.macs) == ([(1, 128, *size)], se_macs(128))
    row = rows['rpn_head.rpn_conv.se']
    assert row.maps == [(1, 128, *size) for size in LEVELS]
    assert (row.runs, row.macs) == (5, 5 * se_macs(128))
    row = rows['roi_head.bbox_roi_extractor.se']
    assert (row.maps, row.runs) == ([(1000, 128, 7, 7)], 1)
    assert row.macs == 1000 * se_macs(128)
    assert found.parameters == sum(value.numel() for value in model.parameters())


def test_mask_rcnn_has_its_mask_head():
    model = detector('mask_rcnn_r18_street.py', se(at='roi_head.mask_head.convs.*'))
    rows = report(model, SIZE).rows
    assert [row.path for row in rows] == [f'roi_head.mask_head.convs.{k}.se' for k in (0, 1)]
    for row in rows:
        assert (row.maps, row.macs) == ([(100, 64, 14, 14)], 100 * se_macs(64))


def test_retinanet_towers_run_on_every_level():
    plain = detector('retinanet_r18_bccd.py')
    towers = 'bbox_head.cls_convs.*', 'bbox_head.reg_convs.*'
    model = detector('retinanet_r18_bccd.py', *(se(at=pattern) for pattern in towers))
    found = report(model, SIZE)
    assert len(found.rows) == len(plain.bbox_head.cls_convs) + len(plain.bbox_head.reg_convs)
    channels = plain.bbox_head.feat_channels
    for row in found.rows:
        assert row.runs == len(row.maps) == 5 and row.macs == 5 * se_macs(channels)
        assert row.maps[0] == (1, channels, *LEVELS[1])  # the pyramid starts at stride 8
    added = len(found.rows) * 5 * se_macs(channels)
    assert found.macs == report(plain, SIZE).macs + added


def test_a_segmentors_own_block_is_listed():
    model = detector('ccnet_r18_street.py')
    (row,) = report(model, SIZE).rows
    assert (row.path, row.type, row.place) == ('decode_head.cca', 'CrissCrossAttention', '')
    assert (row.channels, row.runs, row.maps[0][:2]) == (128, 1, (1, 128))
    model.train()
    assert not report(model, SIZE).warnings


@pytest.mark.parametrize('kind, offsets', [('DCN', 18), ('DCNv2', 27)])
def test_deformable_convolutions_are_tried_and_counted(kind, offsets):
    pytest.importorskip('mmcv._ext', reason='mmcv has no compiled operators')
    dcn = dict(cfg=dict(type=kind, deform_groups=1), replace='backbone.layer4.1.conv2')
    plain, model = faster(), faster(dcn, se(at='backbone.layer4.1.conv2'))
    found = report(model, (96, 128))
    conv, behind = found.rows
    assert conv.place == 'instead of backbone.layer4.1.conv2' and conv.channels == 512
    assert conv.maps == [(1, 512, 3, 4)] and behind.maps == [(1, 512, 3, 4)]
    assert conv.identity is None
    extra = 9 * 512 * offsets * 12 + se_macs(512)
    assert conv.macs == 9 * 512 * 512 * 12 + extra
    assert found.macs == report(plain, (96, 128)).macs + extra
    conv = model.backbone.layer4[1].conv2
    assert conv.forward.__func__ is type(conv).forward


def test_a_network_of_double_precision_is_tried():
    found = report(faster(se(at='neck.fpn_convs.*')).double(), SIZE)
    assert found.macs and not found.warnings


# -- learning -------------------------------------------------------------------------------------


def test_frozen_blocks_and_norms_in_eval_are_named():
    model = faster(bam(position='after_stage'), frozen_stages=2, norm_eval=True)
    found = report(model, SIZE)
    assert [row.frozen for row in found.rows] == [True, True, False, False]
    assert all(row.norm_eval for row in found.rows)
    frozen, norm = found.warnings
    assert frozen.startswith('backbone.layer1.bam and 1 more cannot learn: frozen with the stage')
    assert 'learn=True' in frozen and 'backbone.frozen_stages' in frozen
    assert norm.startswith('backbone.layer1.bam and 3 more: ') and 'batch norms stay at' in norm
    assert 'norm_eval=False' in norm


def test_each_entry_of_the_list_has_its_own_warning():
    plugins = se(position='before_add'), bam(position='after_stage'), se(at='neck.fpn_convs.*')
    found = report(faster(*plugins, frozen_stages=1, norm_eval=True), SIZE)
    heads = [text.split(':')[0] for text in found.warnings]
    assert heads == [
        'backbone.layer1.0.se and 1 more cannot learn',
        'backbone.layer1.bam cannot learn',
        'backbone.layer1.bam and 3 more',
    ]


def test_of_other_networks_the_option_is_a_call():
    """`learn` is refused there, so it must not be the advice."""
    model = ResNet(18, frozen_stages=1, norm_eval=True, **NARROW)
    insert(model, [bam(position='after_stage', stages=(True, False, False, False))])
    found = report(model, SIZE)
    assert len(found.warnings) == 2
    assert all('Call mmattn.plugins.keep_trainable(model)' in text for text in found.warnings)
    assert not any('learn=True' in text for text in found.warnings)
    model.train()
    keep_trainable(model)
    ((_, block),) = named_plugins(model)
    assert all(p.requires_grad for p in block.parameters())
    assert all(m.training for m in block.modules())


@pytest.mark.parametrize('mode', [False, True])
def test_learning_plugins_have_no_warnings(mode):
    plugins = [bam(position='after_stage', learn=True), se(position='after_conv1', learn=True)]
    model = faster(*plugins, frozen_stages=4, norm_eval=True)
    model.train(mode)
    found = report(model, SIZE)
    assert found.warnings == [] and len(found.rows) == 12
    assert not any(row.frozen or row.norm_eval for row in found.rows)


def test_without_frozen_stages_nothing_is_wrong():
    found = report(faster(bam(position='after_stage'), frozen_stages=-1, norm_eval=False), SIZE)
    assert found.warnings == [] and not any(row.frozen or row.norm_eval for row in found.rows)


def test_a_block_that_never_runs_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model[0].spare = nn.Conv2d(4, 4, 1)
    insert(model, [se(at='0.spare'), se(at='0')])
    found = report(model, SIZE)
    idle = {row.path: row.runs for row in found.rows}
    assert idle == {'0.spare.se': 0, '0.se': 1}
    assert [text.split(':')[0] for text in found.warnings] == ['0.spare.se never runs']


# -- the identity ---------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['SE', 'CBAM', 'BAM', 'SGE', 'ShuffleAttention', 'SCSE'])
def test_whether_blocks_are_the_identity_now(kind):
    groups = dict(groups=4) if kind in ('SGE', 'ShuffleAttention') else {}
    for init in 'paper', 'identity':
        model = faster(
            dict(cfg=dict(type=f'mmattn.{kind}', init=init, **groups), position='after_stage')
        )
        assert [row.identity for row in report(model, SIZE).rows] == [init == 'identity'] * 4
        model.init_weights()
        assert [row.identity for row in report(model, SIZE).rows] == [init == 'identity'] * 4
        for _, block in named_plugins(model):
            randomise(block)
        assert [row.identity for row in report(model, SIZE).rows] == [False] * 4


def test_selective_kernels_are_the_convolution_that_they_replace_until_they_learn():
    model = ResNet(18, **NARROW)
    cfg = dict(type='mmattn.SKConv2d', init='identity')
    insert(model, [dict(cfg=cfg, replace='layer[34].1.conv2')])
    assert [row.identity for row in report(model, SIZE).rows] == [True, True]
    randomise(model.layer4[1].conv2.rho)
    assert [row.identity for row in report(model, SIZE).rows] == [True, False]


def test_selective_kernels_of_the_paper_are_no_convolution():
    model = ResNet(18, **NARROW)
    insert(model, [dict(cfg=dict(type='mmattn.SKConv2d', groups=4), replace='layer4.1.conv2')])
    assert [row.identity for row in report(model, SIZE).rows] == [False]


# -- nothing changes ------------------------------------------------------------------------------


def everything(model):
    """All that could be changed: modes, weights, what takes a gradient, hooks, attributes."""
    modules = {
        name: (m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
    values = {name: value.clone() for name, value in model.state_dict().items()}
    needs = {name: value.requires_grad for name, value in model.named_parameters()}
    grads = {name: value.grad is None for name, value in model.named_parameters()}
    return modules, values, needs, grads


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('learn', [False, True])
def test_nothing_in_the_network_changes(training, learn):
    model = faster(
        bam(position='after_stage', learn=learn),
        dict(cfg=dict(type='mmattn.SKConv2d', init='identity'), replace='backbone.layer4.*.conv2'),
        frozen_stages=1,
        norm_eval=True,
    )
    model.train(training)
    for k, module in enumerate(model.modules()):  # as nobody's train() would leave them
        module.training = bool(k % 3)
    for k, value in enumerate(model.parameters()):
        value.requires_grad = bool(k % 2)
    x, twin = torch.randn(2, 3, *SIZE), copy.deepcopy(model)
    before, state = everything(model), torch.get_rng_state()
    report(model, SIZE)
    after = everything(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert after[0] == before[0] and after[2:] == before[2:]
    assert list(after[1]) == list(before[1])
    assert all(torch.equal(after[1][key], value) for key, value in before[1].items())
    for found, wanted in zip(model.extract_feat(x), twin.extract_feat(x), strict=True):
        assert torch.equal(found, wanted)


def test_nothing_changes_when_the_trial_fails():
    model = faster(dict(cfg=dict(type='mmattn.SE', in_channels=64), at='neck.fpn_convs.0'))
    before = everything(model.train())
    with pytest.raises(ValueError):
        report(model, SIZE)
    after = everything(model)
    assert after[0] == before[0] and after[2:] == before[2:]


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_block_that_cannot_take_its_map_is_named_with_place_and_map():
    model = faster(dict(cfg=dict(type='mmattn.SE', in_channels=64), at='neck.fpn_convs.1'))
    message = r'neck.fpn_convs.1.se after neck.fpn_convs.1 gets a map \(1, 128, 8, 12\) that it'
    with pytest.raises(ValueError, match=message + r' cannot take: SE: input .*allowed \(N, 64'):
        report(model, SIZE)


@pytest.mark.parametrize('name', sorted(path.stem for path in PLACEMENTS.glob('*.py')))
def test_every_placement_is_tried(name):
    """No block of ours looks at values."""
    cfg = load_config(ROOT / 'configs/faster_rcnn_r50_coco.py', attention=name)
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    found = report(MODELS.build(cfg.model), (256, 256))
    assert found.macs and found.rows
    assert all(row.runs == 1 and row.maps for row in found.rows if row.place)
    if cfg.model.get('plugins'):  # which learn; a backbone is frozen and in eval as its config says
        assert found.warnings == []


@pytest.mark.parametrize('name', sorted(path.stem for path in PLACEMENTS.glob('*.py')))
def test_every_placement_fits_narrow_stages_and_basic_blocks(name):
    cfg = load_config(ROOT / 'configs/retinanet_r18_bccd.py', attention=name)
    init_default_scope('mmdet')
    assert report(MODELS.build(cfg.model), (96, 128)).rows


class Broken(nn.Module):
    """A network that does not run on an image of its own."""

    def __init__(self):
        super().__init__()
        self.se = SE(4, reduction=2)

    def forward(self, x):
        raise RuntimeError('needs a caption\nand more')


class Choosy(Broken):
    """A network that looks at values, of which a trial has none."""

    def forward(self, x):
        x = x[:, :1].expand(-1, 4, -1, -1)
        return self.se(x) if x.mean() > 0 else x


@pytest.mark.parametrize('network', [Broken, Choosy])
def test_a_network_that_cannot_be_tried_has_no_macs_and_a_warning(network):
    model = network()
    found = report(model, SIZE)
    (row,) = found.rows
    assert (row.macs, row.runs, row.maps, found.macs) == (None, None, [], None)
    assert row.parameters == 16 + 6 and row.identity is False and row.frozen is False
    (text,) = found.warnings
    assert text.startswith('maps and MACs are unknown: ') and '\n' not in text
    if network is Broken:
        assert text.endswith('needs a caption')
    assert 'GMACs' not in str(found) and f'warning: {text}' in str(found)


class Looking(nn.Module):
    """A block that looks at values; real maps it takes."""

    def __init__(self, in_channels):
        super().__init__()
        self.in_channels = in_channels
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x if x.max() > 0 else x


def test_a_block_that_looks_at_values_is_not_accused_of_refusing_its_map():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    insert(model, [dict(cfg=dict(type=Looking), at='0')])
    assert model(torch.randn(1, 3, 5, 5)).shape == (1, 4, 5, 5)
    found = report(model, SIZE)
    assert found.macs is None and found.warnings[0].startswith('maps and MACs are unknown: ')


# -- in words -------------------------------------------------------------------------------------


def test_without_blocks_there_is_one_sentence():
    found = report(nn.Sequential(nn.Conv2d(3, 4, 1)), SIZE)
    assert str(found) == 'no attention blocks' and found.rows == []
    assert found.macs == 12 * 64 * 96


def test_the_table_has_what_the_rows_have():
    model = faster(
        bam(position='after_stage', stages=(True, False, False, False)),
        se(at='rpn_head.rpn_conv'),
        frozen_stages=1,
        norm_eval=True,
    )
    found = report(model, SIZE)
    head, *rows, total, first, second = str(found).splitlines()
    columns = ['block', 'where', 'channels', 'map', 'parameters', 'MACs', 'frozen', 'norm in eval']
    assert head.split('  ')[0] == 'block' and head.endswith('identity now')
    assert [head.index(name) for name in columns] == sorted(head.index(name) for name in columns)
    cells = [[c.strip() for c in row.split('  ') if c.strip()] for row in rows]
    bam_row, se_row = found.rows
    assert cells[0][:4] == ['backbone.layer1.bam', 'BAM after backbone.layer1', '64', '16x24']
    assert cells[0][4:] == [
        f'{bam_row.parameters:,}',
        f'{bam_row.macs / 1e6:,.1f} M',
        'yes',
        'yes',
        'no',
    ]
    assert cells[1][:3] == ['rpn_head.rpn_conv.se', 'SE after rpn_head.rpn_conv', '128']
    assert set(cells[1][3].split()) == {'16x24', '8x12', '4x6', '2x3', '1x2', '5', 'times'}
    assert cells[1][6:] == ['no', 'no', 'no']
    both = bam_row.parameters + se_row.parameters
    assert total.startswith(f'2 blocks: {both:,} of {found.parameters:,} parameters, ')
    assert total.endswith(f'{found.macs / 1e9:,.1f} GMACs, for one image of 96x64')
    assert [first, second] == [f'warning: {text}' for text in found.warnings]


def test_maps_are_listed_from_large_to_small():
    shared, pool = SE(4, reduction=2), nn.MaxPool2d(2, 1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *[part for _ in range(7) for part in (shared, pool)])
    assert ' 9x8 8x7 7x6 6x5 5x4 4x3 3x2 7 times ' in str(report(model, (9, 8)))


def test_parameters_are_those_of_the_blocks():
    bam_, sk = BAM(16), SKConv2d(32)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), bam_, nn.Conv2d(16, 32, 1), sk)
    rows = report(model, SIZE).rows
    assert [row.parameters for row in rows] == [
        sum(value.numel() for value in block.parameters()) for block in (bam_, sk)
    ]
