import shutil

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmattn.config.check import check_config
from mmattn.config.load import load_config
from mmattn.datasets.ade20k import COUNTS, prepare_ade20k
from mmattn.datasets.validation import check_data
from mmattn.errors import DataError
from tests.conftest import ROOT
from tests.test_tools import tool

KINDS = {'images': '.jpg', 'annotations': '.png'}


@pytest.fixture
def ade20k(tmp_path):
    """Three images of 40x24 to train on, two to validate, with labels 0..150."""
    rng, root = np.random.default_rng(0), tmp_path / 'ADEChallengeData2016'
    for split, count in dict(training=3, validation=2).items():
        for kind in KINDS:
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            stem = f'ADE_{split[:5]}_{number:08d}'
            picture = rng.integers(0, 256, (24, 40, 3), np.uint8)
            Image.fromarray(picture).save(root / 'images' / split / f'{stem}.jpg')
            labels = rng.integers(0, 151, (24, 40), np.uint8)
            labels[0, :2] = 0, 150
            Image.fromarray(labels).save(root / 'annotations' / split / f'{stem}.png')
    return root


def test_a_sound_set(ade20k):
    lines = []
    assert prepare_ade20k(ade20k, lines.append) == dict(training=3, validation=2)
    assert lines == [
        'training: 3 images (the original set has 20210)',
        'validation: 2 images (the original set has 2000)',
    ]
    assert tuple(COUNTS.values()) == (20210, 2000)


def test_the_folder_above_is_told_apart(ade20k):
    with pytest.raises(DataError, match=rf'in a folder. Give --root {ade20k}.'):
        prepare_ade20k(ade20k.parent, str)
    with pytest.raises(DataError, match=r'annotations/validation does not exist. Unpack ADEChal'):
        shutil.rmtree(ade20k / 'annotations/validation')
        prepare_ade20k(ade20k, str)


def test_missing_partners_are_named(ade20k):
    labels = sorted((ade20k / 'annotations/training').iterdir())
    photo = min((ade20k / 'images/validation').iterdir())
    for path in labels[0], labels[2], photo:
        path.unlink()
    with pytest.raises(
        DataError,
        match=rf'2 training images have no label map; missing: {labels[0]}, {labels[2]}; '
        rf'1 validation label maps have no image; missing: {photo}. Unpack ADEChallengeData2016.zip',
    ):
        prepare_ade20k(ade20k, str)


def test_a_split_without_images(ade20k):
    for kind in KINDS:
        for path in (ade20k / kind / 'validation').iterdir():
            path.unlink()
    with pytest.raises(DataError, match=rf'no image in {ade20k}/images/validation'):
        prepare_ade20k(ade20k, str)


def test_a_label_beyond_150(ade20k):
    path = min((ade20k / 'annotations/validation').iterdir())
    values = np.array(Image.open(path))
    values[2, 3:5] = 151
    Image.fromarray(values).save(path)
    with pytest.raises(
        DataError, match=rf'label 151 \(2 px\) in {path} is no class \(allowed 0..150 and 255\)'
    ):
        prepare_ade20k(ade20k, str)


def test_without_reduce_zero_label_it_is_refused(ade20k):
    init_default_scope('mmseg')
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    leaf = dict(type='ADE20KDataset', data_root=str(ade20k), data_prefix=prefix)
    check_data(leaf, 'train_dataloader')
    with pytest.raises(
        DataError,
        match=r'label 150 \(\d+ px\) in .* is no class \(allowed 0..149 and 255\) \(and 2 more: .*'
        'If 0 means that a pixel has no class, set reduce_zero_label=True in every data set',
    ):
        check_data(leaf | dict(reduce_zero_label=False), 'train_dataloader')


def test_the_tool_links_the_set_where_the_config_looks(ade20k, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepare = tool('prepare_data')
    assert prepare(['ade20k', '--root', 'nowhere']) == 3
    assert 'nowhere/images/training does not exist. Unpack ADEChallen' in capsys.readouterr().err
    for _ in range(2):  # the second time it is there already
        assert prepare(['ade20k', '--root', ade20k.name]) == 0
        assert 'done: data/ade20k is ready' in capsys.readouterr().out
        assert (tmp_path / 'data/ade20k').resolve() == ade20k
    shutil.copytree(ade20k, tmp_path / 'other')
    assert prepare(['ade20k', '--root', 'other']) == 2
    assert 'data/ade20k is there, but is not other. Remove it' in capsys.readouterr().err
    shutil.rmtree(ade20k)  # the link leads nowhere now
    assert prepare(['ade20k', '--root', 'other']) == 2

    shutil.move(tmp_path / 'other', ade20k)
    parents = ['models/segmentor_r18', 'datasets/ade20k', 'schedules/adamw_600']
    paths = [str(ROOT / f'configs/_base_/{p}.py') for p in [*parents, 'runtime']]
    heads = (
        'decode_head=dict(type="FCNHead", num_classes=150), auxiliary_head=dict(num_classes=150)'
    )
    (tmp_path / 'leaf.py').write_text(f'_base_ = {paths}\nmodel = dict({heads})\n')
    cfg = load_config(tmp_path / 'leaf.py')
    check_config(cfg)
    init_default_scope('mmseg')
    for loader, count in dict(train_dataloader=3, val_dataloader=2, test_dataloader=2).items():
        dataset = DATASETS.build(cfg[loader].dataset)
        assert len(dataset) == count and dataset.reduce_zero_label
        check_data(cfg[loader].dataset, loader)
        sample = dataset[0]
        truth = sample['data_samples'].gt_sem_seg.data
        assert set(truth.unique().tolist()) <= {*range(150), 255}
        if loader.startswith('train'):
            height, width = sample['inputs'].shape[1:]  # of a small scale less than the crop
            assert 256 <= height <= 512 and 256 <= width <= 512
        else:  # the image is resized, its labels are not
            assert tuple(sample['inputs'].shape[1:]) == (512, 853)
            raw = np.asarray(Image.open(min((ade20k / 'annotations/validation').iterdir())))
            assert np.array_equal(truth[0], np.where(raw == 0, 255, raw - 1))
