"""Make COCO's metrics score the images that a data loader yields: no others, each once.

These metrics know images by id alone and score all of their annotation file. An image that is left
out counts as missed, one that comes twice as false, an id of two files as the wrong image.
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
from .output_names import leaf_datasets


def score_tested_images(dataset, evaluator: Evaluator, part: str) -> None:
    """Restrict COCO's metrics of an evaluator to the images of a data set.

    Files with distinct image ids are joined; where images are left out (`indices`, a filter), the
    others are scored. Metrics that take the ground truth from the samples are left alone.

    Args:
        dataset: a built data set, wrappers included.
        evaluator: a built evaluator, whose metrics are changed.
        part: 'val' or 'test', for messages.

    Raises:
        UsageError: an image comes twice, two images have one id, or some are not in the annotation
            file of the metric.
    """
    for metric, scored in metric_datasets(dataset, evaluator, part):
        if hasattr(metric, '_coco_api') and hasattr(scored, 'get_data_info'):
            _restrict(metric, scored, part)


def metric_datasets(dataset, evaluator: Evaluator, part: str) -> Iterator[tuple]:
    """Each metric of an evaluator, and the data set that it scores.

    Args:
        dataset, evaluator, part: as in `score_tested_images`.

    Raises:
        UsageError: there is not one data set for each metric of a `MultiDatasetsEvaluator`.
    """
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


def _restrict(metric: BaseMetric, dataset, part: str) -> None:
    index = getattr(metric, '_lvis_api', None) or getattr(metric, '_coco_api', None)
    if index is not None and isinstance(index, COCO):
        renumber(index)
    if index is not None and _covers_file(metric, dataset, len(index.imgs)):
        return
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    tested = [(info.get('img_id'), info.get('img_path')) for info in infos]
    if any(ident is None for ident, _ in tested):
        return  # videos, e.g.
    _check_once(tested, dataset, metric, part)
    leaves = [*leaf_datasets(dataset)]
    if (
        index is None
        and isinstance(metric, CocoMetric)
        and all(isinstance(leaf, CocoDataset) for leaf in leaves)
    ):
        index = metric._coco_api = _join_annotations(leaves)
        files = ', '.join(dict.fromkeys(str(leaf.ann_file) for leaf in leaves))
        text = f'{part}: scored on {len(index.imgs)} images, of {files}'
        print_log(text, logger='current')
    if index is None:
        return  # the ground truth is taken from the samples
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


def _covers_file(metric: DetCocoMetric, dataset, count: int) -> bool:
    """Whether a data set is every image of the metric's file, decided without reading each."""
    file = getattr(metric, 'ann_file', None)
    return (
        file is not None
        and _reads_whole_file(dataset)
        and dataset._indices is None
        and len(dataset) == count
        and os.path.realpath(file) == os.path.realpath(dataset.ann_file)
    )


def _reads_whole_file(dataset) -> bool:
    """Whether a data set reads its JSON file as mmdet does: each image once."""
    reader = getattr(type(dataset), 'load_data_list', None)
    return reader is CocoDataset.load_data_list and os.path.isfile(dataset.ann_file)


def _check_once(tested: list[tuple], dataset, metric, part: str) -> None:
    """Refuse images that are tested twice, and ids of two images."""
    counts = Counter(ident for ident, _ in tested)
    if len(counts) == len(tested):
        return
    repeated = counts.most_common(1)[0][0]
    paths = sorted({str(path) for ident, path in tested if ident == repeated})
    if len(paths) > 1:
        leaves = leaf_datasets(dataset)
        files = [str(leaf.ann_file) for leaf in leaves if hasattr(leaf, 'ann_file')]
        raise UsageError(
            f'images of {part}_dataloader: {paths[0]} and {paths[1]} both have the id {repeated}, '
            f'and results are told apart by id. The annotation files are {", ".join(files)}. '
            'Number their images apart, or score each by itself with '
            f'{_separate_metrics(files, metric, part)}'
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
        f'{counts[repeated]} times, and what is found again counts as false ({len(counts)} images '
        f'come {len(tested)} times). {remedy}'
    )


def _separate_metrics(files: list[str], metric, part: str) -> str:
    """The setting that scores each data set separately, to be pasted into the config."""
    stems = [Path(file).stem for file in files]
    if len(set(stems)) < len(stems):
        stems = [f'part{i}' for i in range(1, len(stems) + 1)]
    single = f"dict(type='CocoMetric', metric={metric.metrics!r})"
    note = '' if part == 'test' else (
        f"; the figure that save_best names is then '{stems[0]}/coco/bbox_mAP'"
    )  # fmt: skip
    return (
        f"{part}_evaluator = dict(_delete_=True, type='MultiDatasetsEvaluator', "
        f'dataset_prefixes={stems!r}, metrics=[{", ".join([single] * len(stems))}]){note}'
    )


def _check_known(tested: list[tuple], index, metric, part: str) -> None:
    """Refuse images that are not in the annotation file of the metric, or under another id."""
    unknown = [(ident, path) for ident, path in tested if ident not in index.imgs]
    file = getattr(metric, 'ann_file', None) or 'its annotation file'
    if not unknown:
        unknown = [
            (ident, path)
            for ident, path in tested
            if not _has_name(path, index.imgs[ident].get('file_name'))
        ]
    if unknown:
        ident, path = unknown[0]
        annotated = index.imgs.get(ident, {}).get('file_name', 'no image')
        raise UsageError(
            f'{part}_dataloader and {part}_evaluator are of different images: {len(unknown)} of '
            f'{len(tested)} that are tested, e.g. {path}, which is image {ident}, are others in '
            f'{file}, where {ident} is {annotated}. Leave {part}_evaluator.ann_file out: the files '
            'of the data sets are taken.'
        )


def _check_order(dataset, index: COCO, metric, part: str) -> None:
    """Refuse a metric whose file has the classes in another order: it numbers them by its file."""
    classes = classes_of(dataset.metainfo)
    if classes is None:
        return
    ids = index.get_cat_ids(cat_names=classes)
    scored = tuple(category['name'] for category in index.load_cats(ids))
    if scored != classes:
        raise UsageError(
            f'classes of {part}_dataloader and {part}_evaluator: the data have {classes}, '
            f'{getattr(metric, "ann_file", None) or "the annotation file"} {scored}. Leave '
            f'{part}_evaluator.ann_file out: the files of the data sets are taken.'
        )


def _has_name(path: str | None, name: str | None) -> bool:
    """Whether the path of an image ends with its name in the annotations; true if one is empty."""
    if not path or not name:
        return True
    path, name = (Path(str(text).replace('\\', '/')).parts for text in (path, name))
    return path[-len(name) :] == name


def _join_annotations(datasets: list[CocoDataset]) -> COCO:
    """One index of the images of several data sets; categories of the same name are one."""
    image_ids: dict[str, set] = {}
    for dataset in datasets:
        ids = {dataset.get_data_info(i)['img_id'] for i in range(len(dataset))}
        image_ids.setdefault(os.path.realpath(dataset.ann_file), set()).update(ids)
    joined = dict(images=[], annotations=[], categories=[])
    category_ids: dict[str, int] = {}
    for file, ids in image_ids.items():
        content = json.loads(Path(file).read_text(encoding='utf-8-sig'))
        new_ids = {}
        for category in content['categories']:
            name = category['name']
            if name not in category_ids:
                category_ids[name] = len(category_ids) + 1
                joined['categories'].append(dict(category, id=category_ids[name]))
            new_ids[category['id']] = category_ids[name]
        joined['images'] += [image for image in content['images'] if image['id'] in ids]
        for entry in content['annotations']:
            if entry['image_id'] in ids:
                ident = len(joined['annotations']) + 1
                entry = dict(entry, id=ident, category_id=new_ids[entry['category_id']])
                joined['annotations'].append(entry)
    index = COCO()
    index.dataset = joined
    index.createIndex()
    index.img_ann_map, index.cat_img_map = index.imgToAnns, index.catToImgs  # mmdet's names
    return index
