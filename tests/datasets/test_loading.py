"""The steps of a pipeline on files, frames and arrays equal the data set's own."""

import cv2
import numpy as np
import pytest
import tifffile
from mmengine.registry import TRANSFORMS, init_default_scope
from mmseg.datasets import BaseSegDataset
from PIL import Image

from mmattn.datasets import image_limits as files
from mmattn.datasets import loading
from mmattn.datasets.loading import ImageReader, to_display, without_annotations
from mmattn.errors import DataError, UsageError

TRUTH = [dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


@pytest.fixture(autouse=True)
def scope():
    import mmdet.datasets  # noqa: F401, its steps

    init_default_scope('mmseg')


def picture(seed=0, size=(24, 40), channels=3, dtype=np.uint8, high=255):
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def turned(path, tag=6):
    """A JPEG stored as it is, and tagged as turned."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(picture(1)).save(path, exif=exif.tobytes(), quality=95)


def write(folder, kind):
    """-> loading step, file"""
    step, path = dict(type='LoadImageFromFile'), folder / f'{kind}.png'
    if kind == 'plain':
        cv2.imwrite(str(path), picture())
    elif kind == 'gray':
        cv2.imwrite(str(path), picture())
        step['color_type'] = 'grayscale'
    elif kind.startswith('turned'):
        path = folder / f'{kind}.jpg'
        turned(path)
        ignore = '_ignore_orientation' if kind == 'turned_ignored' else ''
        step.update(color_type=f'color{ignore}')
    elif kind == 'pillow':
        path = folder / 'pillow.jpg'
        turned(path, 1)
        step['imdecode_backend'] = 'pillow'
    elif kind == 'u16':
        path = folder / 'u16.tif'
        tifffile.imwrite(path, picture(dtype=np.uint16, high=4000), photometric='rgb')
        step.update(imdecode_backend='tifffile', color_type='unchanged', to_float32=True)
    elif kind == 'bands':
        path = folder / 'bands.tif'
        tifffile.imwrite(
            path,
            picture(channels=5, dtype=np.float32),
            photometric='minisblack',
            planarconfig='contig',
        )
        step.update(imdecode_backend='tifffile')
    return step, path


KINDS = ['plain', 'gray', 'turned', 'turned_ignored', 'pillow', 'u16', 'bands']


@pytest.mark.parametrize('kind', KINDS)
def test_a_file_is_read_as_the_data_set_reads_it(kind, tmp_path):
    step, path = write(tmp_path, kind)
    size = (40, 24) if kind == 'turned' else (24, 40)
    Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f'{path.stem}_map.png')
    rest = [dict(type='Resize', scale=(50, 30), keep_ratio=False), *TRUTH]
    dataset = BaseSegDataset(
        data_root=str(tmp_path),
        metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0], [9, 9, 9]]),
        data_prefix=dict(img_path='', seg_map_path=''),
        img_suffix=path.suffix,
        seg_map_suffix='_map.png',
        pipeline=[step, *rest],
    )
    wanted = dataset[0]
    reader = ImageReader([step, *rest])
    loaded = reader.load(path)
    assert loaded.image.shape[:2] == size
    found = reader.prepare(loaded)
    assert found['inputs'].dtype == wanted['inputs'].dtype
    assert np.array_equal(found['inputs'], wanted['inputs'])
    assert found['data_samples'].ori_shape == wanted['data_samples'].ori_shape == size
    array = loaded.image
    if kind in ('plain', 'gray', 'u16', 'bands'):
        again = reader.prepare(reader.of_array(array))
        assert np.array_equal(again['inputs'], wanted['inputs'])
    shown = to_display(loaded.image, reader.rgb)
    assert shown.shape == (*size, 3) and shown.dtype == np.uint8


def test_a_frame_of_a_video_is_read_as_a_file_of_it(tmp_path):
    for kind in 'plain', 'gray':
        step, path = write(tmp_path, kind)
        reader = ImageReader([step, *TRUTH])
        frame = cv2.imread(str(path))
        assert np.array_equal(reader.of_frame(frame).image, reader.load(path).image)
    step, _ = write(tmp_path, 'bands')
    with pytest.raises(DataError, match='a frame of a video cannot be read by LoadImageFromFile'):
        ImageReader([step, *TRUTH]).of_frame(frame)


def test_a_step_of_its_own_reads_and_another_needs_what_is_not_there(tmp_path, caplog):
    np.save(tmp_path / 'x.npy', picture(channels=5, dtype=np.float32))
    ran = []

    @TRANSFORMS.register_module(force=True)
    class ReadNumbers:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, results):
            results['img'] = np.load(results['img_path']) * self.factor
            results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
            return results

    @TRANSFORMS.register_module(force=True)
    class ShiftLabels:
        def __call__(self, results):
            ran.append(1)
            results['gt_seg_map'] = results['gt_seg_map'] - 1
            return results

    steps = [dict(type=ReadNumbers, factor=2), dict(type='ShiftLabels'), dict(type='PackSegInputs')]
    said = []
    loading.warn, kept = lambda text, **_: said.append(text), loading.warn
    try:
        reader = ImageReader([steps[0], TRUTH[0], *steps[1:]])
        for _ in range(2):
            found = reader.prepare(reader.load(tmp_path / 'x.npy'))
    finally:
        loading.warn = kept
    wanted = 2 * np.load(tmp_path / 'x.npy').transpose(2, 0, 1)
    assert np.array_equal(found['inputs'], wanted) and len(ran) == 2
    assert said == [
        "ShiftLabels of the test pipeline asks for 'gt_seg_map', which only annotations have: it "
        'is left out.'
    ]
    array = np.load(tmp_path / 'x.npy') * 2
    assert np.array_equal(reader.prepare(reader.of_array(array))['inputs'], wanted)


def test_steps_that_need_annotations_are_left_out_also_inside_others():
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='mmdet.LoadPanopticAnnotations'),
        dict(type='mmdet.LoadProposals'),
        dict(type='TestTimeAug', transforms=[[dict(type='Resize')], TRUTH[:1], TRUTH]),
    ]
    assert without_annotations(steps) == [
        steps[0],
        dict(type='TestTimeAug', transforms=[[dict(type='Resize')], TRUTH[1:]]),
    ]


@pytest.mark.parametrize(
    'step, image, came',
    [
        (
            {},
            picture(dtype=np.float32) / 255,
            r'an array of float32 \(24, 40, 3\): expected is uint8',
        ),
        ({}, picture(dtype=np.uint16), r'an array of uint16 \(24, 40, 3\): expected is uint8'),
        ({}, picture(channels=4), r'an array of uint8 \(24, 40, 4\): expected is uint8 \(height'),
        ({}, picture(channels=1), r'an array of uint8 \(24, 40\): expected .* width, 3\)'),
        ({}, picture() > 9, r'an array of bool \(24, 40, 3\) is no image'),
        ({}, picture()[None], r'an array of uint8 \(1, 24, 40, 3\) is no image'),
        ({}, picture()[:0], 'is no image: expected are numbers'),
        ({}, [1, 2], 'the image is a list: give an array or a path'),
        (dict(color_type='grayscale'), picture(), r'expected is uint8 \(height, width\) from 0'),
        (dict(to_float32=True), picture() / 255, 'float64 .*: expected is uint8 or float32'),
        (
            dict(to_float32=True),
            (picture() / 255).astype(np.float32),
            r'float32 \(24, 40, 3\) from 0 to 0.996: expected is uint8 or float32 .* from 0 to 255',
        ),
    ],
)
def test_arrays_of_another_kind_are_named(step, image, came):
    reader = ImageReader([dict(type='LoadImageFromFile', **step), *TRUTH])
    with pytest.raises(DataError, match=came):
        reader.of_array(image)


def test_arrays_of_the_right_kind_pass():
    gray = ImageReader([dict(type='LoadImageFromFile', color_type='grayscale'), *TRUTH])
    image = picture(channels=1)
    assert np.array_equal(gray.of_array(image[..., None]).image, image)
    wide = ImageReader([dict(type='LoadImageFromFile', to_float32=True), *TRUTH])
    assert wide.of_array(picture()).image.dtype == np.float32
    assert np.array_equal(wide.of_array(picture().astype(np.float32)).image, picture())
    assert wide.of_array(np.zeros((4, 4, 3), np.float32)).image.max() == 0


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    reader = ImageReader([dict(type='LoadImageFromFile'), *TRUTH])
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8nothing')
    (tmp_path / 'text.tif').write_text('no image')
    _, whole = write(tmp_path, 'plain')
    (tmp_path / 'short.png').write_bytes(whole.read_bytes()[:-20])
    _, bands = write(tmp_path, 'bands')
    for name, why in {
        'none.png': 'none.png does not exist',
        'broken.jpg': 'broken.jpg cannot be read: it is damaged or no image',
        'text.tif': 'text.tif cannot be read by LoadImageFromFile: it is damaged or no image',
        'short.png': 'short.png is cut short',
        '.': 'is a folder',
    }.items():
        with pytest.raises(DataError, match=why):
            reader.load(tmp_path / name)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', Image.MAX_IMAGE_PIXELS)  # which follows
    monkeypatch.setattr(files, 'MAX_MEGAPIXELS', 24 * 39 / 1e6)
    for path in whole, bands:
        with pytest.raises(DataError, match='declares more than .* megapixels'):
            reader.load(path)


def test_pipelines_that_cannot_read(monkeypatch):
    with pytest.raises(UsageError, match='no step LoadNothing is registered'):
        ImageReader([dict(type='LoadNothing')])
    with pytest.raises(UsageError, match='step LoadImageFromFile cannot be built: .*colour'):
        ImageReader([dict(type='LoadImageFromFile', colour='gray')])
    monkeypatch.setattr(loading.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match='is not installed. Run: pip install tifffile'):
        ImageReader([dict(type='LoadImageFromFile', imdecode_backend='tifffile')])


def test_what_is_shown():
    plain = picture()
    assert np.array_equal(to_display(plain), plain)
    assert np.array_equal(to_display(plain.astype(np.float32)), plain)  # as of to_float32
    assert np.array_equal(to_display(plain, rgb=True), plain[..., ::-1])
    gray = picture(channels=1)
    assert np.array_equal(to_display(gray), np.dstack([gray] * 3))
    assert np.array_equal(to_display(picture(channels=5)), picture(channels=5)[..., :3])
    deep = np.array([[1000, 2000, 3000]], np.uint16)
    assert to_display(deep)[0, :, 0].tolist() == [0, 128, 255]
    share = np.array([[0.0, 0.5, 1.0, np.nan]])
    assert to_display(share)[0, :, 1].tolist() == [0, 128, 255, 0]
