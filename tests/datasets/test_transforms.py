"""Faster steps of a segmentation pipeline: the same results from the same random numbers."""

import numpy as np
import pytest
import torch
from mmcv.transforms.utils import cache_random_params
from mmengine.registry import TRANSFORMS
from mmseg.datasets import transforms as stock

from mmattn.datasets.transforms import PackSegInputs, RandomCrop


def label_map(kind, height=60, width=80, block=12):
    """Blocks of one label, some ignored, so that some crops hold one or two."""
    rng = np.random.default_rng(0)
    labels = rng.choice(
        [0, 3, 18, 255], (height // block, width // block + 1), p=[0.5, 0.2, 0.1, 0.2]
    )
    return labels.repeat(block, 0).repeat(block, 1)[:, :width].astype(kind)


@pytest.mark.parametrize('ignore_index', [255, 0, -1, 300])
@pytest.mark.parametrize('kind', ['uint8', 'int64', 'uint16'])
@pytest.mark.parametrize('ratio', [0.75, 0.5, 1.0])
def test_crops_are_those_of_mmsegmentation(ratio, kind, ignore_index):
    labels = label_map(kind)
    image = np.random.default_rng(1).integers(0, 256, (*labels.shape, 3), np.uint8)
    arguments = dict(crop_size=(20, 26), cat_max_ratio=ratio, ignore_index=ignore_index)
    tries = set()
    for seed in range(60):
        results = []
        for kind_of_crop in RandomCrop, stock.RandomCrop:
            np.random.seed(seed)
            crop = kind_of_crop(**arguments)
            sample = dict(img=image, gt_seg_map=labels, seg_fields=['gt_seg_map'])
            results.append((crop(sample), np.random.get_state()))
        (ours, state), (theirs, other) = results
        assert (
            np.array_equal(ours['img'], theirs['img']) and ours['img_shape'] == theirs['img_shape']
        )
        assert np.array_equal(ours['gt_seg_map'], theirs['gt_seg_map'])
        assert state[2] == other[2] and np.array_equal(state[1], other[1])
        tries.add(state[2])
    assert len(tries) > 3 or ratio == 1  # some crops are refused, some are not


def test_crops_larger_than_the_image_and_without_a_label():
    for labels in (
        np.full((10, 12), 255, np.uint8),
        np.zeros((10, 12), np.uint8),
        label_map('uint8'),
    ):
        arguments = dict(crop_size=(40, 50), cat_max_ratio=0.75)
        sample = dict(img=np.zeros((*labels.shape, 3), np.uint8), gt_seg_map=labels)
        boxes = []
        for kind in RandomCrop, stock.RandomCrop:
            np.random.seed(0)
            crop = kind(**arguments)  # its method holds it weakly
            boxes.append(crop.crop_bbox(sample))
        assert boxes[0] == boxes[1]


def test_a_crop_keeps_its_random_numbers_for_several_images():
    """The list of methods with random numbers is the step's own, not MMSegmentation's."""
    assert (
        stock.RandomCrop._methods_with_randomness
        == RandomCrop._methods_with_randomness
        == ['crop_bbox']
    )
    crop = TRANSFORMS.build(dict(type='mmattn.RandomCrop', crop_size=(4, 4), cat_max_ratio=0.9))
    assert type(crop) is RandomCrop
    image = np.arange(10000).reshape(100, 100)
    with cache_random_params(crop):
        first, second = (
            crop(
                dict(img=image, gt_seg_map=label_map('uint8', 100, 100), seg_fields=['gt_seg_map'])
            )
            for _ in range(2)
        )
    assert np.array_equal(first['img'], second['img'])


@pytest.mark.parametrize('flipped', [False, True])
def test_packed_labels_of_8_bits_stay_so(flipped):
    labels = label_map('uint8')
    image = np.random.default_rng(1).integers(0, 256, (*labels.shape, 3), np.uint8)
    if flipped:
        image, labels = image[:, ::-1], labels[:, ::-1]
    sample = dict(img=image, gt_seg_map=labels, img_path='a.png', flip=flipped)
    ours, theirs = (kind()(dict(sample)) for kind in (PackSegInputs, stock.PackSegInputs))
    assert torch.equal(ours['inputs'], theirs['inputs'])
    mine, other = ours['data_samples'], theirs['data_samples']
    assert mine.metainfo == other.metainfo and mine.keys() == other.keys()
    assert mine.gt_sem_seg.data.dtype == torch.uint8 and other.gt_sem_seg.data.dtype == torch.int64
    assert torch.equal(mine.gt_sem_seg.data.long(), other.gt_sem_seg.data)


@pytest.mark.parametrize('kind', ['int64', 'uint16', 'int32'])
def test_packed_labels_of_more_bits_are_int64(kind):
    labels = label_map(kind) + np.array(1000, kind)
    sample = dict(img=np.zeros((*labels.shape, 3), np.uint8), gt_seg_map=labels)
    ours, theirs = (kind()(dict(sample)) for kind in (PackSegInputs, stock.PackSegInputs))
    data = ours['data_samples'].gt_sem_seg.data
    assert data.dtype == torch.int64 and torch.equal(data, theirs['data_samples'].gt_sem_seg.data)
