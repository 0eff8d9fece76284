"""The images that a data loader yields are those that COCO's metrics score: no others, each once.

These metrics know images by id alone and score all of their annotation file. What is left out
counts as missed, what comes twice as false, and an id that two files use as the wrong image.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric as DetCocoMetric
from mmdet.evaluation import CocoPanopticMetric, MultiDatasetsEvaluator
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.logging import print_log

from mmattn.datasets.class_names import classes_of
from mmattn.errors import UsageError

from .coco_metric import CocoMetric, renumber
from .output_names import leaves


def score_what_is_tested(dataset, evaluator: Evaluator, part: str) -> None:
    """Have COCO's metrics of an evaluator score the images of a data set.

    Files whose images have ids of their own are joined; where images are left out (`indices`, a
    filter), the others are scored. Metrics that take the truth from the samples are left
    as they are.

    Args:
        dataset: built, wrappers included.
        evaluator: built; its metrics are changed.
        part: 'val' or 'test', for messages.

    Raises:
        UsageError: an image comes twice, two images have one id, or some are not in the annotation
            file of the metric.
    """
    for metric, own in _pairs(dataset, evaluator, part):
        if hasattr(metric, '_coco_api') and hasattr(own, 'get_data_info'):
            _fit(metric, own, part)


def _pairs(dataset, evaluator, part: str) -> Iterator[tuple]:
    """Each metric, and the data set that it scores."""
    if not isinstance(evaluator, MultiDatasetsEvaluator):
        for metric in evaluator.metrics:
            yield metric, dataset
        return
    parts = getattr(dataset, 'datasets', [dataset])
    counts = len(parts), len(evaluator.metrics), len(evaluator.dataset_prefixes)
    if len(set(counts)) > 1:
        raise UsageError(
            f'{part}_evaluator is a MultiDatasetsEvaluator: {part}_dataloader has {counts[0]} data '
            f'sets, but it has {counts[1]} metrics and {counts[2]} dataset_prefixes. Give each '
            'data set one of both.'
        )
    yield from zip(evaluator.metrics, parts)


def _fit(metric: BaseMetric, dataset, part: str) -> None:
    index = getattr(metric, '_lvis_api', None) or getattr(metric, '_coco_api', None)
    if index is not None and isinstance(index, COCO):
        renumber(index)
    if index is not None and _is_whole(metric, dataset, len(index.imgs)):
        return
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    tested = [(info.get('img_id'), info.get('img_path')) for info in infos]
    if any(ident is None for ident, _ in tested):
        return  # such as of videos
    _check_once(tested, dataset, metric, part)
    own = [*leaves(dataset)]
    if (
        index is None
        and isinstance(metric, CocoMetric)
        and all(isinstance(one, CocoDataset) for one in own)
    ):
        index = metric._coco_api = _joined(own)
        files = ', '.join(dict.fromkeys(str(one.ann_file) for one in own))
        text = f'{part}: scored on {len(index.imgs)} images, of {files}'
        print_log(text, logger='current')
    if index is None:
        return  # truth is taken from the samples themselves
    _check_known(tested, index, metric, part)
    if type(metric) in (CocoMetric, DetCocoMetric):
        _check_order(dataset, index, metric, part)
    if len(tested) == len(index.imgs):
        return
    if isinstance(metric, DetCocoMetric):
        metric.img_ids = [ident for ident, _ in tested]
        print_log(
            f'{part}: {len(tested)} of the {len(index.imgs)} annotated images are tested, and '
            'these alone are scored',
            logger='current',
        )
    elif not isinstance(metric, CocoPanopticMetric) or metric.outfile_prefix:
        raise UsageError(
            f'{part}_dataloader yields {len(tested)} of the {len(index.imgs)} images that '
            f'{type(metric).__name__} scores. Test all of them: leave out `indices` and filters.'
        )


def _is_whole(metric: DetCocoMetric, dataset, count: int) -> bool:
    """Whether the data set is every image of the metric's file, without reading each."""
    file = getattr(metric, 'ann_file', None)
    return (
        file is not None
        and _reads_coco(dataset)
        and dataset._indices is None
        and len(dataset) == count
        and os.path.realpath(file) == os.path.realpath(dataset.ann_file)
    )


def _reads_coco(dataset) -> bool:
    """Whether a data set has each image of its JSON file once, as mmdet's reads it."""
    reader = getattr(type(dataset), 'load_data_list', None)
    return reader is CocoDataset.load_data_list and os.path.isfile(dataset.ann_file)


def _check_once(tested: list[tuple], dataset, metric, part: str) -> None:
    counts = Counter(ident for ident, _ in tested)
    if len(counts) == len(tested):
        return
    twice = counts.most_common(1)[0][0]
    paths = sorted({str(path) for ident, path in tested if ident == twice})
    if len(paths) > 1:
        files = [str(one.ann_file) for one in leaves(dataset) if hasattr(one, 'ann_file')]
        raise UsageError(
            f'images of {part}_dataloader: {paths[0]} and {paths[1]} both have the id {twice}, and '
            f'results are told apart by id. The annotation files are {", ".join(files)}. Number '
            f'their images apart, or score each by itself with {_each_alone(files, metric, part)}'
        )
    if hasattr(dataset, 'datasets'):
        remedy = 'Leave out one of the data sets that have it.'
    elif hasattr(dataset, 'dataset'):
        remedy = (
            f'Set {part}_dataloader.dataset to the data set inside of {type(dataset).__name__}.'
        )
    else:
        remedy = f'Name it once in {part}_dataloader.dataset.indices.'
    raise UsageError(
        f'images of {part}_dataloader: {type(dataset).__name__} yields {paths[0]} '
        f'{counts[twice]} times, and what is found again counts as false ({len(counts)} images '
        f'come {len(tested)} times). {remedy}'
    )


def _each_alone(files: list[str], metric, part: str) -> str:
    """The setting that scores each data set by itself, to be pasted."""
    stems = [Path(file).stem for file in files]
    if len(set(stems)) < len(stems):
        stems = [f'part{i}' for i in range(1, len(stems) + 1)]
    one = f"dict(type='CocoMetric', metric={metric.metrics!r})"
    best = '' if part == 'test' else (
        f"; the figure that save_best names is then '{stems[0]}/coco/bbox_mAP'"
    )  # fmt: skip
    return (
        f"{part}_evaluator = dict(_delete_=True, type='MultiDatasetsEvaluator', "
        f'dataset_prefixes={stems!r}, metrics=[{", ".join([one] * len(stems))}]){best}'
    )


def _check_known(tested: list[tuple], index, metric, part: str) -> None:
    unknown = [(ident, path) for ident, path in tested if ident not in index.imgs]
    file = getattr(metric, 'ann_file', None) or 'its annotation file'
    if not unknown:
        unknown = [
            (ident, path)
            for ident, path in tested
            if not _is_named(path, index.imgs[ident].get('file_name'))
        ]
    if unknown:
        ident, path = unknown[0]
        there = index.imgs.get(ident, {}).get('file_name', 'no image')
        raise UsageError(
            f'{part}_dataloader and {part}_evaluator are of different images: {len(unknown)} of '
            f'{len(tested)} that are tested, e.g. {path}, which is image {ident}, are others in '
            f'{file}, where {ident} is {there}. Leave {part}_evaluator.ann_file out: the files of '
            'the data sets are taken.'
        )


def _check_order(dataset, index: COCO, metric, part: str) -> None:
    """The metric numbers classes in the order of its own file."""
    classes = classes_of(dataset.metainfo)
    if classes is None:
        return
    ids = index.get_cat_ids(cat_names=classes)
    own = tuple(category['name'] for category in index.load_cats(ids))
    if own != classes:
        raise UsageError(
            f'classes of {part}_dataloader and {part}_evaluator: the data have {classes}, '
            f'{getattr(metric, "ann_file", None) or "the annotation file"} {own}. Leave '
            f'{part}_evaluator.ann_file out: the files of the data sets are taken.'
        )


def _is_named(path: str | None, name: str | None) -> bool:
    """Whether the path of an image ends with its name in the annotations, as far as both are."""
    if not path or not name:
        return True
    path, name = (Path(str(one).replace('\\', '/')).parts for one in (path, name))
    return path[-len(name) :] == name


def _joined(data: list[CocoDataset]) -> COCO:
    """One index of what several data sets yield; categories of one name are one."""
    chosen: dict[str, set] = {}
    for one in data:
        ids = {one.get_data_info(i)['img_id'] for i in range(len(one))}
        chosen.setdefault(os.path.realpath(one.ann_file), set()).update(ids)
    whole = dict(images=[], annotations=[], categories=[])
    known: dict[str, int] = {}
    for file, ids in chosen.items():
        content = json.loads(Path(file).read_text(encoding='utf-8-sig'))
        numbers = {}
        for category in content['categories']:
            name = category['name']
            if name not in known:
                known[name] = len(known) + 1
                whole['categories'].append(dict(category, id=known[name]))
            numbers[category['id']] = known[name]
        whole['images'] += [image for image in content['images'] if image['id'] in ids]
        for entry in content['annotations']:
            if entry['image_id'] in ids:
                ident = len(whole['annotations']) + 1
                entry = dict(entry, id=ident, category_id=numbers[entry['category_id']])
                whole['annotations'].append(entry)
    made = COCO()
    made.dataset = whole
    made.createIndex()
    made.img_ann_map, made.cat_img_map = made.imgToAnns, made.catToImgs
    return made
