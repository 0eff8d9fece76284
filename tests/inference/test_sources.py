"""As many outputs as inputs, under names that lead back to them; nothing else is replaced."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmattn.engine.network import build_network
from mmattn.errors import UsageError, WriteError
from mmattn.inference.infer import infer
from mmattn.inference.sources import INDEX, find_sources, output_names
from mmattn.visualization.video import VideoWriter, count_frames
from tests.conftest import ROOT

SMALL = {'model.backbone.base_channels': 8, 'model.backbone.stem_channels': 8}
SMALL |= {'model.decode_head.in_channels': 64, 'model.decode_head.channels': 16}
SMALL |= {'model.auxiliary_head.in_channels': 32, 'model.auxiliary_head.channels': 8}
CONFIG = ROOT / 'configs' / 'fcn_r18_street.py'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'net.pth'
    torch.save(dict(state_dict=build_network(CONFIG, SMALL)[0].state_dict()), path)
    return path


def film(path, frames, size=(64, 48), codec='MJPG'):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, size)
    for value in range(frames):
        writer.write(np.full((size[1], size[0], 3), 40 * value, np.uint8))
    writer.release()


def photo(path, value=100, size=(32, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file()}


def digests(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).digest() for name in files(folder)}


def test_as_many_videos_with_all_frames(weights, tmp_path):
    root = tmp_path / 'films'
    wanted = {
        'cam.2024-05-01.mp4': 3,
        'cam.2024-05-02.mp4': 4,
        'walk.mp4': 2,
        'walk.avi': 5,
        'a.b.v1.mp4': 3,
        'a.b.v2.mp4': 2,
        'more/walk.avi': 1,
    }
    for name, frames in wanted.items():
        codec = 'mp4v' if name.endswith('.mp4') else 'MJPG'
        film(root / name, frames, (97, 65) if name == 'a.b.v2.mp4' else (64, 48), codec)
    done = infer(CONFIG, weights, root, out_dir=tmp_path / 'out', options=SMALL)
    assert done.images == sum(wanted.values()) and len(done.pictures) == 7
    index = json.loads((tmp_path / 'out' / INDEX).read_text())
    for name, frames in wanted.items():
        (made,) = [k for k, v in index.items() if v == str(root / name) and k.endswith('.mp4')]
        assert count_frames(tmp_path / 'out' / made) == frames
        (labels,) = [k for k, v in index.items() if v == str(root / name) and k.endswith('/')]
        assert len(list((tmp_path / 'out' / labels).glob('*.png'))) == frames
    made = {p.relative_to(tmp_path / 'out' / 'overlay').as_posix() for p in done.pictures}
    assert made >= {'walk.mp4.mp4', 'walk.avi.mp4', 'a.b.v1.mp4', 'cam.2024-05-01.mp4'}


def test_names_are_never_the_same():
    paths = ['a.png', 'a.jpg', 'a.jpg.png', 'b/c.png', 'b.png', 'b.mp4', 'walk.mp4', 'walk/1.png']
    paths += ['walk.mp4.png', 'x.y.png', 'x.z.png']
    names = output_names([Path(p) for p in paths])
    outputs = {
        f'{name}{".mp4" if path.suffix == ".mp4" else ".png"}' for path, name in names.items()
    }
    assert len(outputs) == len(paths)
    frames = {f'{names[Path(p)]}/' for p in ('walk.mp4', 'b.mp4')}
    assert not [o for o in outputs for f in frames if o.startswith(f)]
    assert str(names[Path('x.y.png')]) == 'x.y' and str(names[Path('b/c.png')]) == 'b/c'


def test_a_source_is_never_replaced(weights, tmp_path):
    root = tmp_path / 'set'
    photo(root / 'overlay' / 'a.png')
    photo(root / 'overlay' / 'b.png')
    before = digests(root)
    for source in root / 'overlay', root / 'overlay' / 'a.png', f'{root}/overlay/*.png':
        with pytest.raises(UsageError, match='a.png would replace a source'):
            infer(CONFIG, weights, source, out_dir=root, options=SMALL)
    assert digests(root) == before


def test_label_maps_of_a_set_are_not_replaced(weights, tmp_path):
    """Also where the output goes into the data set: its own maps have the same names."""
    root = tmp_path / 'set'
    photo(root / 'images' / 'a.png')
    photo(root / 'labels' / 'a.png', 1)
    before = digests(root)
    with pytest.raises(UsageError, match='labels/a.png exists and was not written by mmattn'):
        infer(CONFIG, weights, root / 'images', out_dir=root, options=SMALL)
    (root / INDEX).write_text('[1]')
    with pytest.raises(UsageError, match='sources.json exists and was not written by mmattn'):
        infer(CONFIG, weights, root / 'labels', out_dir=root, options=SMALL)
    (root / INDEX).unlink()
    assert digests(root) == before


def test_output_within_the_images_and_a_second_run(weights, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmattn.inference.infer.warn', said.append)
    root = tmp_path / 'photos'
    for name in 'a.png', 'b.jpg', 'more/a.png':
        photo(root / name)
    before = digests(root)
    for out in root, root / 'out':
        for _ in range(2):
            done = infer(CONFIG, weights, root, out_dir=out, options=SMALL)
            assert done.images == 3
            made = {'labels/a.png', 'labels/b.png', 'labels/more/a.png'}
            made |= {name.replace('labels', 'overlay') for name in made} | {INDEX}
            assert {n for n in files(out) if not n.startswith('out/')} - before.keys() == made
        assert not said
        for name in made:
            (out / name).unlink()
    assert digests(root) == before
    infer(CONFIG, weights, root / 'a.png', out_dir=tmp_path / 'o', options=SMALL)
    infer(CONFIG, weights, root / 'b.jpg', out_dir=tmp_path / 'o', options=SMALL)
    assert said == [
        f'--out-dir {tmp_path / "o"}: overlay/a.png and 1 more of an earlier run stay there.'
    ]


def test_images_below_the_folder_of_the_output_are_found(tmp_path):
    photo(tmp_path / 'photos' / 'a.png')
    assert len(find_sources(str(tmp_path / 'photos'), tmp_path)) == 1


def test_a_video_of_which_frames_are_lost_is_no_video(tmp_path):
    writer = VideoWriter(tmp_path / 'a.mp4', float('nan'))
    for size in (48, 64), (24, 32), (60, 100), (47, 64):
        writer.write(np.full((*size, 3), 90, np.uint8))
    writer.close()
    assert count_frames(tmp_path / 'a.mp4') == 4
    video = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    assert video.get(cv2.CAP_PROP_FPS) == 25 and video.read()[1].shape == (48, 64, 3)
    writer = VideoWriter(tmp_path / 'b.mp4', 25)
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.writer.write(np.zeros((9, 9, 3), np.uint8))  # OpenCV drops it
    writer.frames += 1
    with pytest.raises(WriteError, match='b.mp4: 1 of 2 frames are in it'):
        writer.close()
    (tmp_path / 'file').write_text('')
    with pytest.raises(WriteError, match='cannot write .*file/c.mp4'):
        VideoWriter(tmp_path / 'file' / 'c.mp4', 25).write(np.zeros((8, 8, 3), np.uint8))
