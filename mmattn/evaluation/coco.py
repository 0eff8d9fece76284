"""COCO's numbers for detections saved as JSON, without a model.

pycocotools or faster_coco_eval counts. Both crash, hang or give wrong numbers on invalid files, so
everything that they read is checked first, see `coco_files`.
"""

from collections import Counter
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from mmattn.errors import UsageError

from .coco_files import IOU_TYPES, read_annotations, read_json, read_results, share_outside
from .match_names import match_by_name
from .reporting import check_json_target, print_message, write_scores

BACKENDS = 'auto', 'pycocotools', 'faster_coco_eval'
NUMBERS = (
    *('AP', 'AP50', 'AP75', 'AP_small', 'AP_medium', 'AP_large'),
    *('AR_1', 'AR_10', 'AR_100', 'AR_small', 'AR_medium', 'AR_large'),
)
_MAX_OUTSIDE = 0.2  # share of boxes that leave their image; above it their format is in doubt


@dataclass(frozen=True)
class CocoScores:
    """Scores of detections: fractions 0..1, and -1 where the annotations have nothing to score.

    Attributes:
        numbers: COCO's twelve, named and ordered as `NUMBERS`.
        per_class: `AP.<category>`, with the id where categories share a name.
        iou_type: 'bbox' or 'segm'.
        backend: name of the library that counted.
        version: version of that library.
        files: name and sha256 of the annotations and of the results.
    """

    numbers: dict[str, float]
    per_class: dict[str, float]
    iou_type: str
    backend: str
    version: str
    files: dict[str, dict[str, str]]


def evaluate_coco(
    annotations: str | Path, results: str | Path, *, iou_type: str = 'bbox', backend: str = 'auto'
) -> CocoScores:
    """Score results over all images of the annotations, including those without a result.

    Polygons and uncompressed RLE count as the masks that they draw; areas of 'segm' are those of
    the masks, whether or not a result has a box. Ids written as strings of digits are read as
    integers. The ids of tools/infer.py are its own: `images.json` next to its results has the names
    of its images and categories, which are found in the annotations by name.

    Args:
        annotations: a COCO instances file.
        results: a COCO results file, a list of `image_id, category_id, score` and `bbox` (x, y,
            width, height in pixels) or `segmentation`.
        iou_type: 'bbox' compares boxes, 'segm' masks.
        backend: 'auto' is faster_coco_eval where it is installed, else pycocotools.

    Raises:
        DataError: a file is missing or not valid; names the entry, its field and its value.
        UsageError: another iou_type or backend; faster_coco_eval is asked for and not installed.
    """
    if iou_type not in IOU_TYPES:
        raise UsageError(f'{iou_type=}, allowed: {", ".join(IOU_TYPES)}.')
    name, coco, evaluator = backend_of(backend)
    (truth, truth_file), (content, results_file) = read_json(annotations), read_json(results)
    content, messages = match_by_name(content, results, truth, annotations)
    for text in messages:
        print_message(text)
    images, categories, objects = read_annotations(truth, annotations, iou_type)
    detections = read_results(content, results, iou_type, images, categories)
    print_message(f'scoring {len(detections)} results on {len(images)} images with {name}')
    if not detections:
        print_message(f'warning: {results} has no results, so nothing is found.')
    outside = share_outside(detections, truth) if iou_type == 'bbox' else 0
    if outside > _MAX_OUTSIDE:
        print_message(
            f'warning: {outside:.0%} of the boxes in {results} leave their image; are they x1, y1, '
            'x2, y2 instead of x, y, width, height?'
        )
    with redirect_stdout(StringIO()):  # their own tables
        pair = [index_of(coco, images, categories, entries) for entries in (objects, detections)]
        run = evaluator(*pair, iou_type)
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval['precision'][..., 0, -1]  # (IoU, recall, category): all areas, 100 results
    return CocoScores(
        numbers=dict(zip(NUMBERS, map(float, run.stats))),
        per_class={
            f'AP.{label}': float(value)
            for label, value in zip(_labels(categories), precision.mean((0, 1)))
        },
        iou_type=iou_type,
        backend=name,
        version=version(name),
        files=dict(annotations=truth_file, results=results_file),
    )


def report_coco(
    annotations: str | Path,
    results: str | Path,
    *,
    iou_type: str = 'bbox',
    backend: str = 'auto',
    json_path: str | Path | None = None,
) -> CocoScores:
    """Print the scores of `evaluate_coco`, and write them to a JSON file if a path is given.

    Raises:
        DataError, UsageError: as `evaluate_coco`.
        WriteError: the file cannot be written.
    """
    check_json_target(json_path, (annotations, results, Path(results).with_name('images.json')))
    scores = evaluate_coco(annotations, results, iou_type=iou_type, backend=backend)
    write_scores(json_path, asdict(scores))
    for part in scores.numbers, scores.per_class:
        for label, value in part.items():
            print(f'{label:<24s} {value:.6f}' if value >= 0 else f'{label:<24s} -1')
        print()
    print(f'{iou_type}, counted by {scores.backend} {scores.version}')
    return scores


def backend_of(name: str) -> tuple[str, type, type]:
    """Name, index class and evaluator class of the library that counts.

    Args:
        name: one of `BACKENDS`.

    Raises:
        UsageError: another name; faster_coco_eval is asked for and not installed.
    """
    if name not in BACKENDS:
        raise UsageError(f'backend={name!r}, allowed: {", ".join(BACKENDS)}.')
    if name != 'pycocotools':
        try:
            from faster_coco_eval import COCO, COCOeval_faster

            return 'faster_coco_eval', COCO, COCOeval_faster
        except ImportError as error:
            if name != 'auto':
                raise UsageError(
                    f'backend {name} cannot be imported: {error}. '
                    'Run: pip install faster-coco-eval, or take pycocotools.'
                ) from error
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return 'pycocotools', COCO, COCOeval


def index_of(coco: type, images: dict, categories: dict, entries: list[dict]) -> Any:
    """The library's index of entries, whose ids count from 1: 0 would mean no match.

    Args:
        coco: index class of the library.
        images, categories: id -> entry, as in COCO's format.
        entries: annotations or results.
    """
    index = coco()
    index.dataset = dict(
        images=list(images.values()),
        categories=list(categories.values()),
        annotations=[entry | dict(id=number) for number, entry in enumerate(entries, 1)],
    )
    index.createIndex()
    return index


def _labels(categories: dict[int, dict]) -> list[str]:
    """Names of categories, with the id where several share a name."""
    counts = Counter(c['name'] for c in categories.values())
    return [
        c['name'] if counts[c['name']] == 1 else f'{c["name"]} (id {c["id"]})'
        for c in categories.values()
    ]
