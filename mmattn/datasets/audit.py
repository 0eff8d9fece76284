"""Audit of the data of a config: every file is read in full, every problem listed and counted."""

import json
import os
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from mmattn.config.check import check_config
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import load_config, parse_options
from mmattn.errors import DataError, MmattnError, cannot_write, printable
from mmattn.progress import track

from . import annotation_filter, coco, coco_images, image_io, partial_checks, validation
from .build import build_dataset, has_label_maps, trains_masks
from .coco_boxes import to_floats
from .coco_entries import KEYS, check_not_panoptic, parse_coco, read_entries
from .label_maps import LabelMaps
from .label_statistics import LabelStatistics
from .loading_steps import LoadingSteps
from .pairing import some_paths

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Keys of a data set on which its files do not depend.
_READING_KEYS = ('pipeline', 'test_mode', 'filter_cfg', 'indices', 'serialize_data', 'max_refetch')
_SHOWN = 50  # problems of a data set that are printed; the JSON file has all
_SMALL, _MEDIUM = 32**2, 96**2  # px; COCO's limits of small and medium objects
_SOURCES = {
    'median_frequency': 'median frequency (Eigen and Fergus, ICCV 2015)',
    'inverse_log': '1 / ln(1.02 + share) (ENet, 2016)',
}


def audit(
    config: str | Path,
    *,
    options: dict | list[str] | None = None,
    data: str | None = None,
    json_path: str | Path | None = None,
) -> dict:
    """Read all data of a config once and print what is in them and what is wrong.

    Args:
        config: path of the config.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        data: name of a data set instead of the config's, see `add_data_set`.
        json_path: where to write the returned dict.

    Returns:
        problems, warnings and numbers per data set, and class weights of the training data.

    Raises:
        DataError: there are problems in the data, which have been printed.
        UsageError: something is wrong with the config.
        WriteError: the JSON file cannot be written.
    """
    options = parse_options(options)
    cfg = load_config(config, options, data=data)
    check_config(cfg, {key.split('.')[0] for key in options})
    uses: dict[str, list[tuple[str, dict]]] = {}
    for loader in _LOADERS:
        for leaf in dataset_leaves(cfg[loader]['dataset']) if cfg.get(loader) else ():
            identity = sorted((k, v) for k, v in leaf.items() if k not in _READING_KEYS)
            uses.setdefault(repr(identity), []).append((loader, leaf))
    report = dict(config=str(config), data_sets=[], class_weight=None)
    train, classes = LabelStatistics(), None
    cores = len(os.sched_getaffinity(0))
    # spawn: a fork of a process that runs threads, as torch does, can hang
    with ProcessPoolExecutor(
        cores, mp_context=get_context('spawn'), initializer=image_io.capture_decoder_messages
    ) as pool:
        for same in uses.values():
            part, statistics = _audit_dataset(same, pool, cfg)
            report['data_sets'].append(part)
            _print(part)
            if statistics is not None and same[0][0] == _LOADERS[0]:
                train, classes = train + statistics, [entry['name'] for entry in part['classes']]
    if classes and train.pixels[: len(classes)].any():
        weights = train.class_weights(len(classes))
        report['class_weight'] = {
            key: dict(source=source, values=weights[key]) for key, source in _SOURCES.items()
        }
        template, note = _weights_template(cfg)
        print(f'class weights of the training data, {note}')
        for key, source in _SOURCES.items():
            values = ', '.join(f'{value:.4g}' for value in weights[key])
            print(f'{source}:\n    {template.format(f"class_weight=[{values}]")}')
    if json_path:
        _write(report, json_path)
    count = sum(len(part['problems']) for part in report['data_sets'])
    if count:
        what = '1 problem' if count == 1 else f'{count} problems'
        raise DataError(f'{what} in the data of {config}, named above. Fix them before training.')
    print('no problem found')
    return report


def _weights_template(cfg: dict) -> tuple[str, str]:
    """How class weights go into this config, and where: avg_non_ignore=True fails on them."""
    model, losses = cfg.get('model') or {}, []
    for key in 'decode_head', 'auxiliary_head':
        heads = model.get(key) or []
        for head in [heads] if isinstance(heads, dict) else heads:
            losses.append(head.get('loss_decode') or dict(type='CrossEntropyLoss'))
    has_lists = any(isinstance(loss, list | tuple) for loss in losses)
    flat = [
        part for loss in losses for part in (loss if isinstance(loss, list | tuple) else [loss])
    ]
    softmax = [
        loss
        for loss in flat
        if loss.get('type', '').endswith('CrossEntropyLoss') and not loss.get('use_sigmoid')
    ]
    if losses and not softmax:
        return '{}', 'for CrossEntropyLoss without use_sigmoid, which no head of the config has'
    if has_lists:
        return 'avg_non_ignore=False, {}', 'for the CrossEntropyLoss in loss_decode'
    return 'loss_decode=dict(avg_non_ignore=False, {})', 'for decode_head and auxiliary_head'


def _audit_dataset(
    same: list[tuple[str, dict]], pool: Executor, cfg: dict
) -> tuple[dict, LabelStatistics | None]:
    """Audit a data set.

    Args:
        same: loaders that use the data set, and its config in each.
        pool: decodes images.
        cfg: the whole config.

    Returns:
        part of the report, and label statistics if the data set has label maps.
    """
    leaf, loaders = same[0][1], list(dict.fromkeys(loader for loader, _ in same))
    part = dict(type=leaf['type'], folder=None, loaders=loaders, images=0, problems=[], warnings=[])
    statistics = None
    try:
        dataset, backends = build_dataset(leaf), partial_checks.remote_backends(leaf)
        evaluator = cfg.get(loaders[0].replace('_dataloader', '_evaluator'))
        if backends:
            several = len(list(dataset_leaves(cfg[loaders[0]]['dataset']))) > 1
            part['warnings'] += partial_checks.check_remote(
                leaf, loaders[0], backends, trains_masks(leaf), several
            )
        elif has_label_maps(dataset) and partial_checks.reads_images_alone(
            leaf, loaders[0], evaluator
        ):
            partial_checks.check_images(dataset, loaders[0])
        elif has_label_maps(dataset):
            maps = LabelMaps(dataset, leaf, ', '.join(loaders))
            statistics = _audit_label_maps(maps, part, pool)
        elif hasattr(dataset, 'COCOAPI'):
            _audit_coco(dataset, same, part, pool, cfg)
        else:
            part['warnings'].append(f'data set {leaf["type"]} is of no kind that can be checked.')
    except DataError as error:
        part['problems'].append(str(error))
    return part, statistics


def _audit_label_maps(maps: LabelMaps, part: dict, pool: Executor) -> LabelStatistics:
    statistics, faults = LabelStatistics(), list(maps.missing)
    label_counts = np.zeros(256, np.int64)
    for info, (_, label) in zip(maps.scan(pool, decode=True), maps.pairs):
        faults += info.faults
        if info.counts is not None:
            label_counts += info.counts
            statistics.add(info.counts, maps.table, label)
    overall, warnings = maps.check_overall(label_counts)
    faults += overall
    wrong = np.flatnonzero((label_counts > 0) & (maps.table < 0)).tolist()
    part.update(folder=str(maps.folder), images=maps.count)
    errors = [fault for fault in faults if fault.kind != 'warning']
    missing_kinds = {fault.kind for fault in maps.missing}
    for kind in dict.fromkeys(fault.kind for fault in errors):
        same = [fault for fault in errors if fault.kind == kind]
        part['problems'] += [f'{fault.text}.' for fault in same[:-1]]
        if kind in missing_kinds:
            remedy = maps.remedy_for_missing(kind)
        else:
            remedy = maps.remedy(kind, wrong, same)
        part['problems'].append(f'{same[-1].text}. {remedy}')
    part['warnings'] += warnings
    part['warnings'] += [f'{fault.text}.' for fault in faults if fault.kind == 'warning']
    part['warnings'] += maps.unpaired_labels()
    pixels, count = statistics.pixels, len(maps.classes)
    labelled = int(pixels[:255].sum())
    part['classes'] = [
        dict(
            name=name,
            pixels=int(pixels[i]),
            percent=100 * int(pixels[i]) / max(labelled, 1),
            images=int(statistics.maps[i]),
        )
        for i, name in enumerate(maps.classes)
    ]
    part['pixels'] = statistics.total
    part['ignored_percent'] = 100 * int(pixels[255]) / max(statistics.total, 1)
    part['absent'] = [maps.classes[i] for i in range(count) if not pixels[i]]
    part['ignored_maps'] = statistics.ignored_maps
    part['wrong_labels'] = {str(value): int(label_counts[value]) for value in wrong}
    if not errors:
        validation.save_sound(maps, warnings)
    return statistics


def _audit_coco(
    dataset, same: list[tuple[str, dict]], part: dict, pool: Executor, cfg: dict
) -> None:
    file, folder = Path(dataset.ann_file), Path(dataset.data_prefix['img'])
    part.update(file=str(file), folder=str(folder))
    errors = []
    for loader, leaf in {
        loader.startswith('train'): (loader, leaf) for loader, leaf in same
    }.values():
        try:
            evaluator = cfg.get(loader.replace('_dataloader', '_evaluator'))
            several = len(list(dataset_leaves(cfg[loader]['dataset']))) > 1
            part['warnings'] += validation.check_coco_dataset(
                dataset, leaf, loader, evaluator, part=several
            )
        except DataError as error:
            errors.append(str(error))
    part['problems'] += errors
    if not file.is_file():
        return
    try:
        content = parse_coco(file.read_bytes(), str(file))
        check_not_panoptic(content)
        content.setdefault('annotations', [])  # none in the test set of a benchmark
        images, annotations, categories = (read_entries(content, kind) for kind in KEYS)
    except DataError:
        return  # reported above
    images = [image for image in images if type(image['file_name']) is str]
    faults: dict[int, image_io.Fault] = {}
    loading = LoadingSteps(same[0][1].get('pipeline', []))
    if errors:  # then it is not known that each image exists and has the size in the JSON
        work = partial(coco_images.file_problem, folder=folder, loading=loading)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            faults = {i: fault for i, fault in enumerate(threads.map(work, images)) if fault}
        texts = [fault.text for fault in faults.values()]
        if faults:
            part['problems'] = [e for e in errors if not any(text in e for text in texts)]
            part['problems'] += [f'{text}.' for text in texts[:-1]]
            last = [*faults.values()][-1]
            remedy = coco_images.remedy(last.kind, faults.values(), file, loading)
            part['problems'].append(f'{texts[-1]}. {remedy}')
    readable = [image for i, image in enumerate(images) if i not in faults]
    paths = [os.path.join(folder, image['file_name']) for image in readable]
    if loading.image:
        inspect = partial(image_io.inspect_image, decoding=loading.image)
        results = pool.map(inspect, paths, chunksize=8)
    else:
        results = map(partial(_load_faults, loading), paths)
    for image_faults in track(results, total=len(paths), title=f'reading {folder}'):
        for fault in image_faults:
            part['warnings' if fault.kind == 'warning' else 'problems'].append(f'{fault.text}.')
    part.update(_count_boxes(images, annotations, categories, dataset.metainfo['classes']))
    part['held'] = _count_loaded(content, dataset, same)


def _load_faults(loading: LoadingSteps, path: str) -> list[image_io.Fault]:
    """The error of a custom loader on an image, as a fault."""
    try:
        loading.shape(path)
    except MmattnError as error:
        return [image_io.Fault('file', str(error).removesuffix('.'))]
    return []


def _count_loaded(content: dict, dataset, same: list[tuple[str, dict]]) -> dict | None:
    """What the loader keeps after its filters, and annotations that it drops by reason."""
    try:
        reasons = coco.count_drop_reasons(content, dataset.metainfo['classes'])
        leaf = same[0][1]
        loaded = validation.cached_counts(leaf, Path(dataset.ann_file), trains_masks(leaf))
    except (DataError, KeyError, TypeError):
        return None  # the file is faulty, which is reported
    dropped = {k: n for k, n in reasons.items() if k != annotation_filter.LEARNT}
    return dict(loaded._asdict(), dropped=dropped)


def _count_boxes(
    images: list[dict], annotations: list[dict], categories: list[dict], classes: tuple | None
) -> dict:
    """Objects and groups (iscrowd) per category, by area, and the images without objects."""
    names = {c['id']: c['name'] for c in categories if classes is None or c['name'] in classes}
    counts, image_ids = Counter(), {ident: set() for ident in names}
    areas = to_floats([a['area'] for a in annotations])
    for annotation, area in zip(annotations, areas.tolist()):
        ident = annotation['category_id']
        if ident not in names:
            continue
        if annotation.get('ignore'):
            continue
        if annotation.get('iscrowd'):
            counts[ident, 'groups'] += 1
            continue
        size = 'small' if area < _SMALL else 'medium' if area < _MEDIUM else 'large'
        counts[ident, size] += 1
        image_ids[ident].add(annotation['image_id'])
    entries = []
    for ident, name in names.items():
        small, medium, large, groups = (
            counts[ident, kind] for kind in ('small', 'medium', 'large', 'groups')
        )
        entries.append(
            dict(
                name=name,
                boxes=small + medium + large,
                small=small,
                medium=medium,
                large=large,
                groups=groups,
                images=len(image_ids[ident]),
            )
        )
    filled = set().union(*image_ids.values())
    return dict(
        images=len(images),
        boxes=sum(entry['boxes'] for entry in entries),
        categories=entries,
        absent=[entry['name'] for entry in entries if not entry['boxes']],
        images_without_objects=[i['file_name'] for i in images if i['id'] not in filled],
    )


def _print(part: dict) -> None:
    path = part.get('file') or part['folder']
    print(f'{part["type"]} {path or ""} ({", ".join(part["loaders"])}): {part["images"]} images')
    if 'classes' in part:
        print(f'{"class":<24s}{"% of labelled":>14s}{"images":>8s}')
        for entry in part['classes']:
            print(f'{entry["name"]:<24s}{entry["percent"]:>14.4f}{entry["images"]:>8d}')
        print(f'ignored: {part["ignored_percent"]:.4f} % of all pixels')
        if part['ignored_maps']:
            print(
                f'all is ignored in {len(part["ignored_maps"])} label maps: '
                f'{some_paths(part["ignored_maps"])}'
            )
    if 'categories' in part:
        columns = ('boxes', 'small', 'medium', 'large', 'groups', 'images')
        print(f'{"category":<24s}' + ''.join(f'{name:>9s}' for name in columns))
        for entry in part['categories']:
            print(f'{entry["name"]:<24s}' + ''.join(f'{entry[name]:>9d}' for name in columns))
        if part.get('held'):
            print(_loaded_line(part['held']))
        empty = part['images_without_objects']
        if empty:
            print(f'without objects: {len(empty)} of {part["images"]} images: {some_paths(empty)}')
    if part.get('absent'):
        print(f'never occur: {", ".join(part["absent"])}')
    for kind in 'warnings', 'problems':
        for text in part[kind][:_SHOWN]:
            print(printable(f'{kind[:-1]}: {text}'))
        if part[kind][_SHOWN:]:
            print(f'... and {len(part[kind]) - _SHOWN} more {kind}; --json OUT lists all')
    print()


def _loaded_line(loaded: dict) -> str:
    """Images and boxes that the loader keeps, and annotations that it drops by reason."""
    dropped = ', '.join(f'{count} {reason}' for reason, count in loaded['dropped'].items())
    kept = f'the loader keeps {loaded["images"]} of {loaded["listed"]} images'
    boxes = f', {loaded["boxes"]} boxes' if loaded['boxes'] >= 0 else ''
    return f'{kept}{boxes}; dropped or ignored: {dropped or "nothing"}'


def _write(report: dict, path: str | Path) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(report, indent=1) + '\n')
    except OSError as error:
        raise cannot_write(path, error, 'Choose another file with --json.') from error
