"""What a test writes: as many files as images, under names that lead back, never over a source."""

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from mmattn.errors import UsageError, WriteError
from mmattn.evaluation.output_names import png_names
from tests.conftest import ROOT, tiny_options
from tests.squares import by_heart, config, recite, save, squares

FCN = ROOT / 'configs' / 'fcn_r18_street.py'


def digests(folder):
    files = (path for path in Path(folder).rglob('*') if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob('*') if p.is_file())


@pytest.fixture
def detector(tmp_path, monkeypatch):
    """Six images in three folders, two names; a call of the test, and the root of the set."""
    root = tmp_path / 'set'
    squares(root, 'train', 2)
    truth = squares(root, 'val', 6, names=lambda i: f'cam{i % 3}/{i // 3:04d}.png')
    recite(monkeypatch, by_heart(truth))
    path = config(tmp_path / 'own.py', root)

    def run(extra='', **options):
        path.write_text(path.read_text() + extra)
        return evaluate(path, None, work_dir=tmp_path / 'work', **options)

    return run, root


@pytest.fixture
def segmentor(street, tmp_path):
    """The two scenes of the test split under one name in two folders."""
    root = tmp_path / 'street'
    for kind in 'leftImg8bit', 'gtFine':
        files = sorted((street / kind / 'test').rglob('*.png'))
        files = [f for f in files if f.name.endswith(('leftImg8bit.png', 'labelTrainIds.png'))]
        for day, file in enumerate(files):
            to = root / kind / 'test' / f'day{day}' / f'0001{_ending(file)}'
            to.parent.mkdir(parents=True)
            shutil.copy(file, to)
    options = tiny_options(street) | {'test_dataloader.dataset.data_root': str(root)}

    def run(**more):
        changes = options | more.pop('cfg_options', {})
        return evaluate(FCN, None, work_dir=tmp_path / 'work', cfg_options=changes, **more)

    return run, root


def _ending(file):
    image = file.name.endswith('_leftImg8bit.png')
    return '_leftImg8bit.png' if image else '_gtFine_labelTrainIds.png'


# ---- names ---------------------------------------------------------------------------------------
def test_pictures_of_detections_keep_their_folders(detector, tmp_path):
    run, root = detector
    run(show_dir=tmp_path / 'show')
    assert names(tmp_path / 'show') == [f'cam{i}/{n:04d}.png' for i in range(3) for n in range(2)]
    found = {f: cv2.imread(str(tmp_path / 'show' / f)) for f in names(tmp_path / 'show')}
    for name, picture in found.items():  # each of its own image: the grey tells which
        grey = cv2.imread(str(root / 'images' / name))[0, 0, 0]
        assert (picture == grey).all(-1).sum() > 1000


def test_maps_and_pictures_of_segments_keep_their_folders(segmentor, tmp_path, street):
    run, _ = segmentor
    run(show_dir=tmp_path / 'show', out=tmp_path / 'maps')
    expected = [f'day{i}/0001_leftImg8bit.png' for i in range(2)]
    assert names(tmp_path / 'show') == names(tmp_path / 'maps') == expected
    evaluate(
        FCN, None, work_dir=tmp_path / 'flat', out=tmp_path / 'flat_maps',
        cfg_options=tiny_options(street),
    )  # fmt: skip
    flat = sorted((tmp_path / 'flat_maps').glob('*.png'))
    for name, other in zip(expected, flat, strict=True):
        values = [np.array(Image.open(p)) for p in (tmp_path / 'maps' / name, other)]
        assert np.array_equal(*values)


def test_mmsegs_own_metric_keeps_them_too(segmentor, tmp_path):
    run, _ = segmentor
    stock = {'test_evaluator.type': 'IoUMetric'}
    metrics = run(out=tmp_path / 'maps', cfg_options=stock)
    assert len(names(tmp_path / 'maps')) == 2
    assert run(cfg_options=stock)['mIoU'] == pytest.approx(metrics['mIoU'], abs=0.011)


def test_names_that_differ_in_their_suffix_or_not_at_all():
    class Set:
        def __init__(self, *paths):
            self.paths = paths

        def __len__(self):
            return len(self.paths)

        def get_data_info(self, index):
            return dict(img_path=self.paths[index])

    def named(*paths):
        return [str(path) for path in png_names(Set(*paths)).values()]

    assert named('/d/x/a.png', '/d/y/b.jpg') == ['a.png', 'b.png']
    assert named('/d/x/a.png', '/d/y/a.png', '/d/y/z/b.png') == ['x/a.png', 'y/a.png', 'y/z/b.png']
    assert named('/d/a.png', '/d/a.jpg', '/d/b.jpg') == ['a.png.png', 'a.jpg.png', 'b.png']
    assert named('/d/a.png', '/d/a.png') == ['a.png']
    assert named('/d/a.v1.png', '/d/a.v2.png') == ['a.v1.png', 'a.v2.png']
    assert named('a/1.jpg', 'b/1.jpg') == ['a/1.png', 'b/1.png']


# ---- sources -------------------------------------------------------------------------------------
def test_photographs_are_never_written_over(detector, tmp_path):
    run, root = detector
    before = digests(root)
    link = tmp_path / 'link'
    link.symlink_to(root / 'images')
    for place in root / 'images', link, root / 'images' / 'cam0' / '..':
        with pytest.raises(UsageError, match='cam0/0000.png would replace .*/cam0/0000.png, which'):
            run(show_dir=place)
    assert digests(root) == before
    with pytest.raises(UsageError, match='would be next to .*/val.json') as info:
        run('test_dataloader["dataset"]["indices"] = 1\n', show_dir=root)
    assert 'Choose another folder with --show-dir' in str(info.value)
    assert digests(root) == before
    run(show_dir=tmp_path / 'another')
    assert digests(root) == before and len(names(tmp_path / 'another')) == 1


def test_a_picture_of_another_suffix_is_not_put_among_photographs(detector, tmp_path):
    """Where a data set reads all of a folder, it would be one of its images next time."""
    run, root = detector
    data = json.loads((root / 'val.json').read_text())
    for i, image in enumerate(data['images']):
        old, image['file_name'] = image['file_name'], f'{i}.jpg'
        cv2.imwrite(str(root / 'images' / f'{i}.jpg'), cv2.imread(str(root / 'images' / old)))
    save(root / 'val.json', data)
    with pytest.MonkeyPatch.context() as patch:
        recite(patch, by_heart(data))
        with pytest.raises(UsageError, match='0.png would be next to .*/images/'):
            run(show_dir=root / 'images')
    assert not (root / 'images' / '0.png').exists()


def test_label_maps_are_never_written_over_or_read_next_time(segmentor, tmp_path):
    run, root = segmentor
    before = digests(root)
    for flag in 'out', 'show_dir':
        with pytest.raises(UsageError, match=r'day0/0001_leftImg8bit.png would replace'):
            run(**{flag: root / 'leftImg8bit' / 'test'})
        with pytest.raises(UsageError, match=r'day0/0001_leftImg8bit.png would be next to'):
            run(**{flag: root / 'gtFine' / 'test'})
        inside = root / 'leftImg8bit' / 'test' / f'new_{flag}'
        with pytest.raises(UsageError, match='is inside .*/leftImg8bit/test, all images of which'):
            run(**{flag: inside})
        inside.rmdir()
    assert digests(root) == before


# ---- --out ---------------------------------------------------------------------------------------
def test_a_file_for_a_folder_is_refused_before_the_test(detector, tmp_path):
    run, _ = detector
    (tmp_path / 'there.json').write_text('kept')
    (tmp_path / 'plain').write_text('kept')
    for name in 'there.json', 'plain', 'new.json', 'new.PNG':
        with pytest.raises(
            UsageError, match=f'--out .*{name}: .* a folder. Name one, such'
        ) as info:
            run(out=tmp_path / name)
    assert not (tmp_path / 'new.json').exists() and (tmp_path / 'plain').read_text() == 'kept'
    suggested = Path(str(info.value).split('such as ')[1].split(',')[0])  # the remedy
    run(out=suggested)
    assert names(suggested) == ['results.bbox.json']
    run(out=tmp_path / 'all.pkl')
    assert (tmp_path / 'all.pkl').stat().st_size > 500
    (tmp_path / 'folder.pkl').mkdir()
    with pytest.raises(UsageError, match='--out .*folder.pkl is a folder'):
        run(out=tmp_path / 'folder.pkl')


def test_folders_with_a_dot_and_folders_that_are_not_empty_are_taken(detector, tmp_path):
    run, _ = detector
    for name in 'run.v1', 'used.json':
        folder = tmp_path / name
        if name == 'used.json':
            folder.mkdir()
            (folder / 'mine.txt').write_text('kept')
        run(out=folder)
        assert 'results.bbox.json' in names(folder)
    assert (folder / 'mine.txt').read_text() == 'kept'


def test_results_are_not_written_over_annotations(detector):
    run, root = detector
    shutil.move(root / 'val.json', root / 'results.bbox.json')
    before = digests(root)
    changed = {'test_dataloader.dataset.ann_file': 'results.bbox.json'}
    with pytest.raises(UsageError, match='results.bbox.json would replace .*/results.bbox.json'):
        run(out=root, cfg_options=changed)
    assert digests(root) == before


def test_a_metric_that_writes_no_files(detector, tmp_path):
    run, _ = detector
    voc = "test_evaluator = dict(_delete_=True, type='VOCMetric', metric='mAP')\n"
    with pytest.raises(
        UsageError, match='VOCMetric writes no files. Name a .pkl .* such as (.*).$'
    ) as e:
        run(voc, out=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert str(tmp_path / 'out.pkl') in str(e.value)


def test_every_metric_of_several_is_looked_at(detector, tmp_path):
    run, _ = detector
    two = "test_evaluator = [dict(type='VOCMetric', metric='mAP', prefix='voc'), dict(type='CocoMetric')]\n"
    run(two, out=tmp_path / 'out')
    assert names(tmp_path / 'out') == ['results.bbox.json']


def test_a_folder_that_cannot_be_written(detector, tmp_path):
    run, _ = detector
    (tmp_path / 'file').write_text('kept')
    for flag in 'out', 'show_dir':
        with pytest.raises(WriteError, match='cannot write to .*file/folder'):
            run(**{flag: tmp_path / 'file' / 'folder'})


# ---- what is in them -----------------------------------------------------------------------------
@pytest.mark.parametrize('place', ['file/results', '/proc/none/results'])
def test_files_of_a_metric_that_cannot_be_written(detector, tmp_path, place):
    """Before the first step, of a test and of a training."""
    run, _ = detector
    (tmp_path / 'file').write_text('taken')
    prefix = str(tmp_path / place)
    key = 'evaluator.outfile_prefix'
    with pytest.raises(WriteError, match=rf'Choose another folder with test_{key}'):
        run(cfg_options={f'test_{key}': prefix})
    with pytest.raises(WriteError, match=rf'Choose another folder with val_{key}'):
        train(tmp_path / 'own.py', work_dir=tmp_path / 'run', cfg_options={f'val_{key}': prefix})
    run(cfg_options={f'test_{key}': str(tmp_path / 'new/deep/results')})
    assert names(tmp_path / 'new') == ['deep/results.bbox.json']


def test_a_norm_that_fails_on_one_image_of_a_test_has_no_remedy(tmp_path):
    """Groups of one value each: no size of a training batch changes that."""
    squares(tmp_path, 'train', 2), squares(tmp_path, 'val', 2)
    path = config(tmp_path / 'own.py', tmp_path)
    with pytest.raises(UsageError, match=r'Expected more than 1 value per channel.*gn\)\.$'):
        evaluate(path, None, work_dir=tmp_path / 'work')


def test_maps_of_a_set_whose_0_is_nothing_are_those_of_infer(segmentor, tmp_path, monkeypatch):
    """Class indices from 0; for a benchmark's server, as that counts."""
    from mmattn.evaluation.iou_metric import IoUMetric

    monkeypatch.setattr(IoUMetric, '_is_cityscapes', lambda self: False)
    run, root = segmentor
    for path in (root / 'gtFine').rglob('*.png'):
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels == 255, 0, labels + 1).astype(np.uint8)).save(path)
    reduced = {'test_dataloader.dataset.reduce_zero_label': True}
    run(out=tmp_path / 'maps', cfg_options=reduced)
    run(out=tmp_path / 'sent', cfg_options=reduced | {'test_evaluator.format_only': True})
    (name, *_) = names(tmp_path / 'maps')
    ours, sent = (np.array(Image.open(tmp_path / k / name)) for k in ('maps', 'sent'))
    assert np.array_equal(ours + 1, sent)
    log = '\n'.join(path.read_text() for path in (tmp_path / 'work').rglob('*.log'))
    assert 'as class indices from 0' in log
    assert 'as class indices + 1, as the benchmark counts (format_only)' in log


def test_pictures_are_drawn_on_what_the_config_reads(detector, tmp_path):
    """A photograph with an orientation that this config does not follow."""
    run, root = detector
    data = json.loads((root / 'val.json').read_text())
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in data['images']:
        path = root / 'images' / image['file_name']
        Image.open(path).save(path.with_suffix('.jpg'), exif=exif.tobytes(), quality=95)
        image['file_name'] = str(Path(image['file_name']).with_suffix('.jpg'))
    save(root / 'val.json', data)
    stored = """
test_dataloader['dataset']['pipeline'] = [dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),
    *test_dataloader['dataset']['pipeline'][1:]]
"""
    with pytest.MonkeyPatch.context() as patch:
        recite(patch, by_heart(data))
        run(stored, show_dir=tmp_path / 'show')
    shown = cv2.imread(str(tmp_path / 'show' / 'cam0' / '0000.png'))
    assert shown.shape[1] > 1.2 * shown.shape[0]  # two panels beside each other, both landscape
