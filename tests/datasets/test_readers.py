"""The check of the data reads as training reads: what the stock tools train on passes, nothing else."""

import json
import logging
from copy import deepcopy
from itertools import product

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from PIL import Image

from mmattn.datasets import annotation_filter as held
from mmattn.datasets import image_io as files
from mmattn.datasets import image_limits
from mmattn.datasets import validation as check
from mmattn.datasets.build import build_dataset
from mmattn.datasets.label_maps import LabelMaps
from mmattn.datasets.validation import check_data
from mmattn.errors import DataError
from tests.datasets.small_sets import COLOURS, box_set, label_set, scene, turn, write_labels

TRAIN = 'train_dataloader'
FLAGS = ('color', 'grayscale', 'unchanged', 'color_ignore_orientation')


@pytest.fixture(autouse=True)
def segmentation():
    init_default_scope('mmseg')


@pytest.fixture
def said(monkeypatch):
    """What goes to the log."""
    lines = []

    def note(text, *, logger, level):
        assert (logger, level) == ('current', logging.WARNING)
        lines.append(text)

    monkeypatch.setattr('mmattn.log.print_log', note)
    return lines


def sample(leaf, number=0):
    """Image and label map as MMSegmentation loads them."""
    results = DATASETS.build(deepcopy(leaf))[number]
    return results['img'], results['gt_seg_map']


def counted(leaf):
    """Pixels by label, as the check counts them."""
    from concurrent.futures import ThreadPoolExecutor

    maps = LabelMaps(build_dataset(leaf), leaf, TRAIN)
    with ThreadPoolExecutor(1) as pool:
        found = list(maps.scan(pool))
    assert not any(looked.faults for looked in found), found
    return sum(looked.counts for looked in found)


def steps(label=None, image=None):
    return [
        dict(type='LoadImageFromFile', **(image or {})),
        dict(type='LoadAnnotations', **(label or {})),
    ]


# ---- label maps ----------------------------------------------------------------------------------
KINDS = 'grey', 'palette', '1 bit', '16 bits', 'colours', 'grey and alpha', 'float'
# Pillow writes no TIFF of grey and alpha, and tifffile reads 1 bit with another package
UNWRITTEN = ('tifffile', 'grey and alpha'), ('tifffile', '1 bit')


@pytest.mark.parametrize(
    'backend, kind',
    [p for p in product(['pillow', 'cv2', 'tifffile'], KINDS) if p not in UNWRITTEN],
)
def test_a_label_map_passes_if_training_reads_classes_from_it(kind, backend, tmp_path):
    suffix = '.tif' if 'tifffile' in (backend, {'float': 'tifffile'}.get(kind)) else '.png'
    leaf = label_set(tmp_path, kind=kind, suffix=suffix)
    leaf |= dict(seg_map_suffix=suffix, pipeline=steps(dict(imdecode_backend=backend)))
    try:
        labels = np.stack([sample(leaf, number)[1] for number in range(4)])
        right = labels.ndim == 3 and set(np.unique(labels)) <= {0, 1, 2}
    except Exception:
        right = False
    if not right:
        with pytest.raises(DataError):
            check_data(leaf, TRAIN)
        return
    check_data(leaf, TRAIN)
    assert np.array_equal(counted(leaf), np.bincount(labels.ravel(), minlength=256))


@pytest.mark.parametrize('value, fits', [(2, True), (65535, True), (300, False), (258, False)])
def test_of_16_bits_training_takes_the_lower_8(value, fits, tmp_path):
    leaf = label_set(tmp_path, kind='16 bits')
    values = scene(0)[1].astype(np.uint16)
    values[0, :3] = value
    write_labels(tmp_path / 'mask/0.png', values, '16 bits')
    assert (sample(leaf)[1][0, :3] == value % 256).all()
    if fits:
        assert counted(leaf)[value % 256] >= 3
        return
    with pytest.raises(DataError, match=f'mode I;16, not 8-bit .* instance ids have, e.g. {value}'):
        check_data(leaf, TRAIN)


def test_a_verdict_holds_for_its_reader_alone(tmp_path):
    leaf = label_set(tmp_path)
    check_data(leaf, TRAIN)
    leaf['pipeline'] = steps(dict(imdecode_backend='cv2'))
    with pytest.raises(DataError, match="palette, which imdecode_backend='cv2' reads as colours"):
        check_data(leaf, TRAIN)


class _ColoursToIds:
    """A step of one's own that reads colours."""

    def __call__(self, results):
        colours = np.asarray(Image.open(results['seg_map_path']).convert('RGB'))
        results['gt_seg_map'] = np.argmax([(colours == c).all(-1) for c in COLOURS], 0) + self.more
        return results

    more = 0


class _BeyondTheClasses(_ColoursToIds):
    more = 5


class _WhiteIsOne:
    """A step of one's own behind the stock loader."""

    def __call__(self, results):
        results['gt_seg_map'] = (results['gt_seg_map'] == 255).astype(np.uint8)
        return results


class _Nothing:
    def __call__(self, results):
        return None


@pytest.fixture
def own(monkeypatch):
    """Registers a class as a step."""

    def register(kind):
        monkeypatch.setitem(TRANSFORMS.module_dict, kind.__name__, kind)
        return dict(type=kind.__name__)

    return register


def test_steps_of_ones_own_are_run(own, tmp_path):
    leaf = label_set(tmp_path / 'rgb', kind='colours')
    with pytest.raises(DataError, match='mode RGB, not 8-bit single-channel: colours'):
        check_data(leaf, TRAIN)
    load = dict(type='LoadImageFromFile')
    crop = dict(type='RandomCrop', crop_size=(8, 8))
    leaf['pipeline'] = [load, own(_ColoursToIds), crop, dict(type='PackSegInputs')]
    check_data(leaf, TRAIN)
    truth = np.concatenate([scene(number)[1].ravel() for number in range(4)])
    assert np.array_equal(counted(leaf), np.bincount(truth, minlength=256))
    leaf['pipeline'] = [load, own(_BeyondTheClasses)]
    with pytest.raises(
        DataError, match=r'labels 5 \(.*\), 6 .* are no classes \(allowed 0..2 and 2'
    ):
        check_data(leaf, TRAIN)
    leaf['pipeline'] = [*steps(), own(_Nothing)]
    with pytest.raises(DataError, match='_Nothing gives none .*Correct the step'):
        check_data(leaf, TRAIN)


def test_a_step_behind_the_loader_has_the_last_word(own, tmp_path):
    leaf = label_set(tmp_path, classes=2, change=lambda labels: labels * 255, kind='grey')
    with pytest.raises(DataError, match='hold nothing but 0 and 255'):
        check_data(leaf, TRAIN)
    leaf['pipeline'] = [*steps(), own(_WhiteIsOne)]
    check_data(leaf, TRAIN)
    truth = np.concatenate([scene(number, 2)[1].ravel() for number in range(4)])
    assert np.array_equal(counted(leaf), np.bincount(truth, minlength=256))


class _TwoPictures:
    """Loads an image of a pair as change detection has it, by keys that a path alone lacks."""

    def __call__(self, results):
        results['img'] = np.dstack([np.asarray(Image.open(results['img_path']))] * 2)
        results['img_shape'] = results['label_map'] or results['img'].shape[:2]
        return results


def test_a_loader_of_ones_own_has_the_whole_sample(own, tmp_path):
    leaf = label_set(tmp_path)
    leaf['pipeline'] = [own(_TwoPictures), dict(type='LoadAnnotations')]
    check_data(leaf, TRAIN)
    write_labels(tmp_path / 'mask/1.png', scene(1, height=20)[1], 'palette')
    with pytest.raises(DataError, match='1.png is 32x20, its image 32x24'):
        check_data(leaf, TRAIN)


# ---- images --------------------------------------------------------------------------------------
def test_images_of_other_kinds_pass_if_the_config_reads_them(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    leaf = label_set(tmp_path) | dict(img_suffix='.tif')
    for number in range(4):
        bands = np.dstack([scene(number)[0]] * 2)[..., :5].astype(np.uint16)
        tifffile.imwrite(
            tmp_path / f'img/{number}.tif', bands, photometric='minisblack', planarconfig='contig'
        )
    with pytest.raises(DataError, match='it is damaged or no image'):
        check_data(leaf, TRAIN)
    leaf['pipeline'] = steps(image=dict(imdecode_backend='tifffile', color_type='unchanged'))
    assert sample(leaf)[0].shape == (24, 32, 5)
    check_data(leaf, TRAIN)
    (tmp_path / 'img/2.tif').write_text('<html>')
    with pytest.raises(
        DataError, match='2.tif cannot be read by LoadImageFromFile: .*Replace the file'
    ):
        check_data(leaf, TRAIN)


def test_what_pillow_does_not_know_passes_if_opencv_does(tmp_path):
    leaf = label_set(tmp_path) | dict(img_suffix='.hdr')
    for number in range(4):
        cv2.imwrite(str(tmp_path / f'img/{number}.hdr'), scene(number)[0].astype(np.float32) / 255)
    assert sample(leaf)[0].shape == (24, 32, 3)
    check_data(leaf, TRAIN)
    (tmp_path / 'img/2.hdr').write_text('<html>')
    with pytest.raises(DataError, match='2.hdr cannot be read: it is damaged or no image'):
        check_data(leaf, TRAIN)


@pytest.mark.parametrize('flag', FLAGS)
@pytest.mark.parametrize('orientation', range(1, 9))
def test_sizes_are_those_that_the_loader_gives(orientation, flag, tmp_path):
    """Of flat pictures, where nothing but the size tells how they lie."""
    for suffix, backend in ('.jpg', 'cv2'), ('.png', 'pillow'):
        root = tmp_path / suffix[1:]
        leaf = label_set(root, count=1, kind='grey') | dict(img_suffix=suffix)
        Image.new('RGB', (32, 24), 'grey').save(root / f'img/0{suffix}')
        turn(root / f'img/0{suffix}', orientation)
        leaf['pipeline'] = steps(image=dict(color_type=flag, imdecode_backend=backend))
        image, labels = sample(leaf)
        if image.shape[:2] == labels.shape:
            check_data(leaf, TRAIN)
        else:
            with pytest.raises(DataError, match='is 32x24, its image 24x32 after EXIF rotation'):
                check_data(leaf, TRAIN)


@pytest.mark.parametrize('orientation', [2, 3, 4])
def test_label_maps_lie_where_their_pictures_do(orientation, tmp_path, said):
    """A turn by 180 degrees or a mirror keeps the size."""
    leaf = label_set(tmp_path / 'stored')
    for path in (tmp_path / 'stored/img').iterdir():
        turn(path, orientation)
    with pytest.raises(
        DataError, match=r'4 images have an EXIF .* as the camera stored it. Set co'
    ):
        check_data(leaf, TRAIN)
    ignoring = steps(image=dict(color_type='color_ignore_orientation'))
    check_data(leaf | dict(pipeline=ignoring), TRAIN)
    leaf = label_set(tmp_path / 'turned')
    for path in (tmp_path / 'turned/mask').iterdir():
        labels = Image.open(path)
        labels.getexif()[0x0112] = orientation
        turned = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
        labels.transpose(turned.get(orientation, Image.Transpose.FLIP_TOP_BOTTOM)).save(path)
        turn(tmp_path / 'turned/img' / path.name, orientation)
    check_data(leaf, TRAIN)
    assert said == []
    with pytest.raises(DataError, match="ignores, but .* as EXIF turns it. Set color_type='color'"):
        check_data(leaf | dict(pipeline=ignoring), TRAIN)


def test_what_cannot_be_told_is_a_warning(tmp_path, said):
    leaf = label_set(tmp_path)
    for path in (tmp_path / 'img').iterdir():
        Image.new('RGB', (32, 24), 'grey').save(path)
        turn(path, 3)
    check_data(leaf, TRAIN)
    assert len(said) == 1 and '4 images have an EXIF orientation' in said[0]


def test_damage_among_turned_pictures_is_named(tmp_path):
    leaf = label_set(tmp_path)
    for path in (tmp_path / 'img').iterdir():
        turn(path, 3)
    (tmp_path / 'mask/1.png').write_text('<html>')
    data = (tmp_path / 'img/2.png').read_bytes()
    (tmp_path / 'img/2.png').write_bytes(data[: len(data) // 2])
    with pytest.raises(
        DataError, match='mask/1.png cannot be read: it is damaged or no image .and 2'
    ):
        check_data(leaf, TRAIN)


def test_a_side_of_one_pixel_is_what_training_fails_on(tmp_path):
    leaf = label_set(tmp_path)
    Image.new('RGB', (32, 1)).save(tmp_path / 'img/1.png')
    Image.new('L', (32, 1)).save(tmp_path / 'mask/1.png')
    assert sample(leaf, 1)[1].ndim == 1
    with pytest.raises(DataError, match='1.png is 32x1, and LoadAnnotations drops a side of one'):
        check_data(leaf, TRAIN)


# ---- boxes ---------------------------------------------------------------------------------------
SEGMENTATIONS = dict(
    empty=[[]],
    corners=[[2, 3, 10, 9]],
    flat=[2, 3, 10, 3, 10, 9],
    text='mask',
    number=[[float('nan')] * 6],
)


@pytest.mark.parametrize('segmentation', SEGMENTATIONS.values(), ids=SEGMENTATIONS)
def test_a_detector_of_boxes_reads_no_segmentation(segmentation, tmp_path):
    init_default_scope('mmdet')

    def change(content):
        for annotation in content['annotations']:
            annotation['segmentation'] = segmentation

    leaf = box_set(tmp_path, change=change)
    check_data(leaf, TRAIN)
    check_data(leaf, 'val_dataloader', dict(type='CocoMetric', metric='bbox'))
    with pytest.raises(DataError, match='annotation 1: '):
        check_data(leaf, 'val_dataloader', [dict(type='CocoMetric', metric=['bbox', 'segm'])])
    leaf['pipeline'][1]['with_mask'] = True
    with pytest.raises(DataError):
        check_data(leaf, TRAIN)


def test_masks_are_learnt_from_what_the_loader_leaves(tmp_path):
    init_default_scope('mmdet')

    def change(content):
        content['annotations'][0]['segmentation'] = [[2, 3, 10, 9]]

    leaf = box_set(tmp_path, change=change)
    leaf['pipeline'][1]['with_mask'] = True
    check_data(leaf, TRAIN)
    flags = [f for d in DATASETS.build(deepcopy(leaf)) for f in d['gt_ignore_flags']]
    assert held.count_loaded(leaf, masks=True).boxes == flags.count(False) == 5


def _crowds(content):
    for annotation in content['annotations']:
        annotation['iscrowd'] = 1


def _ignored(content):
    for annotation in content['annotations']:
        annotation['ignore'] = 1


NOTHING = dict(
    crowds=(_crowds, {}, r'6 groups \(iscrowd=1\)'),
    ignored=(_ignored, {}, '6 with ignore=1'),
    small=(
        None,
        dict(filter_cfg=dict(min_size=33)),
        '0 of 3 images.* 6 in images that are left out',
    ),
    none=(None, dict(indices=0), '0 of 3 images'),
)


@pytest.mark.parametrize('change, options, why', NOTHING.values(), ids=NOTHING)
def test_a_set_of_which_the_loader_keeps_nothing_is_refused(change, options, why, tmp_path):
    """And passes as soon as it keeps one box."""
    init_default_scope('mmdet')
    leaf = box_set(tmp_path, change=change) | options
    plain = deepcopy(leaf) | dict(serialize_data=False)  # which takes no empty list
    found = [i for d in DATASETS.build(plain) for i in d['instances'] if not i['ignore_flag']]
    assert not found
    with pytest.raises(DataError, match=why):
        check_data(leaf, TRAIN)
    content = json.loads((tmp_path / 'set.json').read_text())
    content['annotations'][0] |= dict(iscrowd=0, ignore=0)
    content['images'][0] |= dict(width=40, height=40)
    Image.new('RGB', (40, 40)).save(tmp_path / 'img/1.png')
    (tmp_path / 'set.json').write_text(json.dumps(content))
    leaf.pop('indices', None)
    check_data(leaf, TRAIN)
    assert held.count_loaded(leaf).boxes == (1 if change else 2 if 'filter_cfg' in options else 6)


def test_one_of_several_sets_may_hold_background_alone(tmp_path):
    init_default_scope('mmdet')
    some = box_set(tmp_path / 'some')
    none = box_set(tmp_path / 'none', change=lambda content: content['annotations'].clear())
    both = dict(type='ConcatDataset', datasets=[some, none])
    check_data(both, TRAIN)
    assert sum(len(d['instances']) for d in DATASETS.build(deepcopy(both))) == 6
    with pytest.raises(DataError, match='no training image left: 3 images, 3 without a box'):
        check_data(none, TRAIN)
    with pytest.raises(DataError, match='the 2 data sets of train_dataloader hold no box'):
        check_data(dict(type='ConcatDataset', datasets=[none, none]), TRAIN)


def test_null_is_no_crowd_to_mmdet_and_a_crash_to_scoring(tmp_path):
    init_default_scope('mmdet')
    leaf = box_set(tmp_path, change=lambda c: [a.update(iscrowd=None) for a in c['annotations']])
    check_data(leaf, TRAIN)
    assert held.count_loaded(leaf).boxes == 6
    with pytest.raises(DataError, match='iscrowd is None, allowed 0, 1'):
        check_data(leaf, 'val_dataloader')


@pytest.mark.parametrize('flag', FLAGS)
@pytest.mark.parametrize('orientation', [1, 3, 6])
def test_the_json_has_the_sizes_that_the_loader_gives(orientation, flag, tmp_path):
    import mmcv

    init_default_scope('mmdet')
    leaf = box_set(tmp_path, suffix='.jpg')
    for path in (tmp_path / 'img').iterdir():
        turn(path, orientation)
    leaf['pipeline'][0]['color_type'] = flag
    if mmcv.imread(str(path), flag=flag).shape[:2] == (24, 32):
        check_data(leaf, TRAIN)
        return
    with pytest.raises(
        DataError, match='is 24x32 after EXIF rotation, the JSON says 32x24 .3 of 3'
    ):
        check_data(leaf, TRAIN)


def test_a_class_that_reads_the_file_its_own_way_is_asked(tmp_path, monkeypatch):
    from mmdet.datasets import CocoDataset

    init_default_scope('mmdet')

    class Renaming(CocoDataset):
        def parse_data_info(self, raw):
            raw['raw_img_info']['file_name'] = raw['raw_img_info']['path']
            return super().parse_data_info(raw)

    def change(content):
        for image in content['images']:
            image['path'] = image.pop('file_name')

    monkeypatch.setitem(DATASETS.module_dict, 'Renaming', Renaming)
    leaf = box_set(tmp_path, change=change)
    with pytest.raises(DataError, match="missing 'file_name'"):
        check_data(leaf, TRAIN)
    check_data(leaf | dict(type='Renaming'), TRAIN)
    with pytest.raises(DataError, match='nothing to learn from'):
        check_data(leaf | dict(type='Renaming', metainfo=dict(classes=('blue',))), TRAIN)


def panoptic(root):
    leaf = box_set(root)
    content = json.loads((root / 'set.json').read_text())
    for category in content['categories']:
        category['isthing'] = 1
    segments = content.pop('annotations')
    content['annotations'] = [
        dict(
            image_id=image['id'],
            file_name=image['file_name'],
            segments_info=[s for s in segments if s['image_id'] == image['id']],
        )
        for image in content['images']
    ]
    (root / 'panoptic.json').write_text(json.dumps(content))
    classes = dict(classes=('red', 'green'), thing_classes=('red', 'green'), stuff_classes=())
    both = dict(img='img', seg='img')
    return leaf, leaf | dict(
        type='CocoPanopticDataset', ann_file='panoptic.json', data_prefix=both, metainfo=classes
    )


def test_panoptic_files_are_told_from_instances(tmp_path):
    init_default_scope('mmdet')
    instances, segments = panoptic(tmp_path)
    check_data(instances, TRAIN)
    check_data(segments, TRAIN)
    assert check.cached_counts(segments, tmp_path / 'panoptic.json', False).boxes == 6
    with pytest.raises(
        DataError, match="have 'segments_info', as panoptic ones do, but the data s"
    ):
        check_data(instances | dict(ann_file='panoptic.json'), TRAIN)
    with pytest.raises(
        DataError, match='its annotations are instances, .* reads panoptic segments'
    ):
        check_data(segments | dict(ann_file='set.json'), TRAIN)
    (tmp_path / 'img/2.png').unlink()
    with pytest.raises(DataError, match=r'2.png is missing \(1 of 3\)'):
        check_data(segments, TRAIN)
    content = json.loads((tmp_path / 'panoptic.json').read_text())
    for broken in [1], 7, {}:
        content['annotations'][0]['segments_info'] = broken
        (tmp_path / 'panoptic.json').write_text(json.dumps(content))
        with pytest.raises(DataError, match='panoptic.json'):
            check_data(segments, TRAIN)


# ---- how large -----------------------------------------------------------------------------------
def test_a_larger_limit_is_asked_for_and_holds_for_all_readers(tmp_path, monkeypatch):
    monkeypatch.setattr(image_limits, 'MAX_MEGAPIXELS', 24 * 32 / 1e6 - 1e-6)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)
    leaf = label_set(tmp_path)
    with pytest.raises(
        DataError, match='more than 0.000767 megapixels: 1 .*pass --max-megapixels 1.'
    ):
        check_data(leaf, TRAIN)
    with pytest.raises(DataError, match='pass --max-megapixels 1.'):
        files.read_image(tmp_path / 'img/0.png')
    monkeypatch.setenv(image_limits.MEGAPIXELS_VARIABLE, '1')
    check_data(leaf, TRAIN)
    assert files.read_image(tmp_path / 'img/0.png').shape == (24, 32, 3)
