"""Configs and commands for runs of a few steps on scenes of 128x64."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.conftest import tiny_options

DETECTOR = """
_base_ = '{configs}/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(
    {model}
    roi_head=dict(bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(128, 64), keep_ratio=True),
    dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(_delete_=True, type='CityscapesDataset', data_root='{root}',
                 ann_file='annotations/instancesonly_filtered_gtFine_train.json',
                 data_prefix=dict(img='leftImg8bit/train/'), pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(_delete_=True, type='CityscapesDataset', data_root='{root}', test_mode=True,
                 ann_file='annotations/instancesonly_filtered_gtFine_val.json',
                 data_prefix=dict(img='leftImg8bit/val/'), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', metric=['bbox', 'segm'],
    ann_file='{root}/annotations/instancesonly_filtered_gtFine_val.json')
test_evaluator = val_evaluator
param_scheduler = []
"""
SEGMENTOR = """
_base_ = '{configs}/fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
norm_cfg = dict(type='BN')  # SyncBN needs GPUs
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 128)),
    {model}
    decode_head=dict(norm_cfg=norm_cfg), auxiliary_head=dict(norm_cfg=norm_cfg))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(64, 128)), dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
small = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(data_root='{root}', pipeline=train_pipeline), **small)
val_dataloader = dict(dataset=dict(data_root='{root}', pipeline=test_pipeline), **small)
test_dataloader = val_dataloader
"""
STEPS = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2)
default_hooks = dict(
    checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=1),
    logger=dict(interval=1))
log_processor = dict(by_epoch=False)
"""
TEMPLATES = {'mmdet': DETECTOR, 'mmseg': SEGMENTOR}


def write_config(package: str, model: str, root: Path, folder: Path) -> Path:
    """A stock config of a package, changed to two steps on the scenes.

    Args:
        package: 'mmdet' or 'mmseg'.
        model: keys of `model`, as a line of Python.
        root: folder of the scenes.
        folder: where the config is written.
    """
    text = TEMPLATES[package].format(configs=shipped(package) / 'configs', model=model, root=root)
    path = folder / 'config.py'
    path.write_text(text + STEPS)
    return path


def shipped(package: str) -> Path:
    """The folder of configs and tools in an installed package."""
    return Path(find_spec(package).origin).parent / '.mim'


def call(*arguments: object, code: int = 0) -> str:
    """Run Python; returns what it wrote. Its exit code must be `code`."""
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    said = done.stdout + done.stderr
    assert done.returncode == code, f'exit code {done.returncode}\n{said[-6000:]}'
    return said


def mmattn(
    command: str, config: str, *arguments: object, root: Path, code: int = 0, **more: object
) -> str:
    """Run a command of mmattn on a config of its own, with a few steps on the scenes.

    Args:
        more: other values at the top level of the config.
    """
    options = tiny_options(root) | {'default_hooks.checkpoint.max_keep_ckpts': -1}
    if config.startswith('mask_rcnn'):
        scales = dict(train=2, val=1, test=1)
        options |= {
            f'{name}_dataloader.dataset.pipeline.{index}.scale': (128, 64)
            for name, index in scales.items()
        }
        options['model.test_cfg.rcnn.score_thr'] = 0.0
    options |= more
    changes = [f'{key}={value}' for key, value in options.items()]
    path = shipped('mmattn') / 'configs' / f'{config}.py'
    return call(
        '-m', 'mmattn', command, path, *arguments, '--cfg-options', *changes, code=code
    )  # fmt: skip


def weights(work: Path) -> SimpleNamespace:
    """State dicts after the first and the second step."""
    states = [
        torch.load(work / f'iter_{step}.pth', map_location='cpu')['state_dict'] for step in (1, 2)
    ]
    return SimpleNamespace(first=states[0], second=states[1])
