"""Files are read as the config says: the predictions of infer are those of the test data, to the bit."""

import json
import re

import cv2
import numpy as np
import pytest
import tifffile
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from PIL import Image

from mmattn.analysis.cost import measure_cost
from mmattn.benchmarks.cases import perturb_constants
from mmattn.engine.network import build_network
from mmattn.engine.test import test as run_test
from mmattn.errors import DataError, UsageError
from mmattn.inference.attention_view import view_attention
from mmattn.inference.infer import infer
from mmattn.inference.predictor import PredictionFailed, Predictor
from tests.conftest import ROOT

SIZE = (48, 72)
SEGMENTOR = """
_base_ = ['{root}/configs/ccnet_r18_street.py']
pipeline = [
    dict(type='LoadImageFromFile', **{step}),
    dict(type='Resize', scale=(64, 48), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
model = dict(
    data_preprocessor=dict(size=(32, 32), mean={mean}, std={std}, bgr_to_rgb={flip}),
    backbone=dict(base_channels=8, stem_channels=8, in_channels={channels}),
    decode_head=dict(in_channels=64, channels=16, num_classes=3),
    auxiliary_head=dict(in_channels=32, channels=8, num_classes=3))
own = dict(
    type='BaseSegDataset', data_root='{data}', data_prefix=dict(img_path='img', seg_map_path='map'),
    metainfo=dict(classes=('a', 'b', 'c'), palette=[[40, 40, 40], [220, 60, 40], [40, 90, 220]]),
    img_suffix='{suffix}', seg_map_suffix='.png', pipeline=pipeline)
train_dataloader = dict(dataset=own)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=own)
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=own)
"""
DETECTOR = """
_base_ = ['{root}/configs/retinanet_r18_bccd.py']
pipeline = [
    dict(type='LoadImageFromFile', color_type='{colour}'),
    dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
model = dict(
    data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb={flip}),
    backbone=dict(in_channels={channels}), test_cfg=dict(score_thr=0.0, max_per_img=5))
own = dict(data_root='{data}', ann_file='truth.json', data_prefix=dict(img='img'))
train_dataloader = dict(dataset=own)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=own)
test_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline, **own))
"""


def scene(seed=0, channels=3):
    patches = np.random.default_rng(seed).integers(0, 255, (3, 4, channels)).astype(np.uint8)
    return np.repeat(np.repeat(patches, SIZE[0] // 3, 0), SIZE[1] // 4, 1)


def turned(path, tag=6):
    """A JPEG with the tag of a turned camera; its pixels lie as they are."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(scene()).save(path, exif=exif.tobytes(), quality=95)


def gray_png(path):
    cv2.imwrite(str(path), scene())


def deep_tiff(path):
    tifffile.imwrite(path, scene().astype(np.uint16) * 10, photometric='rgb')


def bands_tiff(path):
    bands = scene(channels=5).astype(np.float32) / 255
    tifffile.imwrite(path, bands, photometric='minisblack', planarconfig='contig')


TIFF = dict(imdecode_backend='tifffile', color_type='unchanged')
KINDS = dict(  # loading step, suffix, channels, mean, writer
    gray=(dict(color_type='grayscale'), '.png', 1, [110.0], gray_png),
    deep=(dict(TIFF, to_float32=True), '.tif', 3, [1100.0] * 3, deep_tiff),
    turned=(dict(color_type='color_ignore_orientation'), '.jpg', 3, [110.0] * 3, turned),
    bands=(TIFF, '.tif', 5, [0.5], bands_tiff),
    pillow=(dict(imdecode_backend='pillow'), '.jpg', 3, [110.0] * 3, lambda p: turned(p, 3)),
)


def segmentor(folder, kind):
    """-> config, weights of it and an image."""
    step, suffix, channels, mean, write = KINDS[kind]
    for name in 'img', 'map':
        (folder / name).mkdir(parents=True)
    image = folder / 'img' / f'a{suffix}'
    write(image)
    cv2.imwrite(str(folder / 'map' / 'a.png'), np.zeros(SIZE, np.uint8))
    return config(
        folder, SEGMENTOR, step=step, suffix=suffix, channels=channels, mean=mean, data=folder
    ), image


def detector(folder, kind):
    (folder / 'img').mkdir(parents=True)
    image = folder / 'img' / ('a.png' if kind == 'gray' else 'a.jpg')
    (gray_png if kind == 'gray' else turned)(image)
    truth = dict(
        images=[dict(id=7, file_name=image.name, height=SIZE[0], width=SIZE[1])],
        categories=[dict(id=i, name=n) for i, n in enumerate(('RBC', 'WBC', 'Platelets'), 1)],
        annotations=[
            dict(id=1, image_id=7, category_id=1, bbox=[9, 9, 20, 20], area=400, iscrowd=0)
        ],
    )
    (folder / 'truth.json').write_text(json.dumps(truth))
    channels, colour = dict(gray=(1, 'grayscale'), turned=(3, 'color_ignore_orientation'))[kind]
    return config(
        folder, DETECTOR, colour=colour, channels=channels, mean=[110.0] * channels, data=folder
    ), image


def config(folder, text, **values):
    values['std'] = [v / 2 for v in values['mean']]
    values['flip'] = values['channels'] == 3 and values['mean'][0] < 256
    path = folder / 'net.py'
    path.write_text(text.format(root=ROOT, **values))
    torch.manual_seed(0)
    model = perturb_constants(build_network(path)[0])
    if hasattr(model, 'decode_head'):  # several labels in an image
        torch.nn.init.normal_(model.decode_head.conv_seg.weight)
        torch.nn.init.zeros_(model.decode_head.conv_seg.bias)
        with torch.no_grad():
            maps = model.eval().extract_feat(torch.randn(1, values['channels'], 48, 64))
            model.decode_head.conv_seg.bias -= model.decode_head(maps).mean((0, 2, 3))
    weights = folder / 'net.pth'
    torch.save(dict(state_dict=model.state_dict()), weights)
    return path, weights


def as_tested(config, weights):
    """What the test data of a config give, as its network sees them."""
    predictor = Predictor.of(config, weights, device='cpu')
    dataset = DATASETS.build(predictor.cfg.test_dataloader['dataset'])
    with torch.no_grad():
        return predictor.model.test_step(pseudo_collate([dataset[0]]))[0]


@pytest.mark.parametrize('kind', KINDS)
def test_a_segmentor_labels_files_as_in_testing(kind, tmp_path):
    (config, weights), image = segmentor(tmp_path / 'data', kind)
    wanted = as_tested(config, weights).pred_sem_seg.data[0].numpy()
    assert len(np.unique(wanted)) > 1
    done = infer(config, weights, image.parent, out_dir=tmp_path / 'out', device='cpu')
    labels = cv2.imread(str(tmp_path / 'out' / 'labels' / 'a.png'), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(labels, wanted) and not done.failed
    shown = cv2.imread(str(done.pictures[0]))
    assert shown.shape[1] == wanted.shape[1] and shown.shape[0] > wanted.shape[0]
    predictor = Predictor.of(config, weights, device='cpu')
    assert np.array_equal(predictor(image).pred_sem_seg.data[0], wanted)
    assert np.array_equal(predictor(str(image)).pred_sem_seg.data[0], wanted)
    array = predictor.load(image).image
    assert np.array_equal(predictor(array).pred_sem_seg.data[0], wanted)
    if kind in ('gray', 'bands'):
        page = view_attention(config, weights, image, out_dir=tmp_path / 'view', device='cpu')
        assert cv2.imread(str(page.pictures[0])).shape[2] == 3
    if kind == 'bands':
        macs = [
            measure_cost(
                config,
                size=(64, 64),
                latency=many > 1,
                options={'model.backbone.in_channels': many},
            )
            .rows[0]
            .macs
            for many in (5, 1)
        ]
        assert macs[0] - macs[1] == 4 * (4 * 9) * 32 * 32  # bands, the stem's filters, its places


def test_gray_images_are_tested_and_inferred_alike(tmp_path):
    (config, weights), image = segmentor(tmp_path / 'data', 'gray')
    out = tmp_path / 'maps'
    run_test(config, weights, work_dir=tmp_path / 'w', out=out)
    infer(config, weights, image, out_dir=tmp_path / 'out')
    maps = [cv2.imread(str(p), -1) for p in (out / 'a.png', tmp_path / 'out' / 'labels' / 'a.png')]
    assert np.array_equal(*maps) and len(np.unique(maps[0])) > 1


@pytest.mark.parametrize('kind', ['gray', 'turned'])
def test_a_detector_finds_in_files_what_it_finds_in_testing(kind, tmp_path):
    (config, weights), image = detector(tmp_path / 'data', kind)
    wanted = as_tested(config, weights)
    assert wanted.ori_shape == SIZE and len(wanted.pred_instances) == 5
    out = tmp_path / 'out'
    done = infer(config, weights, image.parent, out_dir=out, score=0.0, device='cpu')
    rows = json.loads((out / 'results.json').read_text())
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (row['bbox'] for row in rows)]
    np.testing.assert_allclose(boxes, wanted.pred_instances.bboxes.numpy(), atol=1e-4)
    (about,) = json.loads((out / 'images.json').read_text())['images']
    assert (about['height'], about['width']) == SIZE and len(done.pictures) == 1


def test_a_video_for_a_network_of_gray_images(tmp_path):
    (config, weights), _ = segmentor(tmp_path / 'data', 'gray')
    writer = cv2.VideoWriter(
        str(tmp_path / 'film.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 10, SIZE[::-1]
    )
    writer.write(scene())
    writer.release()
    infer(config, weights, tmp_path / 'film.avi', out_dir=tmp_path / 'out')
    frame = cv2.VideoCapture(str(tmp_path / 'film.avi')).read()[1]
    predictor = Predictor.of(config, weights, device='cpu')
    wanted = predictor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)).pred_sem_seg.data[0].numpy()
    found = cv2.imread(str(tmp_path / 'out' / 'labels' / 'film' / '000001.png'), -1)
    assert np.array_equal(found, wanted)


def test_a_folder_of_files_with_the_suffix_of_the_config(tmp_path):
    (path, weights), _ = segmentor(tmp_path / 'data', 'bands')
    text = path.read_text().replace("'.tif'", "'.npy'")
    text = text.replace("type='LoadImageFromFile'", "type='LoadImageFromNpyFile'")
    path.write_text(text)
    folder = tmp_path / 'numbers'
    folder.mkdir()
    bands = scene(channels=5).astype(np.float32) / 255
    np.save(folder / 'a.npy', bands)
    done = infer(path, weights, folder, out_dir=tmp_path / 'out', device='cpu')
    labels = cv2.imread(str(tmp_path / 'out' / 'labels' / 'a.png'), cv2.IMREAD_UNCHANGED)
    wanted = Predictor.of(path, weights, device='cpu')(bands).pred_sem_seg.data[0].numpy()
    assert done.images == 1 and np.array_equal(labels, wanted)


def test_what_is_shown_of_deep_images_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmattn.inference.result_writers.warn', said.append)
    for kind, text in dict(
        deep='3 channels of float32: .* three', bands='5 channels', gray=''
    ).items():
        (config, weights), image = segmentor(tmp_path / kind, kind)
        said.clear()
        infer(config, weights, image.parent, out_dir=tmp_path / 'out' / kind, device='cpu')
        assert bool(said) == bool(text) and re.search(text, ''.join(said))


def test_more_classes_than_8_bits_hold(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmattn.inference.result_writers.warn', said.append)
    (path, _), image = segmentor(tmp_path / 'data', 'turned')
    text = path.read_text().replace('num_classes=3', 'num_classes=300')
    text = re.sub(
        r'metainfo=dict\(.*\]\]\)', "metainfo=dict(classes=[f'c{i}' for i in range(300)])", text
    )
    path.write_text(text)
    model = perturb_constants(build_network(path)[0])
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    model.decode_head.conv_seg.bias.data[:] = torch.arange(300) % 290  # 289 wins
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'net.pth')
    done = infer(path, tmp_path / 'net.pth', image.parent, out_dir=tmp_path / 'out')
    labels = cv2.imread(str(tmp_path / 'out' / 'labels' / 'a.png'), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16 and np.unique(labels).tolist() == [289]
    assert said == ['300 classes: the label maps are 16-bit PNGs.']
    colour = Predictor.of(path, tmp_path / 'net.pth').palette[289]
    assert (cv2.imread(str(done.pictures[0]))[-11, 5, ::-1] == colour).all()


@pytest.mark.parametrize('size', [(1, 70), (70, 1), (1, 1)])
def test_images_of_one_row_or_column(size, tmp_path):
    """Are looked at or left out with a reason, and never end the run."""
    for make in segmentor, detector:
        (config, weights), image = make(tmp_path / make.__name__, 'gray')
        cv2.imwrite(str(image), np.full(size, 90, np.uint8))
        cv2.imwrite(str(image.with_name('z.png')), scene())
        out = tmp_path / f'{make.__name__}_out'
        done = infer(config, weights, image.parent, out_dir=out, score=0.0)
        assert done.images == 2 and not done.failed
        assert cv2.imread(str(done.pictures[0])).shape[1] >= 64


def test_a_network_that_fails_is_one_sentence(tmp_path):
    (config, weights), image = segmentor(tmp_path / 'data', 'turned')
    options = {'model.decode_head.in_index': 0}
    with pytest.raises(UsageError, match='net.py: the network fails on an image of 64x43 as .* 64'):
        infer(config, weights, image.parent, out_dir=tmp_path / 'out', options=options)
    predictor = Predictor.of(config, weights, device='cpu')
    step = predictor.model.test_step
    predictor.model.test_step = lambda data: step(data)[data['inputs'][0].shape[1] % 2]
    with pytest.raises(PredictionFailed, match='list index out of range'):
        predictor(image)


def test_an_image_of_other_channels_is_named(tmp_path):
    (config, weights), _ = segmentor(tmp_path / 'data', 'deep')
    rgba = tmp_path / 'rgba.tif'
    tifffile.imwrite(rgba, scene(channels=4), photometric='rgb', extrasamples=['unassalpha'])
    done = infer(config, weights, rgba, out_dir=tmp_path / 'out')
    assert done.failed == {
        str(rgba): f'image {rgba} has 4 channels as the config reads it, the network takes 3.'
    }
    predictor = Predictor.of(config, weights, device='cpu')
    with pytest.raises(DataError, match='image in memory has 5 channels .* network takes 3'):
        predictor(np.zeros((8, 8, 5), np.float32))
