"""Data loaders: as many workers as there are CPUs, and label maps that arrive as losses expect them."""

import os

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from mmattn.config.load import load_config
from mmattn.datasets.transforms import PackSegInputs, RandomCrop
from mmattn.engine.labels import widen_labels
from mmattn.engine.resume.data import prepare_dataloader_cfg
from mmattn.engine.runner import Runner
from mmattn.engine.workers import count_workers


@pytest.mark.parametrize(
    'cpus, processes, count',
    [(1, None, 1), (6, None, 6), (64, None, 8), (12, 4, 3), (12, 8, 1), (2, 8, 1)],
)
@pytest.mark.parametrize('name', ['LOCAL_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_SIZE'])
def test_workers_by_the_number_of_cpus(cpus, processes, count, name, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: range(cpus))
    if processes:
        monkeypatch.setenv(name, str(processes))
    assert count_workers('auto') == count
    assert prepare_dataloader_cfg(dict(batch_size=1), None)['num_workers'] == count
    loader = prepare_dataloader_cfg(dict(num_workers='auto'), 0)
    assert (
        loader['num_workers'] == loader['worker_init_fn']['then'].keywords['num_workers'] == count
    )
    assert prepare_dataloader_cfg(dict(num_workers=3), 0)['num_workers'] == 3
    assert prepare_dataloader_cfg(dict(num_workers=0), 0)['num_workers'] == 0


def test_large_sets_leave_the_number_to_the_machine():
    for name in 'ccnet_r101_cityscapes', 'ccnet_r50_ade20k', 'mask_rcnn_r50_coco':
        cfg = load_config(name)
        assert 'num_workers' not in cfg.train_dataloader
        assert cfg.train_dataloader.persistent_workers


def loader_cfg(root, **changes):
    cfg = load_config('ann_r50_512x1024_40k_cityscapes')
    cfg.train_dataloader.dataset.data_root = str(root)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False, **changes)
    init_default_scope('mmseg')
    return cfg


def steps(loader):
    return {type(step) for step in loader.dataset.pipeline.transforms}


def test_a_loader_has_the_faster_steps_and_the_config_stays(street):
    cfg = loader_cfg(street)
    text = cfg.pretty_text
    assert {RandomCrop, PackSegInputs} <= steps(Runner.build_dataloader(cfg.train_dataloader))
    assert cfg.pretty_text == text


def test_labels_are_int64_where_batches_are_made_otherwise(street):
    cfg = loader_cfg(street, collate_fn=dict(type='torch.utils.data.default_collate'))
    assert PackSegInputs not in steps_of_cfg(prepare_dataloader_cfg(cfg.train_dataloader, 0))
    cfg = loader_cfg(street)
    cfg.train_dataloader.dataset.pipeline.append(dict(type='Identity'))
    assert PackSegInputs not in steps_of_cfg(prepare_dataloader_cfg(cfg.train_dataloader, 0))


def steps_of_cfg(loader):
    return [step['type'] for step in loader['dataset']['pipeline']]


def batch(kind):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        data = torch.randint(0, 19, (1, 24, 32), generator=generator)
        data[0, :5] = 255
        sample = SegDataSample(metainfo=dict(img_path='a.png', img_shape=(24, 32)))
        sample.gt_sem_seg = PixelData(data=data.to(kind))
        samples.append(sample)
    return dict(inputs=[torch.zeros(3, 24, 32, dtype=torch.uint8)] * 2, data_samples=samples)


def test_labels_arrive_as_the_stock_loader_gives_them():
    """With a fill value that 8 bits cannot hold, too."""
    preprocessor = MODELS.build(
        dict(type='mmseg.SegDataPreProcessor', size=(32, 40), seg_pad_val=-7)
    )
    widen_labels(preprocessor)
    narrow, wide = batch(torch.uint8), batch(torch.int64)
    ours, theirs = (preprocessor(data, True)['data_samples'] for data in (narrow, wide))
    for sample, other in zip(ours, theirs, strict=True):
        data = sample.gt_sem_seg.data
        assert data.dtype == torch.int64 and torch.equal(data, other.gt_sem_seg.data)
        assert data.min() == -7


def test_batches_of_other_kinds_are_left():
    widen_labels(preprocessor := nn.Identity())
    for data in None, [1], dict(inputs=[]), dict(data_samples=[[SegDataSample()], SegDataSample()]):
        assert preprocessor(data) is data
    narrow = batch(torch.uint8)
    labels = preprocessor(narrow)['data_samples'][0].gt_sem_seg.data
    assert labels.dtype == torch.int64
