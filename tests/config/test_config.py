import copy
import pickle
from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from mmattn.benchmarks.overhead import loss
from mmattn.blocks import SE, SimAM
from mmattn.config.check import check_config
from mmattn.config.index import find_config, list_models
from mmattn.config.leaves import replace_type
from mmattn.config.load import load_config, parse_options
from mmattn.engine.build import config_errors
from mmattn.engine.network import build_network
from mmattn.errors import UsageError
from mmattn.plugins import insert, report
from mmattn.plugins.inserter import PLUGIN_KEYS
from tests.conftest import ROOT

CONFIG = ROOT / 'configs' / 'ccnet_r18_street.py'


def checked(options=(), path=CONFIG):
    options = parse_options(list(options))
    cfg = load_config(path, options)
    check_config(cfg, {key.split('.')[0] for key in options})
    return cfg


@pytest.mark.parametrize(
    'path', [find_config(name) for name in list_models()], ids=lambda p: p.stem
)
def test_every_config_is_read_to_the_last_key(path):
    checked(path=path)


@pytest.mark.parametrize(
    'option, message',
    [
        (
            'optim_wrapper.optimizer.lrr=1',
            'unknown config key optim_wrapper.optimizer.lrr: AdamW .* mean lr?',
        ),
        (
            'model.decode_head.recurence=1',
            'mmattn.CCHead has no recurence. Did you mean recurrence?',
        ),
        (
            'model.decode_head.type=mmattn.CChead',
            "'mmattn.CChead' is not registered. Did you mean mmattn.CCHead",
        ),
        (
            'train_dataloader.batchsize=1',
            'train_dataloader has no batchsize. Did you mean batch_size?',
        ),
        (
            'train_dataloader.dataset.data_rot=x',
            'CityscapesDataset has no data_rot. Did you mean data_root?',
        ),
        (
            'train_dataloader.dataset.pipeline.3.cropsize=1',
            'RandomCrop has no cropsize. Did you mean crop_size',
        ),
        ('model.backbone.norm_cfg.epps=1', 'has no epps. Did you mean eps?'),
        (
            'val_evaluator.iou_metric=mIoU',
            'mmattn.IoUMetric has no iou_metric. Did you mean iou_metrics?',
        ),
        ('randomness.sed=1', 'randomness has no sed. Did you mean seed?'),
        (
            'model.decode_head.loss_decode.loss_weigt=1',
            'CrossEntropyLoss has no loss_weigt. Did you mean loss_weight?',
        ),
        ('model.test_cfg.strid=3', 'has no strid. Did you mean stride?'),
        ('trian_cfg.max_iters=3', 'trian_cfg: nothing uses it. Did you mean train_cfg?'),
        ('crop_size=3', 'crop_size has no effect: it is a variable of the file'),
        ('data_root=elsewhere', 'data_root has no effect: it is a variable of the file'),
        ('default_hooks.checkpoint.save_bst=mIoU', 'has no save_bst. Did you mean save_best?'),
        ('optim_wrapper.paramwise_cfg.norm_decay=0', 'Did you mean norm_decay_mult?'),
        (
            'optim_wrapper.paramwise_cfg.custom_keys.decode_head.lr_mul=10',
            r"custom_keys\['decode_head'\].lr_mul: nothing uses it. Did you mean lr_mult?",
        ),
        (
            'optim_wrapper.constructor=LearningRateDecayOptimizerConstrutor',
            'is not registered. Did you mean LearningRateDecayOptimizerConstructor?',
        ),
        ('optim_wrapper.paramwise=1', 'OptimWrapper has no paramwise'),
        ('param_scheduler.1.powr=2', 'PolyLR has no powr. Did you mean power?'),
    ],
)
def test_an_unused_key_is_rejected(option, message):
    with pytest.raises(UsageError, match=message):
        checked([option])


def test_groups_of_parameters_may_have_settings_of_their_own():
    groups = 'optim_wrapper.paramwise_cfg.'
    checked([groups + 'norm_decay_mult=0', groups + 'custom_keys.decode_head.lr_mult=10'])
    layers = 'optim_wrapper.constructor=LearningRateDecayOptimizerConstructor'
    checked([layers, groups + 'num_layers=12', groups + 'decay_rate=0.9'])


def test_every_key_of_a_plugin_is_known():
    values = dict(stages=(True, False, True, True), blocks=[0], position='after_conv2')
    values |= dict(learn=True, layout='NCHW', memory='keep')
    places = dict(at='layer3.0', replace='layer4.0.conv2')
    assert {'cfg', *values, *places} == set(PLUGIN_KEYS)
    block = dict(type='mmattn.SE')
    plugins = [dict(cfg=block, **values), *(dict(cfg=block, **{k: v}) for k, v in places.items())]
    cfg = load_config(CONFIG)
    cfg.model.backbone.plugins = plugins
    check_config(cfg, set())
    cfg.model.backbone.plugins[0]['memry'] = 'keep'
    with pytest.raises(UsageError, match=r'plugins\[0\].memry: .* mean memory\?'):
        check_config(cfg, set())


@pytest.mark.parametrize(
    'path',
    [
        # keys that the class around takes out, or a function gets
        'mmdet dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
        'mmdet detr/detr_r50_8xb2-150e_coco.py',
        'mmdet queryinst/queryinst_r50_fpn_1x_coco.py',
        # keys of train_cfg and test_cfg that heads of their own read
        'mmdet guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py',
        'mmdet mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        'mmdet pisa/mask-rcnn_r50_fpn_pisa_1x_coco.py',
        'mmdet yolo/yolov3_d53_8xb8-ms-608-273e_coco.py',
        'mmseg point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
        # names of before, several bases, types and transforms of others
        'mmdet solov2/solov2_r101-dcn_fpn_ms-3x_coco.py',
        'mmdet vfnet/vfnet_r50_fpn_1x_coco.py',
        'mmdet fpg/retinanet_r50_fpg_crop640_50e_coco.py',
        'mmdet albu_example/mask-rcnn_r50_fpn_albu-1x_coco.py',
        # groups of parameters, blocks
        'mmseg segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
        'mmdet empirical_attention/faster-rcnn_r50-attn1111-dcn_fpn_1x_coco.py',
        'mmdet gcnet/mask-rcnn_r50-syncbn-gcb-r16-c3-c5_fpn_1x_coco.py',
        'mmdet libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py',
    ],
)
def test_what_others_configs_say_is_read(path):
    checked(path=others(path))


@pytest.mark.parametrize(
    'path',
    [
        'mmdet retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmdet dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
        'mmdet strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-50e_coco.py',
        'mmdet atss/atss_r50_fpn_1x_coco.py',
        'mmdet cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
        'mmdet detr/detr_r50_8xb2-150e_coco.py',
        'mmdet double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
        'mmdet panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
        'mmseg gcnet/gcnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'mmseg ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py',
    ],
)
def test_attention_goes_into_others_configs(path):
    model, cfg = build_network(others(path), attention='cbam')
    found = report(model, (128, 128))
    assert cfg.model.type == f'mmattn.{type(model).__name__}'
    assert [row.runs for row in found.rows if row.type == 'CBAM'] == [1] * (
        33 if '101' in path else 16
    )
    assert not [warning for warning in found.warnings if 'unknown' in warning]
    assert pickle.loads(pickle.dumps(type(model))) is type(model)


def test_attention_in_a_detector_of_another_family_learns():
    model, _ = build_network(others('mmdet atss/atss_r50_fpn_1x_coco.py'), attention='se')
    loss(model.train(), torch.rand(1, 3, 64, 64)).backward()
    blocks = [m for m in model.modules() if isinstance(m, SE)]
    learning = [all(p.grad is not None for p in block.parameters()) for block in blocks]
    assert learning == [True] * 16


def test_attention_with_one_parameter_or_none_trains_a_step():
    path = others('mmdet retinanet/retinanet_r50_fpn_1x_coco.py')
    model, cfg = build_network(path, attention='simam')
    insert(model, [dict(cfg=dict(type='mmattn.SimAM'), at='neck.fpn_convs.*.conv')])
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    optimizer.update_params(loss(model.train(), torch.rand(1, 3, 64, 64)))
    blocks = [m for m in model.modules() if isinstance(m, SimAM)]
    moved = [[p.item() != 0 for p in block.parameters()] for block in blocks]
    assert moved == 16 * [[True]] + 5 * [[]]


@pytest.mark.parametrize(
    'path, message',
    [
        ('mmdet rtmdet/rtmdet_tta.py', 'has no model.backbone'),
        ('mmdet reid/reid_r50_8xb32-6e_mot15train80_test-mot15val20.py', 'BaseReID is no detector'),
        ('mmdet ld/ld_r50-gflv1-r101_fpn_1x_coco.py', 'cannot be built: .Errno 2. No such file'),
    ],
)
def test_where_attention_cannot_go(path, message):
    with pytest.raises(UsageError, match=message):
        build_network(others(path), attention='se')


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory'),
        torch.distributed.DistNetworkError('the connection was closed'),
        OSError(28, 'No space left on device'),
    ],
)
def test_what_is_not_the_configs_fault_goes_on_as_it_is(error):
    with pytest.raises(type(error)) as raised, config_errors(load_config(CONFIG)):
        raise error
    assert raised.value is error


def test_recorded_attention_cannot_go_there_either():
    recorded = dict(names='se', plugins=[], backbone={})
    with pytest.raises(UsageError, match='has no model.backbone'):
        load_config(others('mmdet rtmdet/rtmdet_tta.py'), attention=recorded)


def others(path: str) -> Path:
    package, path = path.split()
    return Path(import_module(package).__file__).parent / '.mim' / 'configs' / path


def test_imports_of_a_file_are_its_own(tmp_path):
    text = CONFIG.read_text().replace("'_base_/", f"'{ROOT}/configs/_base_/")
    (tmp_path / 'a.py').write_text(text + "\ncustom_imports = dict(imports=['colorsys'])\n")
    assert checked(path=tmp_path / 'a.py').custom_imports.imports == ['colorsys']
    with pytest.raises(UsageError, match='custom_imports: nothing uses it'):
        checked(['custom_imports.imports=[json]'])


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(UsageError, match='Is mmpretrain installed, and imported by custom_imports'):
        checked(['model.backbone.type=mmpretrain.ResNet'])


def test_a_misspelled_variable_in_a_file(tmp_path):
    text = CONFIG.read_text().replace("'_base_/", f"'{ROOT}/configs/_base_/")
    (tmp_path / 'a.py').write_text(text + '\nmax_itres = 3\n')
    with pytest.raises(UsageError, match='max_itres: nothing uses it'):
        checked(path=tmp_path / 'a.py')


def test_a_parents_variable_set_again_is_refused(tmp_path):
    text = CONFIG.read_text().replace("'_base_/", f"'{ROOT}/configs/_base_/")
    (tmp_path / 'a.py').write_text(text + "\ndata_root = 'elsewhere'\n")
    with pytest.raises(UsageError, match='data_root has no effect'):
        checked(path=tmp_path / 'a.py')


def test_missing_file_names_the_nearest():
    with pytest.raises(UsageError, match='does not exist. Did you mean ccnet_r18_street?'):
        load_config(CONFIG.with_name('ccnet_r18_stret.py'))


def test_a_file_that_does_not_parse(tmp_path):
    (tmp_path / 'a.py').write_text('model = dict(\n')
    with pytest.raises(UsageError, match='a.py cannot be read'):
        load_config(tmp_path / 'a.py')


def test_options_are_never_executed(tmp_path):
    marker = tmp_path / 'marker'
    code = f'__import__("pathlib").Path("{marker}").touch()'
    assert checked([f'train_dataloader.dataset.data_root={code}'])
    assert not marker.exists()
    with pytest.raises(UsageError, match='--cfg-options lr: write key=value'):
        parse_options(['lr'])


def test_a_list_becomes_a_tuple_where_the_config_has_one():
    cfg = checked(
        ['train_dataloader.dataset.pipeline.3.crop_size=[64,96]', 'model.test_cfg.mode=whole']
    )
    assert cfg.train_dataloader.dataset.pipeline[3].crop_size == (64, 96)
    assert checked(['val_evaluator.iou_metrics=[mDice]']).val_evaluator.iou_metrics == ['mDice']


def test_replace_type_reaches_every_depth():
    cfg = load_config(CONFIG)
    assert replace_type(cfg.model, 'SyncBN', 'BN') == 3
    assert replace_type(cfg.model, 'SyncBN', 'BN') == 0
    assert cfg.model.decode_head.norm_cfg.type == 'BN'


def test_the_text_of_a_config_follows_its_changes():
    """It is formatted once for each content, and is that of mmengine."""
    from mmengine.config import Config

    cfg = load_config(CONFIG)
    plain = Config.fromfile(CONFIG)
    for change in {}, {'train_cfg.max_iters': 7}, {'model.decode_head.channels': 64}, {}:
        cfg.merge_from_dict(change)
        plain.merge_from_dict(change)
        assert cfg.pretty_text == plain.pretty_text
        assert copy.deepcopy(cfg).pretty_text == plain.pretty_text
    other = load_config(CONFIG)
    assert other.pretty_text != cfg.pretty_text
    cfg.train_cfg.max_iters = 9
    assert 'max_iters=9' in cfg.pretty_text
    assert pickle.loads(pickle.dumps(cfg)).to_dict() == cfg.to_dict()


def test_keys_of_a_block_are_its_own_arguments(monkeypatch):
    """A mixin without `__init__` does not count as a second base that might take them."""
    from mmattn import SE
    from mmattn.config import class_keys

    def takes_anything(self, *args, **kwargs):
        print(kwargs)

    monkeypatch.setattr(torch.nn.Module, '__init__', takes_anything)
    assert class_keys.arguments.__wrapped__(SE) == {'in_channels', 'reduction', 'bias', 'init'}
