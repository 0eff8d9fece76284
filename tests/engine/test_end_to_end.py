"""Train, be stopped, resume, test, infer, publish and export, from configs of mmdet and mmseg as they are.

They have mmengine's hooks alone. Options make them small, and nothing else.
"""

import os
import signal
from pathlib import Path

import mmdet
import mmseg
import pytest
import torch

from mmattn.checkpoint.manifest import facts_of, verify
from mmattn.checkpoint.read import read_checkpoint
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from mmattn.errors import Stopped
from mmattn.inference.export import export
from mmattn.inference.infer import infer
from mmattn.testing.kill import StepRecorder, compare_records, read_record
from mmattn.zoo import load_model
from mmattn.zoo.publish import publish
from tests.engine.killing import At

DET, SEG = (Path(p.__file__).parent / '.mim' / 'configs' for p in (mmdet, mmseg))
THINGS = ['person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle']
NARROW = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.backbone.init_cfg': None,
}
FPN = NARROW | {'model.neck.in_channels': [8, 16, 32, 64], 'model.neck.out_channels': 16}
RETINA = FPN | {
    'model.bbox_head.num_classes': 8,
    'model.bbox_head.in_channels': 16,
    'model.bbox_head.feat_channels': 16,
    'model.bbox_head.stacked_convs': 1,
}
FASTER = FPN | {
    'model.rpn_head.in_channels': 16,
    'model.rpn_head.feat_channels': 16,
    'model.roi_head.bbox_roi_extractor.out_channels': 16,
    'model.roi_head.bbox_head.in_channels': 16,
    'model.roi_head.bbox_head.fc_out_channels': 32,
    'model.roi_head.bbox_head.num_classes': 8,
    'model.train_cfg.rpn_proposal.max_per_img': 20,
    'model.test_cfg.rpn.max_per_img': 20,
}
SCALES = 'train_dataloader.dataset.pipeline.3.transforms'
DETR = NARROW | {
    'model.neck.in_channels': [64],
    'model.num_queries': 10,
    'model.encoder.num_layers': 1,
    'model.decoder.num_layers': 1,
    'model.encoder.layer_cfg.ffn_cfg.feedforward_channels': 32,
    'model.decoder.layer_cfg.ffn_cfg.feedforward_channels': 32,
    'model.bbox_head.num_classes': 8,
    'model.test_cfg.max_per_img': 10,
    f'{SCALES}.0.0.scales': [(64, 128), (80, 160)],
    f'{SCALES}.1.0.scales': [(64, 128)],
    f'{SCALES}.1.1.crop_size': (48, 96),
    f'{SCALES}.1.2.scales': [(64, 128)],
}
FCN = {
    'model.pretrained': None,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.decode_head.in_channels': 64,
    'model.decode_head.channels': 8,
    'model.auxiliary_head.in_channels': 32,
    'model.auxiliary_head.channels': 8,
}
UNET = {
    'model.backbone.base_channels': 4,
    'model.decode_head.in_channels': 4,
    'model.decode_head.channels': 8,
    'model.auxiliary_head.in_channels': 8,
    'model.auxiliary_head.channels': 8,
}
SEGFORMER = {
    'model.backbone.init_cfg': None,
    'model.backbone.embed_dims': 8,
    'model.backbone.num_layers': [1, 1, 1, 1],
    'model.decode_head.in_channels': [8, 16, 40, 64],
    'model.decode_head.channels': 16,
    'model.test_cfg.crop_size': (64, 64),
    'model.test_cfg.stride': (48, 48),
}


def detection(street) -> dict:
    """Options for a few epochs on the street set."""
    options = {'train_cfg.max_epochs': 2, 'default_hooks.logger.interval': 1}
    for name, split in ('train', 'train'), ('val', 'val'), ('test', 'test'):
        loader = f'{name}_dataloader'
        json = f'annotations/instancesonly_filtered_gtFine_{split}.json'
        options |= _loader(loader) | {
            f'{loader}.dataset.data_root': f'{street}/',
            f'{loader}.dataset.ann_file': json,
            f'{loader}.dataset.data_prefix.img': f'leftImg8bit/{split}/',
            f'{loader}.dataset.metainfo': dict(classes=THINGS),
        }
        if name != 'train':
            options[f'{loader}.dataset.pipeline.1.scale'] = (128, 64)
            options[f'{name}_evaluator.ann_file'] = f'{street}/{json}'
    return options


def segmentation(street) -> dict:
    """Options for a few steps on the street set, which has the layout of Cityscapes."""
    options = {
        'train_cfg.max_iters': 4,
        'train_cfg.val_interval': 4,
        'default_hooks.checkpoint.interval': 4,
        'default_hooks.logger.interval': 1,
        'model.data_preprocessor.size': (32, 64),
        'train_dataloader.dataset.pipeline.2.scale': (128, 64),
        'train_dataloader.dataset.pipeline.3.crop_size': (32, 64),
        'train_dataloader.batch_size': 2,
    }
    for name in 'train', 'val', 'test':
        loader = f'{name}_dataloader'
        options |= _loader(loader) | {f'{loader}.dataset.data_root': str(street)}
        split = name if name != 'test' else 'val'  # as the config has it
        options[f'{loader}.dataset.data_prefix.img_path'] = f'leftImg8bit/{split}'
        if name != 'train':
            options[f'{loader}.dataset.pipeline.1.scale'] = (128, 64)
    return options


def _loader(name: str) -> dict:
    return {f'{name}.num_workers': 0, f'{name}.persistent_workers': False}


COURSES = {
    'one stage': (DET / 'retinanet/retinanet_r18_fpn_1x_coco.py', RETINA, 3),
    'two stages': (DET / 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', FASTER, 3),
    'transformer': (DET / 'detr/detr_r18_8xb2-500e_coco.py', DETR, 3),
    'fcn': (SEG / 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py', FCN, 3),
    'unet': (SEG / 'unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py', UNET, 3),
    'segformer': (
        SEG / 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
        SEGFORMER,
        3,
    ),
}


EXPORTED = (
    'one stage',
    'fcn',
)  # a program takes seconds; tests/inference/test_export.py has others


def stop(runner):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize('name', COURSES)
def test_the_whole_course(street, tmp_path, name):
    config, own, step = COURSES[name]
    detects = DET in config.parents
    options = (detection if detects else segmentation)(street) | own
    if name == 'one stage':
        options['train_dataloader.dataset.pipeline.2.scale'] = (128, 64)
        options['default_hooks.checkpoint.save_best'] = 'coco/bbox_mAP'
    if name == 'two stages':
        options['train_dataloader.dataset.pipeline.2.scale'] = (128, 64)
        options['default_hooks.checkpoint'] = None  # no hook that saves

    def run(folder, *hooks, **given):
        record = StepRecorder(tmp_path / f'{folder}.jsonl')
        return train(
            config, work_dir=tmp_path / folder, cfg_options=options, seed=5, rehearsal=False,
            hooks=[record, *hooks], **given,
        )  # fmt: skip

    run('whole', validate=False)
    with pytest.raises(Stopped, match=f'stopped by SIGTERM at iteration {step}; saved iter_{step}'):
        run('stopped', At('before_train_iter', step, stop))
    stopped = tmp_path / 'stopped' / f'iter_{step}.pth'
    assert verify(stopped) and facts_of(stopped)['iter'] == step
    run('stopped', resume='auto', attention=None)
    compare_records(*(read_record(tmp_path / f'{f}.jsonl') for f in ('stopped', 'whole')), name)
    last = {'one stage': 'epoch_2', 'transformer': 'epoch_2', 'two stages': 'iter_3'}
    checkpoint = tmp_path / 'stopped' / f'{last.get(name, "iter_4")}.pth'
    assert verify(checkpoint)
    assert stopped.exists() == (name == 'two stages')  # it was for the stop alone
    if name == 'one stage':
        assert (tmp_path / 'stopped' / 'best.pth').resolve().name == (
            'best_coco_bbox_mAP_epoch_1.pth'
        )
    metrics = evaluate(config, checkpoint, work_dir=tmp_path / 'test', cfg_options=options)
    assert ('coco/bbox_mAP' if detects else 'mIoU') in metrics
    photo = min((street / 'leftImg8bit/test').rglob('*.png'))
    infer(config, checkpoint, photo, out_dir=tmp_path / 'out', options=options, device='cpu')
    assert list((tmp_path / 'out').rglob(f'{photo.stem}*'))
    files = publish(tmp_path / 'stopped' / config.name, checkpoint, tmp_path / 'published')
    if name == 'one stage':
        assert (tmp_path / 'stopped' / 'last_checkpoint').read_text() == 'epoch_2.pth'
        assert 'on the validation data, during training.' in files['card'].read_text()
    for weights in tmp_path / 'published', files['pth']:
        loaded = load_model(tmp_path / 'stopped' / config.name, weights, 'cpu')
        wanted = read_checkpoint(checkpoint)['state_dict']
        assert all(torch.equal(v, wanted[k]) for k, v in loaded.state_dict().items())
    if name in EXPORTED:
        out = tmp_path / 'network.pt2'
        export(config, checkpoint, 'torch', out=out, options=options)
        assert out.stat().st_size > 10_000
