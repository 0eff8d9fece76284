"""A page with samples of a data set before and after augmentation, and what the set holds."""

import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config

from mmattn.config.check import check_config
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import load_config, parse_options
from mmattn.datasets import partial_checks
from mmattn.datasets.annotation_scale import loads_after_resize, to_image_scale
from mmattn.datasets.build import build_dataset, has_label_maps
from mmattn.datasets.label_maps import LabelMaps
from mmattn.datasets.loading import check_file, to_display
from mmattn.datasets.loading_steps import label_map_of, load_sample, pipeline_steps
from mmattn.datasets.validation import check_loaders
from mmattn.engine.build import config_errors, run_loop
from mmattn.engine.resume.data import ResumableDataset, ResumableLoader
from mmattn.engine.resume.rng import seeded
from mmattn.engine.run_config import run_name
from mmattn.engine.runner import Runner
from mmattn.errors import UsageError, printable
from mmattn.evaluation.output_names import leaf_datasets
from mmattn.files import check_writable
from mmattn.log import warn
from mmattn.progress import track
from mmattn.visualization.comparison import overlay, save_picture, side_by_side
from mmattn.visualization.data_page import Sample, Stage, write_data_page
from mmattn.visualization.html_charts import css_colour
from mmattn.visualization.objects import Objects, draw_objects
from mmattn.visualization.palette import palette_of

from .data_counts import ObjectCounts, PixelCounts

_PICTURES = 'pictures'  # folder next to the page
_IGNORED = (0, 0, 0)  # colour of ignored objects


class _Annotated(NamedTuple):
    """An image with its annotations.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        objects: objects; an ignored one has the number of classes as its label. None without.
        labels: (H, W) class indices, 255 where ignored; None without.
    """

    image: np.ndarray
    objects: Objects | None
    labels: np.ndarray | None


def browse(
    config: str | Path,
    out_dir: str | Path,
    *,
    split: str = 'train',
    samples: int = 24,
    seed: int = 0,
    data: str | None = None,
    options: dict | list[str] | None = None,
    skip_data_check: bool = False,
) -> Path:
    """Write `browse.html` and the pictures that it shows.

    The samples are those of the first steps of a training with the same seed: 'before' as the
    loading steps of the pipeline give them, 'after' as the network gets them, before its
    preprocessor normalises and pads them.

    Args:
        config: path of the config, or a model name.
        out_dir: folder of the page; pictures of an earlier page in it are removed.
        split: 'train', 'val' or 'test'.
        samples: number of samples; fewer if the data set has fewer.
        seed: seed of the training.
        data: name of a data set instead of the config's, see `add_data_set`.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        skip_data_check: do not check the data files first.

    Returns:
        path of the page.

    Raises:
        UsageError: something is wrong with the config or the arguments.
        DataError: something is wrong with the data.
        WriteError: the folder cannot be written to.
    """
    if samples < 1:
        raise UsageError(f'--samples {samples}: allowed are numbers from 1.')
    options, loader = parse_options(options), f'{split}_dataloader'
    cfg = load_config(config, options, data=data)
    check_config(cfg, {key.split('.')[0] for key in options})
    if not cfg.get(loader):
        raise UsageError(f'--split {split}: config {config} has no {loader}.')
    out_dir = Path(out_dir)
    check_writable(out_dir / _PICTURES, '--out')
    check_loaders(cfg, split, skip=skip_data_check)
    dataset = _build(cfg, loader, seed)
    meta = getattr(dataset, 'metainfo', None) or {}
    classes = [str(name) for name in meta.get('classes') or ()]
    palette = palette_of(dict(meta, classes=classes))
    counts, notes = _count(cfg, loader, dataset)
    for path in (out_dir / _PICTURES).glob('*.jpg'):
        if re.fullmatch(r'\d{4,}_(before|after)(_annotated)?\.jpg', path.name):
            path.unlink()
    count = min(samples, len(dataset))
    drawn = run_loop(lambda: list(_draw_samples(dataset, count, classes, palette, out_dir)))
    page = out_dir / 'browse.html'
    trained = f'the first of a training with --seed {seed}' if split == 'train' else 'the first'
    about = [f'{count} samples, {trained}; {counts.summary() if counts else len(dataset)}', *notes]
    write_data_page(
        page,
        title=f'{run_name(config, None, data)}: {split}',
        about=about,
        classes=[(name, css_colour(colour)) for name, colour in zip(classes, palette)],
        charts=counts.charts(classes, palette) if counts else [],
        samples=drawn,
    )
    return page


def _build(cfg: Config, loader: str, seed: int) -> ResumableDataset:
    """The data set of a loader, indexed by the positions of a training with this seed."""
    with config_errors(cfg), contextlib.redirect_stdout(io.StringIO()):  # pycocotools' lines
        batches = ResumableLoader(Runner.build_dataloader(cfg[loader], seed), seed)
    dataset = batches.loader.dataset
    if batches.deterministic:
        return dataset
    warn(
        f'{batches.sampler_name} keeps a state of its own: the samples shown are not the first of '
        'a training'
    )
    return ResumableDataset(dataset, seed, True, len(dataset))


# ---- counting ----------------------------------------------------------------------------------
def _count(
    cfg: Config, loader: str, dataset
) -> tuple[ObjectCounts | PixelCounts | None, list[str]]:
    """What the data sets of a loader hold, and notes about what could not be counted."""
    objects, pixels, notes = ObjectCounts(), PixelCounts(), []
    leaves = list(dataset_leaves(cfg[loader]['dataset']))
    evaluator = cfg.get(loader.replace('_dataloader', '_evaluator'))
    for leaf, built in zip(leaves, leaf_datasets(dataset.inner)):
        if not hasattr(built, 'get_data_info'):
            notes.append(f'{leaf["type"]} describes none of its samples, so nothing is counted.')
        elif not has_label_maps(built):
            objects.add(built)
        elif partial_checks.remote_backends(leaf):
            notes.append(f'{leaf["type"]} is read by a file client, so nothing is counted.')
        elif partial_checks.reads_images_alone(leaf, loader, evaluator):
            notes.append(f'{leaf["type"]} of {loader} has no label maps.')
        else:
            pixels.add(LabelMaps(build_dataset(leaf), leaf, loader))
    faults = pixels.faults
    if faults:
        more = f' and {len(faults) - 1} more' if len(faults) > 1 else ''
        notes.append(f'{printable(faults[0])}{more}: mmattn check-data lists all.')
    if objects.images and pixels.images:
        notes.append('Objects and label maps are mixed; the charts show the objects.')
    counts = objects if objects.images else pixels if pixels.images else None
    return counts, notes


# ---- samples -----------------------------------------------------------------------------------
def _draw_samples(
    dataset: ResumableDataset,
    count: int,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    out_dir: Path,
) -> Iterator[Sample]:
    for position in track(range(count), total=count, title='drawing samples'):
        leaf, index, mixed = _locate(dataset.inner, dataset.index(position))
        stages, name = [], f'sample {position}'
        if hasattr(leaf, 'get_data_info'):
            path = leaf.get_data_info(index).get('img_path')
            if path and os.path.isfile(path):  # not of a file client
                check_file(path)
            with seeded(0):
                results = load_sample(leaf, index)
            name = str(results.get('img_path') or name)
            if results.get('img') is not None:
                stages.append(('before', _loaded(results, leaf, len(classes))))
        packed = dataset[position]
        if not isinstance(packed, dict) or not {'inputs', 'data_samples'} <= packed.keys():
            raise UsageError(
                f'the pipeline of {type(leaf).__name__} does not end with PackDetInputs or '
                'PackSegInputs, so its samples cannot be drawn. Add the fitting one.'
            )
        after = _packed(packed, leaf, len(classes))
        path = str(packed['data_samples'].metainfo.get('img_path', name))
        if path != name and stages:  # the pipeline dropped the sample and drew another one
            name = f'{name}, replaced by {path}'
        if mixed:
            name += ', mixed with other images'
        stages.append(('after', after))
        yield Sample(
            name,
            [
                _draw(annotated, f'{position:04d}_{title}', title, classes, palette, out_dir)
                for title, annotated in stages
            ],
        )


def _locate(dataset, index: int) -> tuple:
    """The data set without wrappers, the index in it, and whether a wrapper mixes images."""
    mixed = False
    while True:
        find = getattr(dataset, '_get_ori_dataset_idx', None)
        if hasattr(dataset, 'datasets') and find:
            part, index = find(index)
            dataset = dataset.datasets[part]
        elif hasattr(dataset, 'dataset'):
            index, mixed = (find(index), mixed) if find else (index, True)
            dataset = dataset.dataset
        else:
            return dataset, index, mixed


def _loaded(results: dict, dataset, class_count: int) -> _Annotated:
    """A sample after its loading steps."""
    image = to_display(results['img'], _reads_rgb(dataset))
    boxes, objects = results.get('gt_bboxes'), None
    if boxes is not None:
        boxes = np.asarray(getattr(boxes, 'tensor', boxes), np.float32).reshape(-1, 4)
        labels = np.asarray(results['gt_bboxes_labels']).astype(np.int64)
        ignored = np.asarray(results.get('gt_ignore_flags', np.zeros(len(boxes), bool)), bool)
        masks = results.get('gt_masks')
        masks = None if masks is None else masks.to_ndarray().astype(bool)
        objects = Objects(boxes, np.where(ignored, class_count, labels), None, masks)
    return _Annotated(image, objects, label_map_of(results) if boxes is None else None)


def _packed(packed: dict, dataset, class_count: int) -> _Annotated:
    """A sample as the network gets it, its annotations at the scale of its image."""
    inputs, sample = packed['inputs'], packed['data_samples']
    to_image_scale(sample, tuple(inputs.shape[-2:]), loads_after_resize(dataset))
    converts = sum(bool(getattr(step, 'to_rgb', False)) for step in pipeline_steps(dataset))
    rgb = _reads_rgb(dataset) ^ bool(converts)
    image = to_display(inputs.permute(1, 2, 0).numpy(), rgb)
    instances, ignored = sample.get('gt_instances'), sample.get('ignored_instances')
    if instances is None:
        labels = sample.get('gt_sem_seg')
        return _Annotated(image, None, None if labels is None else labels.data[0].numpy())
    if 'bboxes' not in instances:
        return _Annotated(image, None, None)
    objects = Objects.from_instances(instances)
    if ignored is not None and 'bboxes' in ignored and len(ignored):
        objects = _joined(objects, Objects.from_instances(ignored), class_count)
    return _Annotated(image, objects, None)


def _joined(objects: Objects, ignored: Objects, class_count: int) -> Objects:
    """Objects, and ignored ones with the number of classes as their label."""
    masks = None
    if objects.masks is not None and ignored.masks is not None:
        masks = np.concatenate([objects.masks, ignored.masks])
    return Objects(
        np.concatenate([objects.boxes, ignored.boxes]),
        np.concatenate([objects.labels, np.full_like(ignored.labels, class_count)]),
        None,
        masks,
    )


def _reads_rgb(dataset) -> bool:
    """Whether the loader of a data set gives colours in the order of the file, not BGR."""
    steps = pipeline_steps(dataset)
    return any(getattr(step, 'imdecode_backend', None) == 'tifffile' for step in steps)


def _draw(
    annotated: _Annotated,
    name: str,
    title: str,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    out_dir: Path,
) -> Stage:
    """Write the picture of a stage without and with its annotations and a legend."""
    image, objects, labels = annotated
    picture, present, caption = image, np.array([], int), 'no annotations'
    if objects is not None:
        picture = draw_objects(image, objects, [*palette, _IGNORED])
        present, count = np.unique(objects.labels), Counter(objects.labels.tolist())
        named = [f'{count[i]} {_class_name(classes, i)}' for i in present.tolist()]
        caption = ', '.join(named) or 'no object'
    elif labels is not None:
        picture, present = overlay(image, labels, palette), np.unique(labels)
        caption = ', '.join(_class_name(classes, i) for i in present.tolist())
    plain, drawn = f'{_PICTURES}/{name}.jpg', f'{_PICTURES}/{name}_annotated.jpg'
    save_picture(out_dir / plain, image)
    save_picture(out_dir / drawn, side_by_side({'': picture}, present, classes, palette))
    height, width = image.shape[:2]
    return Stage(f'{title}, {width} x {height}', plain, drawn, caption)


def _class_name(classes: Sequence[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else 'ignored'
