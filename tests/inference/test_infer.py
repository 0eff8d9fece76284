"""Inference on images, folders, patterns and videos, and what it leaves behind."""

import json
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.mask import decode

from mmattn.config.load import load_config
from mmattn.errors import DataError, UsageError
from mmattn.inference import result_writers as module
from mmattn.inference.infer import infer
from mmattn.inference.predictor import Predictor
from mmattn.inference.result_writers import category_ids
from tests.conftest import ROOT

SEGMENTOR = ROOT / 'configs' / 'ccnet_r18_street.py'
DETECTOR = ROOT / 'configs' / 'mask_rcnn_r18_street.py'
SMALL = {'test_dataloader.dataset.pipeline.1.scale': (96, 96)}  # of the detector


def checkpoint(config, path):
    from mmengine.registry import MODELS, init_default_scope

    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    return checkpoint(SEGMENTOR, tmp_path_factory.mktemp('weights') / 'segmentor.pth')


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return checkpoint(DETECTOR, tmp_path_factory.mktemp('weights') / 'detector.pth')


@pytest.fixture
def photos(tmp_path):
    """Three images in two folders, two of them of one name."""
    folder = tmp_path / 'photos'
    (folder / 'more').mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in 'a.png', 'a.jpg', 'more/b.png':
        cv2.imwrite(str(folder / name), generator.integers(0, 255, (48, 64, 3), np.uint8))
    return folder


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def test_label_maps_and_overlays_of_a_folder_and_of_its_own_output_none(
    segmentor, photos, tmp_path
):
    out = photos / 'out'
    for _ in range(2):
        done = infer(SEGMENTOR, segmentor, photos, out_dir=out)
        assert done.images == 3 and not done.failed
        assert names(out / 'labels') == ['a.jpg.png', 'a.png.png', 'more/b.png']
        assert names(out / 'overlay') == names(out / 'labels')
    labels = cv2.imread(str(out / 'labels' / 'more' / 'b.png'), cv2.IMREAD_UNCHANGED)
    image = cv2.imread(str(photos / 'more' / 'b.png'))
    found = Predictor.of(SEGMENTOR, segmentor)(image).pred_sem_seg.data[0].numpy()
    assert labels.dtype == np.uint8 and np.array_equal(labels, found)
    shown = cv2.imread(str(out / 'overlay' / 'more' / 'b.png'))
    assert shown.shape[1] == 64 and shown.shape[0] > 48  # the legend below
    assert done.seconds[0] >= done.seconds[1] > 0


@pytest.mark.parametrize(
    'options, given',
    [
        ({}, dict(channels_last=True, fuse_conv_bn=True)),
        (dict(compile=dict(backend='eager')), dict(amp='bfloat16')),
    ],
)
def test_options_of_the_network_change_no_label(segmentor, photos, tmp_path, options, given):
    for name, changes, flags in ('plain', {}, {}), ('fast', options, given):
        result = infer(SEGMENTOR, segmentor, photos / 'a.png', out_dir=tmp_path / name, options=changes, device='cpu', **flags)  # fmt: skip
        assert result.images == 1
    plain, fast = (cv2.imread(str(tmp_path / n / 'labels/a.png'), -1) for n in ('plain', 'fast'))
    assert (plain == fast).mean() > (0.98 if 'amp' in given else 0.999)


def test_a_pattern_keeps_the_folders_below_what_is_fixed(segmentor, photos, tmp_path):
    done = infer(SEGMENTOR, segmentor, f'{photos}/**/*.png', out_dir=tmp_path / 'out')
    assert done.images == 2
    assert names(tmp_path / 'out' / 'labels') == ['a.png', 'more/b.png']


def test_detections_load_as_coco_results(detector, photos, tmp_path, monkeypatch):
    predicted = []
    predict = Predictor.predict

    def seen(self, prepared):
        predicted.append(predict(self, prepared))
        return predicted[-1]

    monkeypatch.setattr(Predictor, 'predict', seen)
    options = {'model.test_cfg.rcnn.score_thr': 0.0, 'model.test_cfg.rcnn.max_per_img': 5}
    out = tmp_path / 'out'
    done = infer(DETECTOR, detector, photos, out_dir=out, options=SMALL | options, score=0.0)
    truth = COCO(str(out / 'images.json'))
    results = truth.loadRes(str(out / 'results.json'))
    assert [truth.imgs[i]['file_name'] for i in (1, 2, 3)] == [
        str(p) for p in sorted(photos.rglob('*.*g'))
    ]
    assert len(done.pictures) == 3 and len(results.anns) == sum(
        len(sample.pred_instances) for sample in predicted
    )
    rows = json.loads((out / 'results.json').read_text())
    assert rows
    for number, sample in enumerate(predicted, 1):
        own = [row for row in rows if row['image_id'] == number]
        found = sample.pred_instances
        for row, box, mask in zip(own, found.bboxes.tolist(), found.masks, strict=True):
            x, y, w, h = row['bbox']
            assert [x, y, x + w, y + h] == pytest.approx(box)
            assert np.array_equal(decode(row['segmentation']), mask.numpy())
    names_of = {c['id']: c['name'] for c in truth.dataset['categories']}
    predictor = Predictor.of(DETECTOR, detector, SMALL)
    assert names_of == dict(enumerate(predictor.classes, 1))


def test_categories_of_coco_have_the_numbers_of_coco():
    from mmdet.datasets import CocoDataset

    ids = category_ids(CocoDataset.METAINFO['classes'])
    assert (ids[0], ids[11], ids[12], ids[-1], len(ids)) == (1, 13, 14, 90, 80)
    assert category_ids(('cat', 'dog')) == [1, 2]


def test_a_video_becomes_a_video_with_as_many_frames(segmentor, tmp_path):
    path = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 48))
    for value in 40, 120, 200:
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    done = infer(SEGMENTOR, segmentor, path, out_dir=tmp_path / 'out')
    assert done.images == 3 and [p.name for p in done.pictures] == ['film.mp4']
    assert names(tmp_path / 'out' / 'labels') == [f'film/{n:06d}.png' for n in (1, 2, 3)]
    shown = cv2.VideoCapture(str(done.pictures[0]))
    assert shown.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and shown.get(cv2.CAP_PROP_FPS) == 10
    assert shown.read()[1].shape[1] == 64


def test_a_video_of_huge_frames_is_left_out(segmentor, tmp_path, monkeypatch):
    path = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 48))
    writer.write(np.full((48, 64, 3), 40, np.uint8))
    writer.release()
    monkeypatch.setenv(
        'MMATTN_MAX_MEGAPIXELS', str(64 * 47 / 1e6)
    )  # a smaller limit for a smaller film
    done = infer(SEGMENTOR, segmentor, path, out_dir=tmp_path / 'out')
    assert done.images == 0 and 'declares frames of more than' in done.failed[str(path)]


def _huge(path, side=16000):
    """A PNG of a few kB that declares 256 megapixels."""

    def chunk(kind, data):
        return (
            struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        )

    head = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b''.join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    )


def test_bad_images_are_named_and_the_others_done(segmentor, photos, tmp_path, monkeypatch):
    _huge(photos / 'huge.png')
    assert (photos / 'huge.png').stat().st_size < 50_000
    (photos / 'broken.jpg').write_bytes(b'\xff\xd8nothing')
    (photos / 'film.mp4').write_bytes(b'no video')
    (photos / 'empty.png').write_bytes(b'')
    cv2.imwrite(str(photos / 'large.png'), np.zeros((40, 40, 3), np.uint8))
    predict = Predictor.predict

    def scarce(self, prepared):
        if prepared['data_samples'].ori_shape == (40, 40):
            raise MemoryError('attention needs 99.0 GB beside its inputs')
        return predict(self, prepared)

    monkeypatch.setattr(Predictor, 'predict', scarce)
    done = infer(SEGMENTOR, segmentor, photos, out_dir=tmp_path / 'out')
    why = {source.removeprefix(f'{photos}/'): reason for source, reason in done.failed.items()}
    assert done.images == 3
    assert set(why) == {'huge.png', 'broken.jpg', 'film.mp4', 'empty.png', 'large.png'}
    assert 'more than 100 megapixels' in why['huge.png']
    assert 'attention needs 99.0 GB' in why['large.png']
    assert 'cannot be read' in why['film.mp4']


def test_an_image_that_is_a_single_pixel(segmentor, detector, tmp_path):
    cv2.imwrite(str(tmp_path / 'dot.png'), np.zeros((1, 1, 3), np.uint8))
    for config, weights in (SEGMENTOR, segmentor), (DETECTOR, detector):
        done = infer(config, weights, tmp_path / 'dot.png', out_dir=tmp_path / config.stem)
        assert done.images + len(done.failed) == 1


@pytest.mark.parametrize(
    'source, score, kind, message',
    [
        ('nowhere.png', 0.3, DataError, 'image .*nowhere.png does not exist'),
        ('*.tif', 0.3, DataError, 'no file fits'),
        ('more', 0.3, DataError, 'no image or video in'),
        ('a.png', 1.5, UsageError, '--score 1.5: allowed are 0 to 1'),
    ],
)
def test_refused(segmentor, photos, tmp_path, source, score, kind, message):
    (photos / 'more' / 'b.png').unlink()
    with pytest.raises(kind, match=message):
        infer(SEGMENTOR, segmentor, photos / source, out_dir=tmp_path / 'out', score=score)
    assert not (tmp_path / 'out').exists()


def test_an_error_of_the_writer_ends_the_run(segmentor, photos, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module, 'save_picture', full)
    with pytest.raises(OSError, match='No space'):
        infer(SEGMENTOR, segmentor, photos, out_dir=tmp_path / 'out')
