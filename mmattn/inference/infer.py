"""Inference over images and videos: overlays, label maps and detections as files."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mmattn.config.published_weights import resolve
from mmattn.engine.execution import prepare_network, use_flags
from mmattn.errors import DataError, Exit, UsageError, explain
from mmattn.files import check_writable
from mmattn.log import warn
from mmattn.progress import track
from mmattn.text import some
from mmattn.visualization.window import check_window, show_picture

from .frames import Frame, load_frames, total_frames
from .predictor import PredictionFailed, Predictor
from .result_writers import DetectionWriter, LabelMapWriter
from .sources import OutputIndex, find_sources


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
    show: bool = False,
    wait_time: float = 2.0,
    amp: bool | str = False,
    channels_last: bool = False,
    compile: bool = False,
    fuse_conv_bn: bool = False,
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
        show: also show each picture or frame in a window.
        wait_time: seconds that a picture of `show` stays; 0 until a key is pressed.
        amp, channels_last, compile, fuse_conv_bn: as in `TestOptions`.

    Raises:
        DataError: no image or video found.
        UsageError: `score` is not within 0 to 1; a file would be replaced that no run wrote; the
            device lacks the dtype of `amp`; there is no display to show pictures on.
        WriteError: a file cannot be written, or frames are missing in a video.
        MmattnError: config or checkpoint cannot be loaded.
    """
    if not 0 <= score <= 1:
        raise UsageError(f'--score {score}: allowed are 0 to 1.')
    out_dir = Path(out_dir)
    if show:
        check_window(wait_time, 'Leave --show out: the pictures are written to --out-dir, too.')
    try:
        paths = find_sources(str(source), out_dir)
        check_writable(out_dir, '--out-dir')
    except DataError:
        if not Path(source).is_dir():
            raise
        paths = {}
    predictor = Predictor.of(*resolve(config, checkpoint, attention), options, attention, device)
    use_flags(predictor.cfg, channels_last=channels_last, compile=compile)
    prepare_network(predictor.model, predictor.cfg, amp=amp, fuse_conv_bn=fuse_conv_bn)
    if not paths or predictor.suffix:  # images with the config's suffix, such as .npy
        paths = find_sources(str(source), out_dir, predictor.suffix)
        check_writable(out_dir, '--out-dir')
    result, network_seconds, prediction_error = InferenceResult(), 0.0, None
    writer_class = LabelMapWriter if predictor.segments else DetectionWriter
    outputs = OutputIndex(out_dir, writer_class.outputs(paths))
    if stale := outputs.stale():
        warn(f'--out-dir {out_dir}: {some(stale, 1)} of an earlier run stay there.')
    outputs.write()
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as reader, writer_class(predictor, out_dir, score) as writer:
        frames = load_frames(paths, predictor)

        def read() -> Frame | None:
            frame = next(frames, None)
            if frame is None or isinstance(frame.image, Exception):
                return frame
            try:
                shown = predictor.show(frame.image)
                return frame._replace(prepared=predictor.prepare(frame.image), shown=shown)
            except Exception as error:  # handled in the main thread
                return frame._replace(image=error)

        def prefetched() -> Iterator[Frame]:
            future = reader.submit(read)
            while (frame := future.result()) is not None:
                future = reader.submit(read)
                yield frame

        for frame in track(prefetched(), total=total_frames(paths), title=f'infer -> {out_dir}'):
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
            written = writer.add(frame, sample)
            if show:
                show_picture(written.result(), frame.source, wait_time)
    if prediction_error and not result.images:
        raise prediction_error
    result.pictures = writer.pictures
    result.seconds = time.perf_counter() - start, network_seconds
    return result
