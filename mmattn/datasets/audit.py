"""All that is wrong with the data of a config, and what they hold: every file is read in full.

Class weights: median frequency, Eigen and Fergus, Predicting depth, surface normals and semantic
    labels, ICCV 2015, arXiv 1411.4734; inverse log, Paszke et al., ENet, arXiv 1606.02147.
"""

import json
import os
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from mmattn.config.check import check_config
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import load_config, parse_options
from mmattn.errors import DataError, MmattnError, WriteError, printable
from mmattn.progress import track

from . import (
    annotation_filter as held,
)
from . import (
    coco,
    coco_images,
)
from . import (
    image_io as files,
)
from . import (
    unchecked as unseen,
)
from . import (
    validation as check,
)
from .loading_steps import Loading
from .pairing import some

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# Keys of a data set that do not say which files it has.
_READING = ('pipeline', 'test_mode', 'filter_cfg', 'indices', 'serialize_data', 'max_refetch')
_SHOWN = 50  # problems of a data set on the screen; the JSON has all
_SMALL, _MEDIUM = 32**2, 96**2  # px; COCO's bounds of small and medium objects
_SOURCES = {
    'median_frequency': 'median frequency (Eigen and Fergus, ICCV 2015)',
    'inverse_log': '1 / ln(1.02 + share) (ENet, 2016)',
}


@dataclass
class Census:
    """What label maps hold; arrays (256,) by what training makes of a label: a class, or 255."""

    total: int = 0  # pixels
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    maps: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # that hold it
    within: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # pixels of those
    void: list[str] = field(default_factory=list)  # label maps in which all is ignored

    def add(self, pixels: np.ndarray, table: np.ndarray, name: str) -> None:
        """Count a label map: `pixels` (256,) by label; `table` (256,) says what becomes of it."""
        mine, size, known = np.zeros(256, np.int64), int(pixels.sum()), table >= 0
        np.add.at(mine, table[known], pixels[known])
        self.total += size
        self.pixels += mine
        self.maps += mine > 0
        self.within += (mine > 0) * size
        if mine[255] == size:
            self.void.append(name)

    def __add__(self, other: 'Census') -> 'Census':
        names = 'total', 'pixels', 'maps', 'within', 'void'
        return Census(*(getattr(self, name) + getattr(other, name) for name in names))

    def class_weights(self, count: int) -> dict[str, list[float]]:
        """Weights of `count` classes by their source; a class that never occurs has 1 or 50.5.

        Median frequency: median(f) / f, f the share of a class in the images where it occurs.
        Inverse log: 1 / ln(1.02 + p), p the share of a class in all labelled pixels.
        """
        pixels, present = self.pixels[:count], self.pixels[:count] > 0
        shares = pixels[present] / self.within[:count][present]
        balanced = np.ones(count)
        balanced[present] = np.median(shares) / shares if present.any() else 1
        inverse = 1 / np.log(1.02 + pixels / max(pixels.sum(), 1))
        return dict(median_frequency=balanced.tolist(), inverse_log=inverse.tolist())


def survey(
    config: str | Path,
    *,
    options: dict | list[str] | None = None,
    json_path: str | Path | None = None,
) -> dict:
    """Read all data of a config once and print what was found.

    Args:
        config: its path.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        json_path: where to write what is returned.

    Returns:
        per data set its problems, warnings and numbers, and class weights of the training data.

    Raises:
        DataError: something is wrong with the data; what, has been printed.
        UsageError: something is wrong with the config.
        WriteError: the JSON file cannot be written.
    """
    options = parse_options(options)
    cfg = load_config(config, options)
    check_config(cfg, {key.split('.')[0] for key in options})
    uses: dict[str, list[tuple[str, dict]]] = {}
    for loader in _LOADERS:
        for leaf in dataset_leaves(cfg[loader]['dataset']) if cfg.get(loader) else ():
            identity = sorted((k, v) for k, v in leaf.items() if k not in _READING)
            uses.setdefault(repr(identity), []).append((loader, leaf))
    found = dict(config=str(config), data_sets=[], class_weight=None)
    train, classes = Census(), None
    cores = len(os.sched_getaffinity(0))
    # spawn: a fork of a process that runs threads, as torch does, can hang
    with ProcessPoolExecutor(
        cores, mp_context=get_context('spawn'), initializer=files.listen
    ) as pool:
        for same in uses.values():
            part, census = _examine(same, pool, cfg)
            found['data_sets'].append(part)
            _print(part)
            if census is not None and same[0][0] == _LOADERS[0]:
                train, classes = train + census, [row['name'] for row in part['classes']]
    if classes and train.pixels[: len(classes)].any():
        weights = train.class_weights(len(classes))
        found['class_weight'] = {
            key: dict(source=source, values=weights[key]) for key, source in _SOURCES.items()
        }
        form, note = _weights_form(cfg)
        print(f'class weights of the training data, {note}')
        for key, source in _SOURCES.items():
            values = ', '.join(f'{value:.4g}' for value in weights[key])
            print(f'{source}:\n    {form.format(f"class_weight=[{values}]")}')
    if json_path:
        _write(found, json_path)
    count = sum(len(part['problems']) for part in found['data_sets'])
    if count:
        what = '1 problem' if count == 1 else f'{count} problems'
        raise DataError(f'{what} in the data of {config}, named above. Mend them before training.')
    print('no problem found')
    return found


def _weights_form(cfg: dict) -> tuple[str, str]:
    """How class weights go into this config, and where: avg_non_ignore=True fails on them."""
    model, losses = cfg.get('model') or {}, []
    for head in 'decode_head', 'auxiliary_head':
        heads = model.get(head) or []
        for one in [heads] if isinstance(heads, dict) else heads:
            losses.append(one.get('loss_decode') or dict(type='CrossEntropyLoss'))
    several = any(isinstance(loss, list | tuple) for loss in losses)
    flat = [one for loss in losses for one in (loss if isinstance(loss, list | tuple) else [loss])]
    softmax = [
        loss
        for loss in flat
        if loss.get('type', '').endswith('CrossEntropyLoss') and not loss.get('use_sigmoid')
    ]
    if losses and not softmax:
        return '{}', 'for CrossEntropyLoss without use_sigmoid, which no head of the config has'
    if several:
        return 'avg_non_ignore=False, {}', 'for the CrossEntropyLoss in loss_decode'
    return 'loss_decode=dict(avg_non_ignore=False, {})', 'for decode_head and auxiliary_head'


def _examine(same: list[tuple[str, dict]], pool: Executor, cfg: dict) -> tuple[dict, Census | None]:
    """What is known about a data set after reading it, and its census if it has label maps."""
    leaf, loaders = same[0][1], list(dict.fromkeys(loader for loader, _ in same))
    part = dict(type=leaf['type'], folder=None, loaders=loaders, images=0, problems=[], warnings=[])
    census = None
    try:
        dataset, clients = check.build(leaf), unseen.backends(leaf)
        evaluator = cfg.get(loaders[0].replace('_dataloader', '_evaluator'))
        if clients:
            several = len(list(dataset_leaves(cfg[loaders[0]]['dataset']))) > 1
            masks = check.learns_masks(leaf)
            part['warnings'] += unseen.check_behind(leaf, loaders[0], clients, masks, several)
        elif check.has_label_maps(dataset) and check.are_images_alone(leaf, loaders[0], evaluator):
            unseen.check_images(dataset, loaders[0])
        elif check.has_label_maps(dataset):
            maps = check.LabelMaps(dataset, leaf, ', '.join(loaders))
            census = _examine_maps(maps, part, pool)
        elif hasattr(dataset, 'COCOAPI'):
            _examine_coco(dataset, same, part, pool, cfg)
        else:
            part['warnings'].append(f'data set {leaf["type"]} is of no kind that can be checked.')
    except DataError as error:
        part['problems'].append(str(error))
    return part, census


def _examine_maps(maps: check.LabelMaps, part: dict, pool: Executor) -> Census:
    census, faults, raw = Census(), list(maps.missing), np.zeros(256, np.int64)
    for found, (_, label) in zip(maps.scan(pool, whole=True), maps.pairs):
        faults += found.faults
        if found.pixels is not None:
            raw += found.pixels
            census.add(found.pixels, maps.table, label)
    overall, warnings = maps.judge(raw)
    faults += overall
    wrong = np.flatnonzero((raw > 0) & (maps.table < 0)).tolist()
    part.update(folder=str(maps.folder), images=maps.count)
    bad = [fault for fault in faults if fault.kind != 'doubt']
    lacking = {fault.kind for fault in maps.missing}
    for kind in dict.fromkeys(fault.kind for fault in bad):
        texts = [text for other, text in bad if other == kind]
        part['problems'] += [f'{text}.' for text in texts[:-1]]
        remedy = maps.remedy_of_missing(kind) if kind in lacking else maps.cure(kind, wrong, texts)
        part['problems'].append(f'{texts[-1]}. {remedy}')
    part['warnings'] += warnings + [f'{text}.' for kind, text in faults if kind == 'doubt']
    part['warnings'] += maps.lonely()
    labelled, count = int(census.pixels[:255].sum()), len(maps.classes)
    part['classes'] = [
        dict(
            name=name,
            pixels=int(census.pixels[i]),
            percent=100 * int(census.pixels[i]) / max(labelled, 1),
            images=int(census.maps[i]),
        )
        for i, name in enumerate(maps.classes)
    ]
    part['pixels'] = census.total
    part['ignored_percent'] = 100 * int(census.pixels[255]) / max(census.total, 1)
    part['absent'] = [maps.classes[i] for i in range(count) if not census.pixels[i]]
    part['ignored_maps'] = census.void
    part['wrong_labels'] = {str(value): int(raw[value]) for value in wrong}
    if not bad:
        check.keep(check.cached(maps), maps, warnings)
    return census


def _examine_coco(
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
            part['warnings'] += check.check_coco(dataset, leaf, loader, evaluator, part=several)
        except DataError as error:
            errors.append(str(error))
    part['problems'] += errors
    if not file.is_file():
        return
    try:
        content = coco.parse(file.read_bytes(), str(file))
        coco.check_instances(content)
        content.setdefault('annotations', [])  # none in the test set of a benchmark
        images, annotations, categories = (coco.read_entries(content, kind) for kind in coco.KEYS)
    except DataError:
        return  # said above
    images = [image for image in images if type(image['file_name']) is str]
    faulty: dict[int, files.Fault] = {}
    loading = Loading(same[0][1].get('pipeline', []))
    if errors:  # then it is not known that each image is there and as large as the JSON says
        work = partial(coco_images.file_problem, folder=folder, loading=loading)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            faulty = {i: fault for i, fault in enumerate(threads.map(work, images)) if fault}
        texts = [fault.text for fault in faulty.values()]
        if faulty:
            part['problems'] = [e for e in errors if not any(text in e for text in texts)]
            part['problems'] += [f'{text}.' for text in texts[:-1]]
            remedy = coco_images.remedy([*faulty.values()][-1].kind, texts, file, loading)
            part['problems'].append(f'{texts[-1]}. {remedy}')
    paths = [
        os.path.join(folder, image['file_name'])
        for i, image in enumerate(images)
        if i not in faulty
    ]
    if loading.image:
        look = partial(files.look_at_image, how=loading.image)
        looked = pool.map(look, paths, chunksize=8)
    else:
        looked = map(partial(_load, loading), paths)
    for faults in track(looked, total=len(paths), title=f'reading {folder}'):
        for kind, text in faults:
            part['warnings' if kind == 'doubt' else 'problems'].append(f'{text}.')
    part.update(_count_boxes(images, annotations, categories, dataset.metainfo['classes']))
    part['held'] = _count_held(content, dataset, same)


def _load(loading: Loading, path: str) -> list[files.Fault]:
    """What a loader of the config's own says against an image."""
    try:
        loading.shape(path)
    except MmattnError as error:
        return [files.Fault('file', str(error).removesuffix('.'))]
    return []


def _count_held(content: dict, dataset, same: list[tuple[str, dict]]) -> dict | None:
    """What the loader keeps behind its filters, and how many annotations it drops for what."""
    try:
        why = coco.why_dropped(content, dataset.metainfo['classes'])
        leaf = same[0][1]
        found = check.count_held(leaf, Path(dataset.ann_file), check.learns_masks(leaf))
    except (DataError, KeyError, TypeError):
        return None  # the file is faulty, which is said
    return dict(found._asdict(), dropped={k: n for k, n in why.items() if k != held.LEARNT})


def _count_boxes(
    images: list[dict], annotations: list[dict], categories: list[dict], classes: tuple | None
) -> dict:
    """Objects and groups (iscrowd) per category, by area, and the images without objects."""
    names = {c['id']: c['name'] for c in categories if classes is None or c['name'] in classes}
    counts, places = Counter(), {ident: set() for ident in names}
    areas = coco.floats([a['area'] for a in annotations])
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
        places[ident].add(annotation['image_id'])
    rows = []
    for ident, name in names.items():
        small, medium, large, groups = (
            counts[ident, kind] for kind in ('small', 'medium', 'large', 'groups')
        )
        rows.append(
            dict(
                name=name,
                boxes=small + medium + large,
                small=small,
                medium=medium,
                large=large,
                groups=groups,
                images=len(places[ident]),
            )
        )
    filled = set().union(*places.values())
    return dict(
        images=len(images),
        boxes=sum(row['boxes'] for row in rows),
        categories=rows,
        absent=[row['name'] for row in rows if not row['boxes']],
        images_without_objects=[i['file_name'] for i in images if i['id'] not in filled],
    )


def _print(part: dict) -> None:
    place = part.get('file') or part['folder']
    print(f'{part["type"]} {place or ""} ({", ".join(part["loaders"])}): {part["images"]} images')
    if 'classes' in part:
        print(f'{"class":<24s}{"% of labelled":>14s}{"images":>8s}')
        for row in part['classes']:
            print(f'{row["name"]:<24s}{row["percent"]:>14.4f}{row["images"]:>8d}')
        print(f'ignored: {part["ignored_percent"]:.4f} % of all pixels')
        if part['ignored_maps']:
            print(
                f'all is ignored in {len(part["ignored_maps"])} label maps: '
                f'{some(part["ignored_maps"])}'
            )
    if 'categories' in part:
        columns = ('boxes', 'small', 'medium', 'large', 'groups', 'images')
        print(f'{"category":<24s}' + ''.join(f'{name:>9s}' for name in columns))
        for row in part['categories']:
            print(f'{row["name"]:<24s}' + ''.join(f'{row[name]:>9d}' for name in columns))
        if part.get('held'):
            print(_held_line(part['held']))
        lonely = part['images_without_objects']
        if lonely:
            print(f'without objects: {len(lonely)} of {part["images"]} images: {some(lonely)}')
    if part.get('absent'):
        print(f'never occur: {", ".join(part["absent"])}')
    for kind in 'warnings', 'problems':
        for text in part[kind][:_SHOWN]:
            print(printable(f'{kind[:-1]}: {text}'))
        if part[kind][_SHOWN:]:
            print(f'... and {len(part[kind]) - _SHOWN} more {kind}; --json OUT lists all')
    print()


def _held_line(found: dict) -> str:
    """Images and boxes that the loader keeps, and what it drops and why."""
    dropped = ', '.join(f'{n} {why}' for why, n in found['dropped'].items())
    kept = f'the loader keeps {found["images"]} of {found["listed"]} images'
    boxes = f', {found["boxes"]} boxes' if found['boxes'] >= 0 else ''
    return f'{kept}{boxes}; dropped or ignored: {dropped or "nothing"}'


def _write(found: dict, path: str | Path) -> None:
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(found, indent=1) + '\n')
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WriteError(
            f'cannot write to {path}: {reason}. Choose another file with --json.'
        ) from error
