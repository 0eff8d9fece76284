"""Copies of a data set that decode fast: the same pixels, or the original."""

import json
import os
import shutil
from types import SimpleNamespace

import mmengine.fileio
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import DATASETS, init_default_scope
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mmattn.cli.prepare_data import main
from mmattn.config.load import load_config
from mmattn.datasets import fast_pipeline, image_cache, write_cache
from mmattn.datasets.cached_steps import label_table
from mmattn.datasets.fast_pipeline import use_fast_steps
from mmattn.datasets.image_cache import INDEX, cache_folder, open_cache
from mmattn.datasets.lossless import FORMATS, encode
from mmattn.engine.resume.rng import seeded
from mmattn.errors import WriteError
from mmattn.testing.kill import compare_records
from tests.datasets.small_sets import box_set, scene, turn, write_labels
from tests.engine.killing import once, record

COMMAND = 'prepare it again'
IMAGE_KINDS = ('RGB', 'L', 'P', '1', 'RGBA', 'I;16', 'CMYK')
LABEL_KINDS = ('grey', 'palette', '16 bits', '1 bit', 'grey and alpha')


@pytest.fixture
def scenes(street, tmp_path):
    """A `street` set of its own, whose test split is not copied."""
    return shutil.copytree(street, tmp_path / 'scenes')


@pytest.fixture
def warnings(monkeypatch):
    """What is named, whole."""
    texts = []
    for module in image_cache, fast_pipeline:
        monkeypatch.setattr(module, 'warn', texts.append)
    image_cache._warn_once.cache_clear()
    return texts


@pytest.fixture
def no_originals(monkeypatch):
    """Stock steps fail as soon as this is called: they read by mmengine."""

    def refuse(path, *args, **kwargs):
        raise AssertionError(f'{path} is read')

    return lambda: monkeypatch.setattr(mmengine.fileio, 'get', refuse)


def write(root, kind='bmp', name='cityscapes'):
    lines = []
    write_cache.write_cache(name, root, kind, command=COMMAND, log=lines.append)
    return lines


def dataset(root):
    """The data set of a recipe with every augmentation, on scenes of 128x64."""
    cfg = load_config('ann_r50_512x1024_40k_cityscapes').train_dataloader.dataset
    cfg.data_root = str(root)
    for step in cfg.pipeline:
        if step.type == 'RandomResize':
            step.scale = (128, 64)
        if step.type == 'RandomCrop':
            step.crop_size = (48, 96)
    init_default_scope('mmseg')
    return cfg


def samples(cfg, seeds):
    built = DATASETS.build(cfg)
    for seed in seeds:
        with seeded(seed):
            packed = built[seed % len(built)]
        sample = packed['data_samples']
        yield packed['inputs'], sample.gt_sem_seg.data.long(), sample.metainfo


# ---- the same pixels -------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', FORMATS)
def test_a_training_pipeline_gives_bit_for_bit_the_same(kind, scenes, warnings, no_originals):
    write(scenes, kind)
    cfg = dataset(scenes)
    expected = list(samples(cfg, range(24)))
    no_originals()
    found = list(samples(use_fast_steps(cfg), range(24)))
    for (image, labels, meta), (other, other_labels, other_meta) in zip(found, expected):
        assert image.equal(other) and labels.equal(other_labels) and meta == other_meta
    assert len({tuple(image.flatten()[:50].tolist()) for image, *_ in found}) > 12
    assert warnings == []
    assert cfg == dataset(scenes)  # unchanged


def kinds_of_images(root):
    """A set in the layout of CamVid with an image and a label map of every kind."""
    for folder in 'images/train', 'images/val', 'labels/train':
        (root / folder).mkdir(parents=True)
    for kind in IMAGE_KINDS:
        picture = Image.fromarray(scene(len(kind))[0])
        if kind == 'I;16':
            picture = Image.fromarray(scene(3)[0][..., 0].astype(np.uint16) * 251)
        picture = picture if kind == 'I;16' else picture.convert(kind)
        picture.save(root / 'images/train' / f'{kind}.jpg', 'JPEG' if kind == 'CMYK' else 'PNG')
    for orientation in 3, 6, 8:
        path = root / 'images/train' / f'turned{orientation}.jpg'
        Image.fromarray(scene(orientation)[0]).save(path)
        turn(path, orientation)
    Image.new('RGB', (9, 1), 'red').save(root / 'images/val' / 'thin.jpg')
    for kind in LABEL_KINDS:
        write_labels(root / 'labels/train' / f'{kind}.png', scene(1)[1] * 80, kind)
    Image.new('L', (9, 1), 3).save(
        root / 'labels/train' / 'thin.png'
    )  # the stock step drops a side
    return root


def test_images_and_label_maps_of_every_kind(tmp_path, warnings, no_originals):
    """What no copy holds is left to the stock step, and named when the copies are written."""
    root = kinds_of_images(tmp_path / 'kinds')
    lines = write(root, name='camvid')
    assert '4 files are left to their originals' in lines[-2]
    assert '1 bit.png cannot be copied: it is a label map of bool and shape (24, 32)' in lines[-2]
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    cfg = dict(type='BaseSegDataset', data_root=str(root), pipeline=steps)
    init_default_scope('mmseg')
    image_step, label_step = fast_pipeline.use_fast_steps(cfg)['pipeline']
    cache = image_step['cache']
    image_step = image_step['type'](cache=cache)
    pictures = sorted((root / 'images').rglob('*.jpg'))
    expected = [LoadImageFromFile()(dict(img_path=str(path))) for path in pictures]
    labels = {
        path: read_labels(LoadAnnotations(), path) for path in (root / 'labels/train').iterdir()
    }
    for path, values in labels.items():
        found = read_labels(label_step['type'](cache=cache), path)
        assert found.dtype == values.dtype and np.array_equal(found, values), path
    no_originals()
    for path, results in zip(pictures, expected, strict=True):
        found = image_step(dict(img_path=str(path)))
        assert found.keys() == results.keys() and found['ori_shape'] == results['ori_shape']
        assert np.array_equal(found['img'], results['img']), path
        assert found['img'].flags.c_contiguous and found['img'].flags.writeable
    assert {path.stem for path in labels if cache.read(str(path), is_label=True) is not None} == {
        'grey', 'palette',
    }  # fmt: skip
    assert warnings == []


def test_a_detector_reads_its_images_from_copies_and_its_boxes_as_ever(tmp_path, no_originals):
    cfg = box_set(tmp_path / 'coco', suffix='.jpg')
    (tmp_path / 'coco/img').rename(tmp_path / 'coco/train2017')
    cfg['data_prefix'] = dict(img='train2017/')
    write(tmp_path / 'coco', name='coco')
    init_default_scope('mmdet')
    stock, fast = DATASETS.build(cfg), DATASETS.build(use_fast_steps(cfg))
    expected = [stock[index] for index in range(3)]
    no_originals()
    for index, results in enumerate(expected):
        found = fast[index]
        assert np.array_equal(found['img'], results['img'])
        assert found['gt_bboxes'].tensor.equal(results['gt_bboxes'].tensor)
        assert found.keys() == results.keys()


def read_labels(step, path, reduce_zero_label=False, label_map=None):
    results = dict(seg_map_path=str(path), seg_fields=[], label_map=label_map)
    step(results := results | dict(reduce_zero_label=reduce_zero_label))
    assert results['seg_fields'] == ['gt_seg_map']
    return results['gt_seg_map']


@pytest.mark.parametrize('label_map', [None, {0: 255, 1: 0, 2: 1, 254: 3, 255: 7, 7: 2}])
@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_labels_become_what_the_stock_step_makes_of_them(reduce_zero_label, label_map, tmp_path):
    path = tmp_path / 'all.png'
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
    expected = read_labels(LoadAnnotations(), path, reduce_zero_label, label_map)
    assert np.array_equal(label_table(reduce_zero_label, label_map), expected.ravel())


def test_a_run_from_copies_is_one_from_the_originals(tiny, scenes, tmp_path, no_originals):
    """Bit for bit in losses and weights, so a run may change between them when it resumes."""
    options = tiny | {f'{x}_dataloader.dataset.data_root': str(scenes) for x in ('train', 'val')}
    options |= {'train_cfg.max_iters': 3, 'train_cfg.val_interval': 3}
    assert once(tmp_path / 'originals', options, skip_data_check=True)
    write(scenes)
    no_originals()
    assert once(tmp_path / 'copies', options, skip_data_check=True)
    compare_records(record(tmp_path / 'copies'), record(tmp_path / 'originals'), 'copies')


# ---- what is not valid is named, and not used ---------------------------------------------------------
def newer(original, copy):
    os.utime(original, ns=(1, 1))
    return 'has changed since it was copied'


def of_another_size(original, copy):
    Image.fromarray(scene(1, height=64, width=128)[0]).save(original)
    return f'has {original.stat().st_size} bytes, and had '


def half_written(original, copy):
    data = copy.read_bytes()
    copy.write_bytes(data[: len(data) // 2])
    return f'has a copy that is cut short: {copy} has {len(data) // 2} of {len(data)} bytes'


def lost(original, copy):
    copy.unlink()
    return f'has lost its copy {copy}'


@pytest.mark.parametrize('damage', [newer, of_another_size, half_written, lost])
def test_a_copy_that_is_not_valid_is_named_and_not_used(damage, scenes, warnings):
    write(scenes)
    original = min((scenes / 'leftImg8bit/train').rglob('*.png'))
    copy = cache_folder(scenes) / original.relative_to(scenes).with_suffix('.png.bmp')
    reason = damage(original, copy)
    cfg = dataset(scenes)
    expected = list(samples(cfg, range(4)))
    fast = use_fast_steps(cfg)
    found = list(samples(fast, range(4)))
    assert all(a[0].equal(b[0]) and a[1].equal(b[1]) for a, b in zip(found, expected))
    assert len(warnings) == 1 and f'{original} {reason}' in warnings[0]
    assert warnings[0].startswith(
        f'{cache_folder(scenes)}: 1 of 8 copies are not used, the originals'
    )
    assert warnings[0].endswith(f'Write it again: {COMMAND}')
    assert fast['pipeline'][0]['cache'].read(str(original)) is None
    lines = write(scenes)
    assert '1 of 12 files are to be written' in lines[0]
    warnings.clear()
    assert use_fast_steps(cfg)['pipeline'][0]['cache'].read(str(original)) is not None
    assert warnings == []


def test_a_copy_that_changes_in_a_run_is_named_once(scenes, warnings):
    """Bytes inside, another image of the same number of bytes, originals that are exchanged."""
    write(scenes)
    originals = sorted((scenes / 'leftImg8bit/train').rglob('*.png'))
    folder = cache_folder(scenes)
    first = folder / originals[0].relative_to(scenes).with_suffix('.png.bmp')

    def read(number):
        return cache.read(str(originals[number])) is not None

    upright = encode(np.zeros((128, 64, 3), np.uint8), 'bmp')
    assert len(upright) == first.stat().st_size
    contents = (bytes(len(upright)), 'nothing'), (upright, '(128, 64, 3)')
    for time, (content, shape) in enumerate(contents):
        first.write_bytes(content)
        cache = use_fast_steps(dataset(scenes))['pipeline'][0]['cache']
        os.utime(originals[1], ns=(time, time))
        assert [read(0), read(1), read(0), read(2)] == [False, False, False, True]
        assert len(warnings) == 1
        assert (
            f'to be removed: {first} holds {shape}, not (64, 128, 3). The original' in warnings[0]
        )
        first.unlink()
        assert '2 of 12 files' in write(scenes)[0]
        warnings.clear()


@pytest.mark.parametrize(
    'text',
    [
        'no json', '[]', '{}', '{"version": 0}', '{"version": 1, "command": "", "complete": true, "entries": {"a": [1]}}',
        json.dumps(dict(version=1, command='', complete=True, entries={'../a': [1, 2, [3], 'bmp', 4]})),
        json.dumps(dict(version=1, command='', complete=True, entries={'a': [1, 2, [3], 'sh', 4]})),
    ],
)  # fmt: skip
def test_an_index_that_is_none(text, scenes, warnings):
    folder = cache_folder(scenes)
    folder.mkdir()
    (folder / INDEX).write_text(text)
    cfg = use_fast_steps(dataset(scenes))
    assert [step['type'] for step in cfg['pipeline'][:2]] == [
        'LoadImageFromFile',
        'LoadAnnotations',
    ]
    assert len(warnings) == 1 and f'{folder / INDEX} cannot be read: ' in warnings[0]


def test_steps_that_decode_otherwise_are_named_and_stay(scenes, warnings):
    write(scenes)
    cfg = dataset(scenes)
    cfg.pipeline[0].color_type = 'grayscale'
    cfg.pipeline[1].imdecode_backend = 'cv2'
    fast = use_fast_steps(cfg)
    assert fast['pipeline'][:2] == cfg.pipeline[:2]
    assert [text.partition(' is not used by ')[2] for text in warnings] == [
        "LoadImageFromFile: it has color_type='grayscale', and the copies hold color_type='color'.",
        "LoadAnnotations: it has imdecode_backend='cv2', and the copies hold "
        "imdecode_backend='pillow'.",
    ]
    cfg.backend_args = dict(backend='local')
    assert use_fast_steps(cfg)['pipeline'][1] == cfg.pipeline[1]
    assert open_cache(str(scenes / 'elsewhere')) is None


# ---- writing ---------------------------------------------------------------------------------------------
def test_what_was_stopped_goes_on(scenes, warnings, monkeypatch):
    copy, count = write_cache._copy, 0

    def stopping(root, folder, *args):
        nonlocal count
        count += folder is not None
        if count > 5:
            raise KeyboardInterrupt
        return copy(root, folder, *args)

    monkeypatch.setattr(write_cache, '_copy', stopping)
    with pytest.raises(KeyboardInterrupt):
        write(scenes)
    written = open_cache(str(scenes)).index
    assert not written.complete and 1 <= len(written.entries) <= 5
    use_fast_steps(dataset(scenes))
    assert (
        len(warnings) == 1 and 'its writing has not ended' in warnings[0] and COMMAND in warnings[0]
    )
    monkeypatch.setattr(write_cache, '_copy', copy)
    lines = write(scenes)
    assert f'{12 - len(written.entries)} of 12 files are to be written as bmp, about ' in lines[0]
    index = open_cache(str(scenes)).index
    assert (
        index.complete
        and len(index.entries) == 12
        and index.entries.items() >= written.entries.items()
    )
    assert not list(cache_folder(scenes).rglob('*.part'))


def test_another_format_takes_the_place_of_the_first(scenes):
    write(scenes, 'bmp')
    gone = min((scenes / 'leftImg8bit/train').rglob('*.png'))
    gone.unlink()
    write(scenes, 'webp')
    files = [p for p in cache_folder(scenes).rglob('*') if p.is_file()]
    kinds = sorted(p.name.split('.', 1)[1] for p in files)
    assert kinds == ['json', *['png.png'] * 6, *['png.webp'] * 5]
    assert '0 of 11 files' in write(scenes, 'webp')[0]


def test_a_disk_with_too_little_space_is_named_before_anything_is_written(scenes, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=100_000))
    lines = []
    with pytest.raises(WriteError, match=r'takes about 0.00 GB, 0.00 GB are free. Free some, take'):
        write_cache.write_cache('cityscapes', scenes, log=lines.append)
    sizes = 6 * (128 * 64 * 3 + 54), 6 * (128 * 64 + 54 + 1024)
    assert f'12 of 12 files are to be written as bmp, about {sum(sizes)} bytes' in lines[0]
    assert not [p for p in cache_folder(scenes).rglob('*') if p.is_file()]


def test_the_command_writes_nothing_where_a_link_leads_to(scenes, tmp_path, monkeypatch, capsys):
    """Place and size come first; a set that has no copies is refused at once."""
    home = tmp_path / 'home'
    home.mkdir()
    monkeypatch.chdir(home)
    above = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob('*')}
    assert main(['cityscapes', '--root', str(scenes), '--cache']) == 0
    out = capsys.readouterr().out
    assert out.index('data/cityscapes_cache: 12 of 12 files are') < out.index(' 12 copies, ')
    changed = {p for p in tmp_path.rglob('*') if above.get(p) != p.lstat().st_mtime_ns}
    assert {path.relative_to(home).parts[0] for path in changed - {home}} == {'data'}
    assert (home / 'data/cityscapes').is_symlink()
    index = open_cache('data/cityscapes').index
    assert index.complete and len(index.entries) == 12
    assert index.command == f'python tools/prepare_data.py cityscapes --root {scenes} --cache bmp'
    assert main(['cityscapes', '--cache']) == 0  # nothing left to do
    assert 'data/cityscapes_cache: 0 of 12 files are' in capsys.readouterr().out
    assert main(['street', '--cache']) == 2
    assert '--cache is for cityscapes, camvid, ade20k, coco' in capsys.readouterr().err
    assert not (home / 'data/street').exists()
