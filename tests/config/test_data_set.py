"""`--data NAME` changes a config of any network, and refuses a set that it cannot learn from."""

from importlib import import_module
from pathlib import Path

import pytest

from mmattn.config.check import check_config
from mmattn.config.data_set import describe_data_set
from mmattn.config.index import list_models
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import load_config
from mmattn.config.names import config_names, is_data_set
from mmattn.datasets.build import build_dataset
from mmattn.datasets.importing import config_text
from mmattn.engine.run_config import class_counts
from mmattn.errors import UsageError
from tests.conftest import ROOT

CLASSES = ['cat', 'dog']
PALETTE = [(1, 2, 3), (4, 5, 6)]
COMMON = ('summary', CLASSES, PALETTE, ['train', 'val'], (640, 480))


@pytest.fixture(autouse=True)
def sets(tmp_path, monkeypatch):
    """Configs of sets of boxes, masks and label maps in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'configs'
    folder.mkdir()
    for name, masks in ('boxes', False), ('masks', True):
        (folder / f'{name}.py').write_text(
            config_text.detection_config(name, *COMMON, masks=masks), encoding='utf-8'
        )
    (folder / 'labels.py').write_text(
        config_text.segmentation_config('labels', *COMMON, suffixes=('.jpg', '.png')),
        encoding='utf-8',
    )
    return folder


def changed(config, data):
    """A config of ours, or of a package as 'mmdet yolox/NAME', with a data set; checked."""
    package, _, path = config.rpartition(' ')
    folder = ROOT / 'configs'
    if package:
        folder = Path(import_module(package).__file__).parent / '.mim' / 'configs'
    cfg = load_config(folder / f'{path}.py', data=data)
    check_config(cfg)
    return cfg


def test_a_detector_of_masks():
    cfg = changed('mask_rcnn_r50_coco', 'masks')
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/train.json'
    assert cfg.test_dataloader.dataset.ann_file == 'annotations/val.json'
    assert cfg.train_dataloader.batch_size == 2  # of the config, as its schedule is made for it
    assert cfg.train_dataloader.batch_sampler.type == 'AspectRatioBatchSampler'
    assert cfg.val_evaluator.metric == ['bbox', 'segm']
    assert describe_data_set(cfg) == [
        'data set masks: 2 classes (cat, dog)',
        'heads: model.roi_head.bbox_head.num_classes 80 -> 2, model.roi_head.mask_head.num_classes '
        '80 -> 2',
        'metrics: mmattn.CocoMetric (bbox, segm); pretrained weights that no longer fit are left out',
    ]


def test_a_detector_of_boxes_takes_masks_without_them():
    cfg = changed('retinanet_r50_coco', 'masks')
    assert cfg.model.bbox_head.num_classes == 2 and cfg.val_evaluator.metric == 'bbox'
    for loader in cfg.train_dataloader, cfg.val_dataloader:
        assert not any(step.get('with_mask') for step in loader.dataset.pipeline)


def test_a_segmentor():
    cfg = changed('ann_r50_ade20k', 'labels')
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 2
    assert cfg.model.data_preprocessor.size == (480, 512)
    assert cfg.train_dataloader.dataset.type == 'BaseSegDataset'
    assert 'reduce_zero_label' not in str(cfg.train_dataloader)
    slides = changed('ccnet_r101_cityscapes', 'labels').model.test_cfg
    assert slides.crop_size == (480, 512) and slides.stride == (320, 341)


def test_prepared_sets_and_attention():
    cfg = load_config(ROOT / 'configs/faster_rcnn_r50_coco.py', None, 'gc', 'bccd')
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    assert cfg.model.plugins and cfg.attention['names'] == 'gc' and cfg.data_set['name'] == 'bccd'
    camvid = changed('fcn_r18_street', 'camvid')
    assert camvid.model.decode_head.num_classes == 11
    assert camvid.train_dataloader.dataset.type == 'ConcatDataset'


@pytest.mark.parametrize(
    'config, data, text',
    [
        ('mask_rcnn_r50_coco', 'boxes', 'trains masks, and the data set has boxes alone'),
        ('retinanet_r50_coco', 'labels', 'is a detector, and the data set has label maps'),
        ('fcn_r18_street', 'masks', 'is a segmentor, and the data set has objects'),
        (
            'retinanet_r50_coco',
            'boxs',
            'no such data set. Did you mean boxes? There are: ade20k, bccd',
        ),
        ('retinanet_r50_coco', '../boxes', 'no such data set'),
    ],
)
def test_what_does_not_suit_is_refused(config, data, text):
    with pytest.raises(UsageError) as raised:
        changed(config, data)
    assert text in str(raised.value)


def test_a_mask_head_that_is_switched_off_needs_no_masks(sets):
    path, base = sets / 'own.py', ROOT / 'configs' / 'faster_rcnn_r50_coco.py'
    path.write_text(f'_base_ = {str(base)!r}\nmodel = dict(roi_head=dict(mask_head=None))\n')
    assert load_config(path, data='boxes').model.roi_head.bbox_head.num_classes == 2


def test_a_config_that_a_run_dumped_has_its_set(tmp_path):
    changed('retinanet_r50_coco', 'boxes').dump(tmp_path / 'run.py')
    assert load_config(tmp_path / 'run.py', data='boxes').model.bbox_head.num_classes == 2
    with pytest.raises(UsageError, match='has boxes already'):
        load_config(tmp_path / 'run.py', data='masks')


def test_recipes_of_mmdet_and_mmseg():
    yolox = changed('mmdet yolox/yolox_s_8xb8-300e_coco', 'boxes')
    mixed = yolox.train_dataloader.dataset
    assert mixed.type == 'MultiImageMixDataset' and mixed.dataset.data_root == 'data/boxes'
    assert [step.type for step in mixed.dataset.pipeline] == [
        'LoadImageFromFile',
        'LoadAnnotations',
    ]
    assert yolox.model.bbox_head.num_classes == 2
    cascade = changed('mmdet cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco', 'masks')
    assert [head.num_classes for head in cascade.model.roi_head.bbox_head] == [2, 2, 2]
    former = changed('mmdet mask2former/mask2former_r50_8xb2-lsj-50e_coco', 'masks')
    head = former.model.panoptic_head
    assert (head.num_things_classes, head.num_stuff_classes) == (2, 0)
    assert head.loss_cls.class_weight == [1.0, 1.0, 0.1]
    with pytest.raises(UsageError, match='trains label maps next to objects'):
        changed('mmdet panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco', 'masks')
    voc = changed('mmdet pascal_voc/faster-rcnn_r50_fpn_1x_voc0712', 'boxes')
    assert voc.train_dataloader.dataset.type == 'RepeatDataset'
    assert voc.val_evaluator.type == 'mmattn.CocoMetric'
    former = changed('mmseg mask2former/mask2former_r50_8xb2-160k_ade20k-512x512', 'labels')
    assert former.model.decode_head.num_classes == 2
    assert former.model.decode_head.loss_cls.class_weight == [1.0, 1.0, 0.1]


@pytest.mark.parametrize('config', ['fcn_r18_camvid', 'ann_r50_ade20k', 'faster_rcnn_r50_coco'])
def test_the_classes_of_a_set_that_is_not_here(config):
    """As where published weights are loaded."""
    cfg = changed(config, dict(name='gone', classes=CLASSES))
    assert describe_data_set(cfg) == [] and cfg.data_set['name'] == 'gone'
    for name in 'train_dataloader', 'test_dataloader':
        for leaf in dataset_leaves(cfg[name].dataset):
            assert list(build_dataset(leaf).metainfo['classes']) == CLASSES
    counts = dict(class_counts(cfg.model, 'model'))
    assert counts and set(counts.values()) == {2}


def test_sets_are_no_models(sets):
    assert is_data_set(sets / 'boxes.py') and not is_data_set(ROOT / 'configs/fcn_r18_street.py')
    assert config_names(sets) == []
    assert 'fcn_r18_street' in list_models()


NASTY = [
    '"""; import os',
    "'; x = 1 #",
    "a\"'{{$HOME:b'}}",
    '{{ fileBasename }}',
    '{{_base_.x}}',
    '\\',
    'é\n',
]


def test_names_of_strangers_stay_text(sets):
    """mmengine replaces what stands in braces before it reads a config."""
    palette = [(i, i, i) for i in range(len(NASTY))]
    common = ('summary', NASTY, palette, ['train', 'val'], (64, 48))
    path = sets / 'nasty.py'
    path.write_text(config_text.detection_config('nasty', *common, masks=False), encoding='utf-8')
    cfg = changed('retinanet_r50_coco', 'nasty')
    assert list(cfg.train_dataloader.dataset.metainfo.classes) == NASTY
    assert cfg.data_set['classes'] == NASTY
