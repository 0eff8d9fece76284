"""A trained network over images and videos: pictures, label maps and detections as files."""

import json
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mmattn.config.published_weights import resolve
from mmattn.datasets.image_limits import check_megapixels
from mmattn.datasets.loading import Loaded, is_plain
from mmattn.errors import DataError, Exit, MmattnError, UsageError, WriteError, explain
from mmattn.files import check_writable
from mmattn.log import warn
from mmattn.progress import track
from mmattn.visualization.comparison import overlay, save_picture, side_by_side
from mmattn.visualization.objects import Objects, draw_objects
from mmattn.visualization.video import VideoWriter

from .predictor import CannotRun, Predictor
from .sources import Outputs, added, find_sources, is_video

_AHEAD = 4  # pictures that may wait to be written
_MOST_NAMES = 30  # classes that the legend of a video holds; it cannot change with what is seen
_8_BITS = 255  # classes that a label map of 8 bits holds; 255 itself means ignored
_UNUSED_COCO_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


@dataclass
class Inferred:
    """What was done.

    Attributes:
        pictures: the overlays and videos written.
        images: how many images and frames went through the network.
        seconds: from the first image to the last file, and in the network alone.
        failed: image -> why it was left out.
    """

    pictures: list[Path] = field(default_factory=list)
    images: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)
    failed: dict[str, str] = field(default_factory=dict)


class _Frame(NamedTuple):
    """An image, or a frame of a video.

    Attributes:
        source: for messages.
        out: where its files go, below the folders, without suffix.
        image: as the config's loader gives it; or why it cannot be read.
        rate: frames a second of the video that it is part of; None of an image.
        prepared: what the network takes.
        shown: (H, W, 3) uint8 BGR to draw on.
    """

    source: str
    out: Path
    image: Loaded | Exception
    rate: float | None = None
    prepared: dict | None = None
    shown: np.ndarray | None = None


def infer(
    config: str | Path,
    checkpoint: str | Path | None,
    source: str | Path,
    *,
    out_dir: str | Path,
    attention: str | None = None,
    options: dict | list[str] | None = None,
    score: float = 0.3,
    device: str | None = None,
) -> Inferred:
    """Run a network over an image, a folder of images, what fits a glob pattern, or a video.

    Images are read by the config's own loading step. Per image `overlay/<name>.png`, what was found
    drawn over it above a legend; of a video, `overlay/<name>.mp4`. `<name>` is the path below
    `source`, with its suffix where another file has the same without; `sources.json` has the source
    of each. A segmentor also writes `labels/<name>.png`, the class index of each pixel from 0 on,
    also where the data set has `reduce_zero_label`; of a video one for each frame; of 16 bits where
    there are more than 255 classes. A detector writes `results.json`, a list in COCO's format
    of results, and `images.json`, the images and categories that its ids stand for; together
    pycocotools loads them: `COCO('images.json').loadRes('results.json')`.

    Args:
        config, checkpoint: the network and its weights, as `mmattn.load_model` takes them.
        source: what is looked at.
        out_dir: the folder for all that.
        attention: blocks to add; by default those that the checkpoint was trained with.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        score: detections below it are not drawn; all are in the JSON.
        device: 'cpu', 'cuda:0', ...; None for the best.

    Raises:
        DataError: nothing there to look at.
        UsageError: `score` is not within 0 to 1; a file would be replaced that no run wrote.
        WriteError: a file cannot be written, or frames are missing in a video.
        MmattnError: config or checkpoint, of the kind that fits.
    """
    if not 0 <= score <= 1:
        raise UsageError(f'--score {score}: allowed are 0 to 1.')
    out_dir = Path(out_dir)
    try:
        paths = find_sources(str(source), out_dir)
        check_writable(out_dir, '--out-dir')
    except DataError:
        if not Path(source).is_dir():
            raise
        paths = {}
    predictor = Predictor.of(*resolve(config, checkpoint, attention), options, attention, device)
    if not paths or predictor.suffix:  # which the config names, such as .npy
        paths = find_sources(str(source), out_dir, predictor.suffix)
        check_writable(out_dir, '--out-dir')
    done, inside, unfit = Inferred(), 0.0, None
    kind = _Labels if predictor.segments else _Detections
    outputs = Outputs(out_dir, kind.outputs(paths))
    if stale := outputs.stale():
        more = f' and {len(stale) - 1} more' if len(stale) > 1 else ''
        warn(f'--out-dir {out_dir}: {stale[0]}{more} of an earlier run stay there.')
    outputs.write()
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as reader, kind(predictor, out_dir, score) as files:
        frames = _frames(paths, predictor)

        def read() -> _Frame | None:
            frame = next(frames, None)
            if frame is None or isinstance(frame.image, Exception):
                return frame
            try:
                shown = predictor.show(frame.image)
                return frame._replace(prepared=predictor.prepare(frame.image), shown=shown)
            except Exception as error:  # raised where it is dealt with
                return frame._replace(image=error)

        def ahead() -> Iterator[_Frame]:
            coming = reader.submit(read)
            while (frame := coming.result()) is not None:
                coming = reader.submit(read)
                yield frame

        for frame in track(ahead(), total=_count(paths), title=f'infer -> {out_dir}'):
            began = time.perf_counter()
            try:
                if isinstance(frame.image, Exception):
                    raise frame.image
                sample = predictor.predict(frame.prepared)
            except Exception as error:
                known = explain(error)
                if isinstance(error, CannotRun):
                    unfit = unfit or error
                elif not known or known[0] not in (Exit.DATA, Exit.MEMORY):
                    raise
                done.failed[frame.source] = known[1]
                continue
            inside += time.perf_counter() - began
            done.images += 1
            files.add(frame, sample)
    if unfit and not done.images:
        raise unfit
    done.pictures = files.pictures
    done.seconds = time.perf_counter() - start, inside
    return done


class _Files:
    """Writes what was found, in a thread of its own, a few pictures behind."""

    def __init__(self, predictor: Predictor, out_dir: Path, score: float) -> None:
        self.predictor, self.out_dir, self.score = predictor, out_dir, score
        self.pictures: list[Path] = []
        self.videos: dict[Path, VideoWriter] = {}
        self.made_for_display = False
        self.writer, self.waiting = ThreadPoolExecutor(1), deque[Future]()

    def __enter__(self) -> '_Files':
        return self

    def __exit__(self, *raised) -> None:
        try:
            while self.waiting and not raised[0]:
                self.waiting.popleft().result()
        finally:
            self.writer.shutdown(cancel_futures=True)
            for video in self.videos.values():
                video.close(check=not raised[0])

    @staticmethod
    def outputs(paths: dict[Path, Path]) -> dict[str, str]:
        """The files that will be written for sources -> the source of each."""
        suffix = {True: '.mp4', False: '.png'}
        return {f'overlay/{added(n, suffix[is_video(p)])}': str(p) for p, n in paths.items()}

    def add(self, frame: _Frame, sample) -> None:
        """Take over what was found in a frame."""
        image = frame.image.image
        gray = image.dtype == np.uint8 and image.ndim == 2
        if not self.made_for_display and not gray and not is_plain(image):
            self.made_for_display = True
            channels = image.shape[2] if image.ndim > 2 else 1
            warn(
                f'{frame.source} has {channels} channel{"s" if channels > 1 else ""} of '
                f'{image.dtype}: the pictures show '
                f'{"the first three" if channels > 2 else "the first as gray"}'
                f'{"" if image.dtype == np.uint8 else ", scaled to 8 bits"}.'
            )
        self.waiting.append(self.writer.submit(self.write, frame, sample))
        if len(self.waiting) > _AHEAD:
            self.waiting.popleft().result()

    def write(self, frame: _Frame, sample) -> None:
        raise NotImplementedError

    def show(self, frame: _Frame, picture: np.ndarray, present: np.ndarray) -> None:
        """Write a picture above its legend, or add it to its video."""
        classes, palette = self.predictor.classes, self.predictor.palette
        if frame.rate is None:
            path = self.out_dir / 'overlay' / added(frame.out, '.png')
            save_picture(path, side_by_side({'': picture}, present, classes, palette))
            self.pictures.append(path)
            return
        if len(classes) <= _MOST_NAMES:
            picture = side_by_side({'': picture}, range(len(classes)), classes, palette)
        path = self.out_dir / 'overlay' / added(frame.out.parent, '.mp4')
        if path not in self.videos:
            self.finish()
            self.videos[path] = VideoWriter(path, frame.rate)
            self.pictures.append(path)
        self.videos[path].write(picture)

    def finish(self) -> None:
        """Close the videos whose frames have all come: they come one after another."""
        for video in self.videos.values():
            video.close()


class _Labels(_Files):
    """Of a segmentor."""

    @staticmethod
    def outputs(paths: dict[Path, Path]) -> dict[str, str]:
        files = _Files.outputs(paths)
        for path, name in paths.items():
            files[f'labels/{name}/' if is_video(path) else f'labels/{added(name, ".png")}'] = str(
                path
            )
        return files

    def __init__(self, *args) -> None:
        super().__init__(*args)
        count = len(self.predictor.classes)
        self.dtype = np.uint8 if count <= _8_BITS else np.uint16
        if count > _8_BITS:
            warn(f'{count} classes: the label maps are PNGs of 16 bits.')

    def write(self, frame: _Frame, sample) -> None:
        labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(self.dtype)
        save_picture(self.out_dir / 'labels' / added(frame.out, '.png'), labels)
        picture = overlay(frame.shown, labels, self.predictor.palette)
        self.show(frame, picture, np.unique(labels))


class _Detections(_Files):
    """Of a detector."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.images, self.results = [], []
        self.ids = category_ids(self.predictor.classes)

    @staticmethod
    def outputs(paths: dict[Path, Path]) -> dict[str, str]:
        return _Files.outputs(paths) | {'images.json': '', 'results.json': ''}

    def write(self, frame: _Frame, sample) -> None:
        instances = sample.pred_instances
        height, width = frame.shown.shape[:2]
        number = len(self.images) + 1
        self.images.append(dict(id=number, file_name=frame.source, height=height, width=width))
        self.results += coco_results(Objects.of(instances), number, self.ids)
        shown = Objects.of(instances, self.score)
        picture = draw_objects(frame.shown, shown, self.predictor.palette)
        self.show(frame, picture, np.unique(shown.labels))

    def __exit__(self, *raised) -> None:
        super().__exit__(*raised)
        if raised[0]:
            return
        pairs = zip(self.ids, self.predictor.classes, strict=True)
        categories = [dict(id=number, name=name) for number, name in pairs]
        about = dict(images=self.images, categories=categories, annotations=[])
        for name, content in ('images', about), ('results', self.results):
            path = self.out_dir / f'{name}.json'
            try:
                path.write_text(json.dumps(content), encoding='utf-8')
            except OSError as error:
                raise WriteError(f'cannot write {path}: {error.strerror}.') from error


def coco_results(objects: Objects, image_id: int, ids: list[int]) -> list[dict]:
    """Objects in COCO's format of results: boxes x, y, width, height; masks run-length encoded."""
    from pycocotools.mask import encode

    found = []
    for i, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
        found.append(
            dict(
                image_id=image_id,
                category_id=ids[objects.labels[i]],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                score=float(objects.scores[i]),
            )
        )
        if objects.masks is not None:
            code = encode(np.asfortranarray(objects.masks[i].view(np.uint8)))
            found[-1]['segmentation'] = dict(code, counts=code['counts'].decode())
    return found


def category_ids(classes: tuple[str, ...]) -> list[int]:
    """Those of COCO for the classes of COCO, which leave ten numbers out; else 1, 2, ..."""
    from mmdet.datasets import CocoDataset

    if tuple(classes) == CocoDataset.METAINFO['classes']:
        return [number for number in range(1, 91) if number not in _UNUSED_COCO_IDS]
    return list(range(1, len(classes) + 1))


def _frames(paths: dict[Path, Path], predictor: Predictor) -> Iterator[_Frame]:
    for path, out in paths.items():
        if is_video(path):
            yield from _video(path, out, predictor)
            continue
        try:
            image = predictor.load(path)
        except MmattnError as error:
            image = error
        yield _Frame(str(path), out, image)


def _video(path: Path, out: Path, predictor: Predictor) -> Iterator[_Frame]:
    video = cv2.VideoCapture(str(path))
    try:
        pixels = video.get(cv2.CAP_PROP_FRAME_WIDTH) * video.get(cv2.CAP_PROP_FRAME_HEIGHT)
        try:
            check_megapixels(f'video {path} declares frames of', pixels)
        except DataError as error:
            yield _Frame(str(path), out, error)
            return
        rate, number = video.get(cv2.CAP_PROP_FPS) or 25.0, 0
        while True:
            there, image = video.read()
            if not there:
                break
            number += 1
            try:
                image = predictor.reader.of_frame(image)
            except MmattnError as error:
                yield _Frame(str(path), out, DataError(f'video {path}: {error}'))
                return
            yield _Frame(f'{path}#{number}', out / f'{number:06d}', image, rate)
        if not number:
            yield _Frame(str(path), out, DataError(f'video {path} cannot be read.'))
    finally:
        video.release()


def _count(paths: dict[Path, Path]) -> int | None:
    """Images and frames; None where a video does not say."""
    total = 0
    for path in paths:
        if not is_video(path):
            total += 1
            continue
        video = cv2.VideoCapture(str(path))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 1
        video.release()
        if frames < 1:
            return None
        total += frames
    return total
