"""An imported set is trained for two steps and tested with `--data`, no file edited."""

import json
import shutil

import numpy as np
import pytest

from mmattn.analysis.browse_data import browse
from mmattn.analysis.tuning import TuneOptions, tune
from mmattn.checkpoint.read import open_checkpoint
from mmattn.datasets.audit import audit
from mmattn.datasets.importing.importer import import_data
from mmattn.engine.network import build_network
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from tests.conftest import ROOT
from tests.datasets.importing import fixtures

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
STEPS = {
    **{f'{name}.num_workers': 0 for name in LOADERS},
    **{f'{name}.persistent_workers': False for name in LOADERS},
    'train_dataloader.batch_size': 2,
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 2,
    'default_hooks.checkpoint.interval': 2,
    'default_hooks.logger.interval': 1,
    'custom_hooks': [],
}
CASES = {  # format and kind, config, metric
    'detection': (fixtures.voc, 'boxes', 'retinanet_r18_bccd', 'coco/bbox_mAP'),
    'instances': (fixtures.supervisely, 'masks', 'mask_rcnn_r18_dsb2018', 'coco/segm_mAP'),
    'segmentation': (fixtures.masks, 'palette', 'fcn_r18_camvid', 'mIoU'),
}
SPLITS = dict(train=list(fixtures.SCENES)[:4], val=list(fixtures.SCENES)[4:])


@pytest.mark.parametrize('task', CASES)
def test_an_imported_set_trains_and_tests(task, tmp_path, monkeypatch):
    write, kind, name, metric = CASES[task]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'raw', SPLITS, kind)
    import_data('shapes', ['raw'], log=[].append)
    config = ROOT / 'configs' / f'{name}.py'
    said = []
    monkeypatch.setattr(
        'mmattn.engine.network.print_log', lambda text, *_, **__: said.extend(text.splitlines())
    )
    work_dir = train(config, data='shapes', cfg_options=STEPS, rehearsal=False)
    assert work_dir.name == f'{name}_shapes'
    classes = 3 if task == 'segmentation' else 2
    assert said[0].startswith(f'data set shapes: {classes} classes (')
    assert (
        f'num_classes {dict(detection=3, instances=1, segmentation=11)[task]} -> {classes}'
        in said[1]
    )
    assert said[2].startswith('metrics: mmattn.')
    checkpoint = open_checkpoint(work_dir / 'iter_2.pth')
    assert checkpoint.meta['data_set']['name'] == 'shapes'
    assert len(checkpoint.meta['dataset_meta']['classes']) == classes
    assert checkpoint.meta['command'].startswith(f'python tools/train.py {name}.py --data shapes')
    metrics = evaluate(config, work_dir / 'iter_2.pth', cfg_options=STEPS, rehearsal=False)
    assert metric in metrics and not np.isnan(metrics[metric])
    more = dict(data='shapes', report='report', cfg_options=STEPS, rehearsal=False)
    given = evaluate(config, checkpoint, **more)
    np.testing.assert_equal(given, metrics)  # nan for a class that is absent
    assert (tmp_path / 'report' / 'index.html').is_file()
    page = browse(config, 'look', data='shapes', samples=2, options=STEPS).read_text()
    assert f'{name}_shapes: train' in page and all(
        c in page for c in checkpoint.meta['dataset_meta']['classes']
    )
    audited = audit(config, data='shapes')['data_sets']
    assert sum(part['images'] for part in audited) == 6  # val stands in for test
    assert not any(part['problems'] for part in audited)
    if task == 'segmentation':
        flags = [f'{key}={value}' for key, value in STEPS.items()]
        options = TuneOptions(work_dir='tuned', trials=1, data='shapes', cfg_options=flags)
        (best,) = tune(config, ['optim_wrapper.optimizer.lr=log:1e-4:1e-3'], options)
        assert best.state == 'complete'
        command = json.loads((tmp_path / 'tuned' / 'results.json').read_text())['command']
        assert ' --data shapes --cfg-options ' in command
    if task == 'detection':
        longer = STEPS | {'train_cfg.max_iters': 3, 'default_hooks.checkpoint.interval': 1}
        train(
            config,
            resume=work_dir / 'iter_2.pth',
            cfg_options=longer,
            validate=False,
            rehearsal=False,
        )
        assert open_checkpoint(work_dir / 'iter_3.pth').meta['data_set']['name'] == 'shapes'
        shutil.rmtree('configs')  # as where published weights are loaded
        network, cfg = build_network(config, checkpoint=work_dir / 'iter_3.pth')
        assert network.bbox_head.num_classes == 2
        assert tuple(cfg.test_dataloader.dataset.metainfo.classes) == fixtures.CLASSES


DETECTION = [name for name in fixtures.FORMATS if name not in ('masks', 'instance_masks')]
EVERY = [  # format, kind of its objects, config, metric
    *((name, 'boxes', 'retinanet_r18_bccd', 'coco/bbox_mAP') for name in DETECTION),
    ('instance_masks', 'masks', 'mask_rcnn_r18_dsb2018', 'coco/segm_mAP'),
    *(('masks', kind, 'fcn_r18_camvid', 'mIoU') for kind in ('ids', 'palette', 'colours')),
]


@pytest.mark.parametrize('name, kind, config, metric', EVERY)
def test_every_format_trains_and_tests(name, kind, config, metric, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write = fixtures.masks if name == 'masks' else fixtures.FORMATS[name]
    write(tmp_path / 'raw', SPLITS, kind)
    import_data('shapes', ['raw'], log=[].append)
    config = ROOT / 'configs' / f'{config}.py'
    options = dict(cfg_options=STEPS, rehearsal=False)
    work_dir = train(config, data='shapes', validate=False, **options)
    metrics = evaluate(config, work_dir / 'iter_2.pth', **options)
    assert not np.isnan(metrics[metric])
