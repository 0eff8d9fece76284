"""Inference over images and videos: overlays, label maps and detections as files."""

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
from mmattn.text import some
from mmattn.visualization.comparison import overlay, save_picture, side_by_side
from mmattn.visualization.objects import Objects, draw_objects
from mmattn.visualization.video import VideoWriter

from .predictor import PredictionFailed, Predictor
from .sources import OutputIndex, append_suffix, find_sources, is_video

_MAX_QUEUED = 4  # results that may wait to be written
_MAX_LEGEND = 30  # classes in the legend of a video, which is the same for all frames
_MAX_8_BIT_CLASSES = 255  # in a label map of 8 bits; 255 itself means ignored
_UNUSED_COCO_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


@dataclass
class InferenceResult:
    """Result of `infer`.

    Attributes:
        pictures: overlays and videos written.
        images: number of images and frames that the network processed.
        seconds: time in total, and in the network alone.
        failed: image -> reason why it was skipped.
    """

    pictures: list[Path] = field(default_factory=list)
    images: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)
    failed: dict[str, str] = field(default_factory=dict)


class _Frame(NamedTuple):
    """An image, or a frame of a video.

    Attributes:
        source: name in messages.
        out: name of its output files, without suffix.
        image: image as loaded; or the error if it cannot be read.
        rate: frames per second of its video; None for an image.
        prepared: input of `Predictor.predict`.
        shown: (H, W, 3) uint8 BGR, to draw on.
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
) -> InferenceResult:
    """Run a network over an image, a folder of images, a glob pattern, or a video.

    Images are loaded by the config's own loading step. Each image gets `overlay/<name>.png`, the
    predictions drawn over it above a legend; each video gets `overlay/<name>.mp4`. `<name>` is the
    path below `source`, with its suffix if the name is ambiguous without; `sources.json` maps each
    output to its source. A segmentor also writes `labels/<name>.png` for each image or frame: the
    class index of each pixel, from 0, with `reduce_zero_label` too; 16 bits if there are more than
    255 classes. A detector writes `results.json`, a list in COCO's results format, and
    `images.json`, the images and categories of its ids; load both with pycocotools:
    `COCO('images.json').loadRes('results.json')`.

    Args:
        config, checkpoint: network and weights, as for `mmattn.load_model`.
        source: image, video, folder of them, or glob pattern.
        out_dir: folder of the output.
        attention: blocks to add; by default those that the checkpoint was trained with.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        score: threshold for drawing; detections below it are in the JSON only.
        device: 'cpu', 'cuda:0', ...; None for the best available.

    Raises:
        DataError: no image or video found.
        UsageError: `score` is not within 0 to 1; a file would be replaced that no run wrote.
        WriteError: a file cannot be written, or frames are missing in a video.
        MmattnError: config or checkpoint cannot be loaded.
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
    if not paths or predictor.suffix:  # images with the config's suffix, such as .npy
        paths = find_sources(str(source), out_dir, predictor.suffix)
        check_writable(out_dir, '--out-dir')
    result, network_seconds, prediction_error = InferenceResult(), 0.0, None
    writer_class = _LabelMapWriter if predictor.segments else _DetectionWriter
    outputs = OutputIndex(out_dir, writer_class.outputs(paths))
    if stale := outputs.stale():
        warn(f'--out-dir {out_dir}: {some(stale, 1)} of an earlier run stay there.')
    outputs.write()
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as reader, writer_class(predictor, out_dir, score) as writer:
        frames = _frames(paths, predictor)

        def read() -> _Frame | None:
            frame = next(frames, None)
            if frame is None or isinstance(frame.image, Exception):
                return frame
            try:
                shown = predictor.show(frame.image)
                return frame._replace(prepared=predictor.prepare(frame.image), shown=shown)
            except Exception as error:  # handled in the main thread
                return frame._replace(image=error)

        def prefetched() -> Iterator[_Frame]:
            future = reader.submit(read)
            while (frame := future.result()) is not None:
                future = reader.submit(read)
                yield frame

        for frame in track(prefetched(), total=_count_frames(paths), title=f'infer -> {out_dir}'):
            predict_start = time.perf_counter()
            try:
                if isinstance(frame.image, Exception):
                    raise frame.image
                sample = predictor.predict(frame.prepared)
            except Exception as error:
                explanation = explain(error)
                if isinstance(error, PredictionFailed):
                    prediction_error = prediction_error or error
                elif not explanation or explanation[0] not in (Exit.DATA, Exit.MEMORY):
                    raise
                result.failed[frame.source] = explanation[1]
                continue
            network_seconds += time.perf_counter() - predict_start
            result.images += 1
            writer.add(frame, sample)
    if prediction_error and not result.images:
        raise prediction_error
    result.pictures = writer.pictures
    result.seconds = time.perf_counter() - start, network_seconds
    return result


class _ResultWriter:
    """Writes predictions in a thread of its own, with a short queue."""

    def __init__(self, predictor: Predictor, out_dir: Path, score: float) -> None:
        self.predictor, self.out_dir, self.score = predictor, out_dir, score
        self.pictures: list[Path] = []
        self.videos: dict[Path, VideoWriter] = {}
        self.warned_of_display = False
        self.thread, self.queue = ThreadPoolExecutor(1), deque[Future]()

    def __enter__(self) -> '_ResultWriter':
        return self

    def __exit__(self, *raised) -> None:
        try:
            while self.queue and not raised[0]:
                self.queue.popleft().result()
        finally:
            self.thread.shutdown(cancel_futures=True)
            for video in self.videos.values():
                video.close(check=not raised[0])

    @staticmethod
    def outputs(paths: dict[Path, Path]) -> dict[str, str]:
        """Output file -> its source, for all files that will be written."""
        suffix = {True: '.mp4', False: '.png'}
        return {
            f'overlay/{append_suffix(n, suffix[is_video(p)])}': str(p) for p, n in paths.items()
        }

    def add(self, frame: _Frame, sample) -> None:
        """Queue the prediction of a frame for writing."""
        image = frame.image.image
        gray = image.dtype == np.uint8 and image.ndim == 2
        if not self.warned_of_display and not gray and not is_plain(image):
            self.warned_of_display = True
            channels = image.shape[2] if image.ndim > 2 else 1
            warn(
                f'{frame.source} has {channels} channel{"s" if channels > 1 else ""} of '
                f'{image.dtype}: the pictures show '
                f'{"the first three" if channels > 2 else "the first as gray"}'
                f'{"" if image.dtype == np.uint8 else ", scaled to 8 bits"}.'
            )
        self.queue.append(self.thread.submit(self.write, frame, sample))
        if len(self.queue) > _MAX_QUEUED:
            self.queue.popleft().result()

    def write(self, frame: _Frame, sample) -> None:
        """Write all files for a frame."""
        raise NotImplementedError

    def show(self, frame: _Frame, picture: np.ndarray, present: np.ndarray) -> None:
        """Write a picture with its legend below, or append it to its video."""
        classes, palette = self.predictor.classes, self.predictor.palette
        if frame.rate is None:
            path = self.out_dir / 'overlay' / append_suffix(frame.out, '.png')
            save_picture(path, side_by_side({'': picture}, present, classes, palette))
            self.pictures.append(path)
            return
        if len(classes) <= _MAX_LEGEND:
            picture = side_by_side({'': picture}, range(len(classes)), classes, palette)
        path = self.out_dir / 'overlay' / append_suffix(frame.out.parent, '.mp4')
        if path not in self.videos:
            self.finish()
            self.videos[path] = VideoWriter(path, frame.rate)
            self.pictures.append(path)
        self.videos[path].write(picture)

    def finish(self) -> None:
        """Close all videos: the next one starts when the last is complete."""
        for video in self.videos.values():
            video.close()


class _LabelMapWriter(_ResultWriter):
    """Writes the label maps of a segmentor."""

    @staticmethod
    def outputs(paths: dict[Path, Path]) -> dict[str, str]:
        files = _ResultWriter.outputs(paths)
        for path, name in paths.items():
            label_map = f'{name}/' if is_video(path) else append_suffix(name, '.png')
            files[f'labels/{label_map}'] = str(path)
        return files

    def __init__(self, *args) -> None:
        super().__init__(*args)
        count = len(self.predictor.classes)
        self.dtype = np.uint8 if count <= _MAX_8_BIT_CLASSES else np.uint16
        if count > _MAX_8_BIT_CLASSES:
            warn(f'{count} classes: the label maps are 16-bit PNGs.')

    def write(self, frame: _Frame, sample) -> None:
        labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(self.dtype)
        save_picture(self.out_dir / 'labels' / append_suffix(frame.out, '.png'), labels)
        picture = overlay(frame.shown, labels, self.predictor.palette)
        self.show(frame, picture, np.unique(labels))


class _DetectionWriter(_ResultWriter):
    """Writes the detections of a detector."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.images, self.results = [], []
        self.category_ids = category_ids(self.predictor.classes)

    @staticmethod
    def outputs(paths: dict[Path, Path]) -> dict[str, str]:
        return _ResultWriter.outputs(paths) | {'images.json': '', 'results.json': ''}

    def write(self, frame: _Frame, sample) -> None:
        instances = sample.pred_instances
        height, width = frame.shown.shape[:2]
        number = len(self.images) + 1
        self.images.append(dict(id=number, file_name=frame.source, height=height, width=width))
        self.results += coco_results(Objects.from_instances(instances), number, self.category_ids)
        shown = Objects.from_instances(instances, self.score)
        picture = draw_objects(frame.shown, shown, self.predictor.palette)
        self.show(frame, picture, np.unique(shown.labels))

    def __exit__(self, *raised) -> None:
        super().__exit__(*raised)
        if raised[0]:
            return
        pairs = zip(self.category_ids, self.predictor.classes, strict=True)
        categories = [dict(id=number, name=name) for number, name in pairs]
        dataset = dict(images=self.images, categories=categories, annotations=[])
        for name, content in ('images', dataset), ('results', self.results):
            path = self.out_dir / f'{name}.json'
            try:
                path.write_text(json.dumps(content), encoding='utf-8')
            except OSError as error:
                raise WriteError(f'cannot write {path}: {error.strerror}.') from error


def coco_results(objects: Objects, image_id: int, ids: list[int]) -> list[dict]:
    """Objects in COCO's results format: boxes as x, y, width, height; masks run-length encoded."""
    from pycocotools.mask import encode

    results = []
    for i, (x1, y1, x2, y2) in enumerate(objects.boxes.tolist()):
        results.append(
            dict(
                image_id=image_id,
                category_id=ids[objects.labels[i]],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                score=float(objects.scores[i]),
            )
        )
        if objects.masks is not None:
            code = encode(np.asfortranarray(objects.masks[i].view(np.uint8)))
            results[-1]['segmentation'] = dict(code, counts=code['counts'].decode())
    return results


def category_ids(classes: tuple[str, ...]) -> list[int]:
    """Category ids: COCO's own, with gaps, for its 80 classes; else 1, 2, ..."""
    from mmdet.datasets import CocoDataset

    if tuple(classes) == CocoDataset.METAINFO['classes']:
        return [number for number in range(1, 91) if number not in _UNUSED_COCO_IDS]
    return list(range(1, len(classes) + 1))


def _frames(paths: dict[Path, Path], predictor: Predictor) -> Iterator[_Frame]:
    for path, out in paths.items():
        if is_video(path):
            yield from _video_frames(path, out, predictor)
            continue
        try:
            image = predictor.load(path)
        except MmattnError as error:
            image = error
        yield _Frame(str(path), out, image)


def _video_frames(path: Path, out: Path, predictor: Predictor) -> Iterator[_Frame]:
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
            success, image = video.read()
            if not success:
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


def _count_frames(paths: dict[Path, Path]) -> int | None:
    """Number of images and frames; None if a video does not declare its length."""
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
