"""Write predictions as overlays, videos, label maps and COCO results."""

import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mmattn.datasets.loading import is_plain
from mmattn.errors import cannot_write
from mmattn.log import warn
from mmattn.visualization.comparison import overlay, save_picture, side_by_side
from mmattn.visualization.objects import Objects, draw_objects
from mmattn.visualization.video import VideoWriter

from .frames import Frame
from .predictor import Predictor
from .sources import append_suffix, is_video

_MAX_QUEUED = 4  # results that may wait to be written
_MAX_LEGEND = 30  # classes in the legend of a video, which is the same for all frames
_MAX_8_BIT_CLASSES = 255  # in a label map of 8 bits; 255 itself means ignored
_UNUSED_COCO_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


class ResultWriter:
    """Writes predictions in a thread of its own, with a short queue."""

    def __init__(self, predictor: Predictor, out_dir: Path, score: float) -> None:
        self.predictor, self.out_dir, self.score = predictor, out_dir, score
        self.pictures: list[Path] = []
        self.videos: dict[Path, VideoWriter] = {}
        self.warned_of_display = False
        self.thread, self.queue = ThreadPoolExecutor(1), deque[Future]()

    def __enter__(self) -> 'ResultWriter':
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
        files = {}
        for path, name in paths.items():
            suffix = '.mp4' if is_video(path) else '.png'
            files[f'overlay/{append_suffix(name, suffix)}'] = str(path)
        return files

    def add(self, frame: Frame, sample) -> Future:
        """Queue the prediction of a frame for writing.

        Returns:
            its picture once it is written, (H, W, 3) uint8 BGR.
        """
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
        written = self.thread.submit(self.write, frame, sample)
        self.queue.append(written)
        if len(self.queue) > _MAX_QUEUED:
            self.queue.popleft().result()
        return written

    def write(self, frame: Frame, sample) -> np.ndarray:
        """Write all files for a frame; returns its picture, (H, W, 3) uint8 BGR."""
        raise NotImplementedError

    def write_picture(self, frame: Frame, picture: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Write a picture with its legend below, or append it to its video; returns it so."""
        classes, palette = self.predictor.classes, self.predictor.palette
        if frame.rate is None:
            path = self.out_dir / 'overlay' / append_suffix(frame.out, '.png')
            picture = side_by_side({'': picture}, present, classes, palette)
            save_picture(path, picture)
            self.pictures.append(path)
            return picture
        if len(classes) <= _MAX_LEGEND:
            picture = side_by_side({'': picture}, range(len(classes)), classes, palette)
        path = self.out_dir / 'overlay' / append_suffix(frame.out.parent, '.mp4')
        if path not in self.videos:
            self.finish()
            self.videos[path] = VideoWriter(path, frame.rate)
            self.pictures.append(path)
        self.videos[path].write(picture)
        return picture

    def finish(self) -> None:
        """Close all videos: the next one starts when the last is complete."""
        for video in self.videos.values():
            video.close()


class LabelMapWriter(ResultWriter):
    """Writes the label maps of a segmentor."""

    @staticmethod
    def outputs(paths: dict[Path, Path]) -> dict[str, str]:
        files = ResultWriter.outputs(paths)
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

    def write(self, frame: Frame, sample) -> np.ndarray:
        labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(self.dtype)
        save_picture(self.out_dir / 'labels' / append_suffix(frame.out, '.png'), labels)
        picture = overlay(frame.shown, labels, self.predictor.palette)
        return self.write_picture(frame, picture, np.unique(labels))


class DetectionWriter(ResultWriter):
    """Writes the detections of a detector."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.images, self.results = [], []
        self.category_ids = category_ids(self.predictor.classes)

    @staticmethod
    def outputs(paths: dict[Path, Path]) -> dict[str, str]:
        return ResultWriter.outputs(paths) | {'images.json': '', 'results.json': ''}

    def write(self, frame: Frame, sample) -> np.ndarray:
        instances = sample.pred_instances
        height, width = frame.shown.shape[:2]
        number = len(self.images) + 1
        self.images.append(dict(id=number, file_name=frame.source, height=height, width=width))
        self.results += coco_results(Objects.from_instances(instances), number, self.category_ids)
        shown = Objects.from_instances(instances, self.score)
        picture = draw_objects(frame.shown, shown, self.predictor.palette)
        return self.write_picture(frame, picture, np.unique(shown.labels))

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
                raise cannot_write(path, error) from error


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
