"""The data browser: the samples of the training, boxes at their place, counts, and the page."""

from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from mmengine.hooks import Hook
from PIL import Image

from mmattn.analysis import browse_data as module
from mmattn.analysis.browse_data import browse
from mmattn.engine.train import train
from mmattn.errors import DataError, UsageError
from mmattn.visualization.html_charts import histogram
from tests.conftest import ROOT
from tests.datasets.small_sets import box_set
from tests.engine.test_rehearsal import CONFIG, small  # noqa: F401
from tests.test_tools import tool

DETECTOR = ROOT / 'configs' / 'retinanet_r18_bccd.py'


class Page(HTMLParser):
    """The pictures, texts and chart marks of a page."""

    def __init__(self, path):
        super().__init__()
        self.pictures, self.titles, self.texts, self.path = [], [], [], []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attributes):
        self.path.append(tag)
        if tag == 'img':
            self.pictures.append(dict(attributes))

    def handle_endtag(self, tag):
        while self.path and self.path.pop() != tag:
            pass

    def handle_data(self, data):
        if self.path and self.path[-1] == 'title' and 'svg' in self.path:
            self.titles.append(data)
        elif self.path and self.path[-1] not in ('style', 'script'):
            self.texts.append(data)


@pytest.fixture
def saved(monkeypatch):
    """Pictures by file name, as they are before they are compressed."""
    pictures, save = {}, module.save_picture

    def keep(path, picture):
        pictures[path.name] = picture
        save(path, picture)

    monkeypatch.setattr(module, 'save_picture', keep)
    return pictures


@pytest.fixture
def drawn(monkeypatch):
    """Objects in the order in which they are drawn."""
    seen, draw = [], module.draw_objects

    def keep(image, objects, palette):
        seen.append(objects)
        return draw(image, objects, palette)

    monkeypatch.setattr(module, 'draw_objects', keep)
    return seen


# ---- segmentation ----------------------------------------------------------------------------------
def test_the_samples_are_those_of_the_training(small, street, tmp_path, saved):  # noqa: F811
    seen = []

    class Keep(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.extend(data_batch['inputs'])

    train(
        CONFIG, work_dir=tmp_path / 'run', cfg_options=small, seed=5, validate=False,
        rehearsal=False, hooks=[Keep()],
    )  # fmt: skip
    page = browse(CONFIG, tmp_path / 'out', samples=4, seed=5, options=small)
    for number, image in enumerate(seen):
        found = saved[f'{number:04d}_after.jpg']
        assert np.array_equal(found, image.permute(1, 2, 0).numpy())
    content = Page(page)
    assert [len(seen), len(content.pictures)] == [4, 8]
    before = [
        cv2.imread(str(path)) for path in sorted((street / 'leftImg8bit/train').rglob('*.png'))
    ]
    for number in range(4):
        found = saved[f'{number:04d}_before.jpg']
        assert any(np.array_equal(found, image) for image in before)
    for picture in content.pictures:
        for key in 'src', 'data-plain', 'data-annotated':
            assert (tmp_path / 'out' / picture[key]).is_file()


def test_shares_of_pixels_are_those_of_the_label_maps(small, street, tmp_path):  # noqa: F811
    browse(CONFIG, tmp_path, samples=9, options=small)
    for file in (tmp_path / 'pictures').glob('0001_*'):
        assert file.stat().st_size
    content = Page(browse(CONFIG, tmp_path, samples=1, options=small))
    assert len(list((tmp_path / 'pictures').iterdir())) == 4  # those of the first page are gone
    maps = sorted((street / 'gtFine/train').rglob('*_labelTrainIds.png'))
    labels = np.stack([np.asarray(Image.open(path)) for path in maps])
    road = 100 * (labels == 0).sum() / (labels != 255).sum()
    assert f'{road:.4g} %' in content.texts
    assert '128 x 64: 4 images' in content.titles
    classes = [len(set(np.unique(label)) - {255}) for label in labels]
    assert f'{classes[0]} classes: {classes.count(classes[0])} images' in content.titles


# ---- detection -------------------------------------------------------------------------------------
def detection(dataset: dict, loader: str = 'train') -> dict:
    """Options that give a loader of the detector another data set."""
    return {f'{loader}_dataloader.dataset': dict(dataset, _delete_=True)}


def crowd(content: dict) -> None:
    content['annotations'][1]['iscrowd'] = 1
    content['annotations'][3]['bbox'] = [0, 0, 32, 24]
    content['annotations'][3]['area'] = 32 * 24


def test_a_validation_shows_boxes_at_the_scale_of_its_images(tmp_path, drawn):
    dataset = box_set(tmp_path / 'set', change=crowd)
    dataset |= dict(
        test_mode=True,
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(64, 48), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs'),
        ],
    )
    options = detection(dataset, 'val')
    content = Page(browse(DETECTOR, tmp_path / 'out', split='val', samples=2, options=options))
    before, after = drawn[:2]
    assert before.boxes.tolist() == [[2, 3, 10, 9], [11, 3, 19, 9]]
    assert after.boxes.tolist() == [[4, 6, 20, 18], [22, 6, 38, 18]]
    assert before.labels.tolist() == after.labels.tolist() == [0, 2]  # the second is ignored
    assert before.masks.shape == (2, 24, 32) and after.masks.shape == (2, 48, 64)
    assert after.masks[0].sum() == pytest.approx(4 * before.masks[0].sum(), abs=40)
    assert [p['alt'] for p in content.pictures[:2]] == ['before, 32 x 24', 'after, 64 x 48']
    texts = ' '.join(content.texts)
    assert '1 red, 1 ignored' in texts and '3 images, 5 objects, 1 ignored objects' in texts
    assert {'3 in 3 images', '2 in 2 images'} <= set(content.texts)  # red and green
    assert {'2 boxes: 2 images', '1 boxes: 1 images', '32 x 24: 3 images'} <= set(content.titles)


def test_a_mosaic_of_repeated_and_joined_sets(tmp_path, drawn):
    joined = dict(
        type='ConcatDataset',
        datasets=[
            dict(type='RepeatDataset', times=2, dataset=box_set(tmp_path / 'a')),
            box_set(tmp_path / 'b', count=1),
        ],
    )
    joined['datasets'][0]['dataset']['pipeline'] += [dict(type='PackDetInputs')]
    joined['datasets'][1]['pipeline'] += [dict(type='PackDetInputs')]
    content = Page(browse(DETECTOR, tmp_path / 'joined', options=detection(joined)))
    assert len(content.pictures) == 14 and len(drawn) == 14
    assert '4 images, 8 objects' in ' '.join(content.texts)  # repeated ones count once
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(drawn[::2], drawn[1::2]))
    mosaic = dict(
        type='MultiImageMixDataset',
        dataset=box_set(tmp_path / 'c'),
        pipeline=[dict(type='Mosaic', img_scale=(64, 64)), dict(type='PackDetInputs')],
    )
    drawn.clear()
    content = Page(browse(DETECTOR, tmp_path / 'mosaic', samples=1, options=detection(mosaic)))
    before, after = drawn
    assert len(before.boxes) == 2 and len(after.boxes) > 2
    assert content.pictures[1]['alt'] == 'after, 128 x 128'
    assert any(text.endswith(', mixed with other images') for text in content.texts)


def test_what_cannot_be_shown_is_named(tmp_path, small):  # noqa: F811
    with pytest.raises(UsageError, match='--samples 0: allowed'):
        browse(CONFIG, tmp_path, samples=0)
    with pytest.raises(DataError, match='nowhere'):
        browse(CONFIG, tmp_path, options=small | {'train_dataloader.dataset.data_root': 'nowhere'})
    packed = {
        'train_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
        ]
    }
    with pytest.raises(UsageError, match='does not end with PackDetInputs or PackSegInputs'):
        browse(CONFIG, tmp_path, options=small | packed)
    assert tool('browse_data')([str(CONFIG), '--out', str(tmp_path), '--samples', '-1']) == 2


# ---- the page --------------------------------------------------------------------------------------
def test_many_numbers_share_a_column():
    text = histogram('boxes', {0: 1, 99: 2}, 'boxes', 'images')
    assert text.count('<rect') == 20 and '95 to 99 boxes: 2 images' in text


def test_the_page_opens_in_a_browser(tmp_path, chromium):
    dataset = box_set(tmp_path / 'set')
    dataset['metainfo']['classes'] = ('red', 'green')
    dataset['pipeline'] += [dict(type='PackDetInputs')]
    chromium.get(browse(DETECTOR, tmp_path / 'a b', samples=2, options=detection(dataset)).as_uri())
    assert chromium.title == 'retinanet_r18_bccd: train'
    wait = (
        'const done = arguments[0], all = [...document.images];'
        "all.forEach(i => { i.loading = 'eager'; });"
        'Promise.all(all.map(i => i.decode())).then(() => done(all.map(i => i.naturalWidth)))'
    )
    assert chromium.execute_async_script(wait) == [640] * 4
    chromium.find_element('css selector', '#annotated').click()
    assert chromium.execute_async_script(wait) == [32] * 4
    bars = 'return Array.from(document.querySelectorAll("td.bar i"), i => i.offsetWidth > 50)'
    assert all(chromium.execute_script(bars))
    assert chromium.get_log('browser') == []
