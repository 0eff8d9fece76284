"""The data set of a config: `--data NAME` puts that of `configs/NAME.py` into any other config.

Its data sets, pipelines and metrics replace those of the config; batch size, workers and samplers
stay, as they belong to the schedule.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmattn.errors import UsageError
from mmattn.models.det_tta import mask_head_keys
from mmattn.text import nearest, some

from .leaves import class_heads, dataset_leaves
from .names import CONFIG_FOLDERS, is_data_set
from .registered import find_class
from .scopes import DATA_FORMATS, use_scope

_SPLITS = ('train', 'val', 'test')
_MIXES = 'pipeline'  # key of a wrapper that mixes images, such as MultiImageMixDataset
_METRICS = {True: 'mIoU', False: 'coco/bbox_mAP'}  # the main one, by whether it is of label maps


def add_data_set(cfg: Config, data: str | dict) -> None:
    """Put a data set into a config: loaders, metrics, and what depends on the classes.

    The set is read from `NAME.py` or `_base_/datasets/NAME.py` in `configs` of the working folder,
    in the folder of the config, and in mmattn's own configs. `cfg.data_set` records its name and
    classes and what was changed.

    Args:
        cfg: config of a detector or segmentor; changed.
        data: name of the set; or the `cfg.data_set` that a checkpoint recorded, whose classes
            alone are taken where the set is not there.

    Raises:
        UsageError: no such set; it does not suit the network.
    """
    name = data if isinstance(data, str) else data['name']
    path = _find(cfg, name)
    if path is None and isinstance(data, str):
        raise UsageError(_unknown(cfg, name))
    if 'type' not in (cfg.get('model') or {}):
        raise UsageError(f'--data {name}: config {cfg.filename} has no model with a type.')
    if path is None:
        _use_classes(cfg, data)
        return
    loaders = Config.fromfile(path)
    scope = cfg.model.get('_scope_') or use_scope(cfg)
    leaf = next(dataset_leaves(loaders.train_dataloader['dataset']))
    classes = _classes(leaf, scope, path)
    is_labels = 'seg_map_path' in leaf.get('data_prefix', {})
    masks = _check_task(cfg, name, leaf, is_labels)
    for part in _SPLITS:
        _replace_loader(cfg, loaders, part, masks)
    metrics = _metrics(cfg, is_labels)
    heads = _set_class_counts(cfg.model, len(classes))
    if is_labels and 'crop_size' in loaders:
        _set_crop(cfg.model, tuple(loaders.crop_size))
    cfg.data_set = dict(name=name, classes=list(classes), heads=heads, metrics=metrics)


def describe_data_set(cfg: Config) -> list[str]:
    """What `add_data_set` changed, in three lines; none where it changed nothing."""
    data = cfg.get('data_set')
    if not data or 'metrics' not in data:
        return []
    classes = data['classes']
    heads = some(data['heads'], 6) or 'they have this number of classes'
    return [
        f'data set {data["name"]}: {len(classes)} classes ({some(classes, 8)})',
        f'heads: {heads}',
        f'metrics: {data["metrics"]}; pretrained weights that no longer fit are left out',
    ]


def _folders(cfg: Config) -> list[Path]:
    config = Path(cfg.filename)
    own = [] if config.suffix in DATA_FORMATS else [config.parent]  # data execute no code there
    folders = [Path('configs'), *own, *CONFIG_FOLDERS]
    return [place for folder in folders for place in (folder, folder / '_base_' / 'datasets')]


def _find(cfg: Config, name: str) -> Path | None:
    if not re.fullmatch(r'[\w-]+', name):
        return None
    paths = [folder / f'{name}.py' for folder in _folders(cfg)]
    return next((path for path in paths if is_data_set(path)), None)


def _unknown(cfg: Config, name: str) -> str:
    paths = [path for folder in _folders(cfg) for path in folder.glob('*.py')]
    names = sorted({path.stem for path in paths if is_data_set(path)})
    return (
        f'--data {name}: no such data set.{nearest(name, names)} There are: {", ".join(names)}. '
        'Import yours with: mmattn data import NAME --from DIR'
    )


def _classes(leaf: dict, scope: str, path: Path) -> tuple[str, ...]:
    """Class names of a data set: its own, or those of its class."""
    classes = (leaf.get('metainfo') or {}).get('classes')
    if not classes:
        cls = find_class(leaf['type'], scope) or find_class(leaf['type'].split('.')[-1], 'mmseg')
        classes = getattr(cls, 'METAINFO', {}).get('classes')
    if not classes:
        raise UsageError(f'data set {path} has no classes. Give it metainfo=dict(classes=...).')
    return (classes,) if isinstance(classes, str) else tuple(classes)


def _check_task(cfg: Config, name: str, leaf: dict, is_labels: bool) -> bool:
    """Whether masks of objects are trained; refuses a set that the network cannot learn from."""
    segments = 'decode_head' in cfg.model
    if segments != is_labels:
        kind, has = ('segmentor', 'objects') if segments else ('detector', 'label maps')
        other = 'a detector' if segments else 'a segmentor'
        raise UsageError(
            f'--data {name}: config {cfg.filename} is a {kind}, and the data set has {has}. Take '
            f'{other}.'
        )
    steps = [step for step in _steps(cfg) if isinstance(step, dict)]
    if not segments and any(s.get('with_seg') or 'Panoptic' in str(s['type']) for s in steps):
        raise UsageError(
            f'--data {name}: config {cfg.filename} trains label maps next to objects, and the data '
            'set has none.'
        )
    masks = any(step.get('with_mask') for step in steps) or any(mask_head_keys(cfg.model, ''))
    if masks and not any(step.get('with_mask') for step in leaf.get('pipeline', [])):
        raise UsageError(
            f'--data {name}: config {cfg.filename} trains masks, and the data set has boxes alone. '
            'Take a detector of boxes, or import masks with --task instances.'
        )
    return masks


def _steps(cfg: Config) -> Iterator[dict]:
    """Steps of the pipelines of the training data."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    for leaf in dataset_leaves(dataset):
        yield from leaf.get('pipeline') or ()


def _replace_loader(cfg: Config, loaders: Config, part: str, masks: bool) -> None:
    """Put the data set of a loader into that of the config, and its metrics with it."""
    key = f'{part}_dataloader'
    if not cfg.get(key) and not cfg.get(f'{part}_cfg'):
        return  # the config has no such loop
    new = copy.deepcopy(loaders[key])
    if not masks:
        _leave_out_masks(new)
    if cfg.get(key):
        cfg[key]['dataset'] = _with_data(cfg[key]['dataset'], new['dataset'])
    else:
        cfg[key] = new
    if part != 'train':
        metric = copy.deepcopy(loaders[f'{part}_evaluator'])
        old = cfg.get(f'{part}_evaluator')
        if isinstance(old, dict) and 'iou_metrics' in old and 'iou_metrics' in metric:
            metric['iou_metrics'] = old['iou_metrics']
        if not masks and metric.get('metric') == ['bbox', 'segm']:
            metric['metric'] = 'bbox'
        cfg[f'{part}_evaluator'] = metric


def _leave_out_masks(loader: dict) -> None:
    for leaf in dataset_leaves(loader['dataset']):
        for step in leaf.get('pipeline', []):
            if step.get('with_mask'):
                step['with_mask'] = False
                step.pop('poly2mask', None)


def _with_data(old: dict, new: dict) -> dict:
    """A config of a data set with other data: wrappers stay, but for those that join several.

    A wrapper that mixes images has steps of its own, which the steps of the data set must suit: it
    keeps both.
    """
    if 'dataset' not in old or 'datasets' in old:
        return new
    inner = old['dataset']
    if old.get(_MIXES):
        first = next(dataset_leaves(inner))
        for leaf in dataset_leaves(new):
            leaf['pipeline'] = copy.deepcopy(first.get('pipeline', []))
        inner = {}
    old['dataset'] = _with_data(inner, new)
    return old


def _metrics(cfg: Config, is_labels: bool) -> str:
    """The metrics in words; one by which the best checkpoint is kept has to be among them."""
    evaluator = cfg.get('val_evaluator') or cfg.get('test_evaluator') or {}
    values = evaluator.get('metric') or evaluator.get('iou_metrics') or ()
    values = [values] if isinstance(values, str) else list(values)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best = hook.get('save_best')
    best = [best] if isinstance(best, str) else best or []
    known = ('auto', *(values if is_labels else [f'coco/{value}' for value in values]))
    if not all(key.startswith(known) for key in best):
        hook['save_best'] = _METRICS[is_labels]
    return f'{evaluator.get("type")} ({", ".join(values)})'


def _set_class_counts(model: ConfigDict, count: int) -> list[str]:
    """Give every head this number of classes; returns config keys with old and new number."""
    changes = []
    for key, head in class_heads(model, 'model'):
        for name, value in (
            ('num_classes', count),
            ('num_things_classes', count),
            ('num_stuff_classes', 0),
        ):
            if name in head and head[name] != value and 'semantic_head' not in key:
                changes.append(f'{key}.{name} {head[name]} -> {value}')
                if head.get('out_channels') == head[name]:
                    head['out_channels'] = value
                elif count != 2 and head.get('out_channels') == 1:  # of two classes alone
                    head.pop('out_channels')
                _set_class_weights(head, head[name], value)
                head[name] = value
    return changes


def _set_class_weights(head: dict, old: int, new: int) -> None:
    """Adapt weights of classes in losses: one that ends with "no object" keeps both values."""
    for value in head.values():
        if isinstance(value, dict):
            weights = value.get('class_weight')
            if isinstance(weights, list | tuple) and len(weights) == old + 1:
                value['class_weight'] = [weights[0]] * new + [weights[-1]]
            elif isinstance(weights, list | tuple) and len(weights) == old:
                value.pop('class_weight')
            _set_class_weights(value, old, new)


def _set_crop(model: ConfigDict, crop: tuple[int, int]) -> None:
    """Make a segmentor pad to the crop of the data set, and slide over images with it."""
    preprocessor = model.get('data_preprocessor')
    if preprocessor and preprocessor.get('size_divisor') is None:
        preprocessor['size'] = crop
    test_cfg = model.get('test_cfg') or {}
    if test_cfg.get('mode') == 'slide':
        test_cfg['crop_size'] = crop
        test_cfg['stride'] = tuple(side * 2 // 3 for side in crop)


def _use_classes(cfg: Config, data: dict) -> None:
    """Give the config the classes of a data set that is not here, e.g. for published weights."""
    classes = data['classes']
    _set_class_counts(cfg.model, len(classes))
    for part in _SPLITS:
        loader = cfg.get(f'{part}_dataloader')
        for leaf in dataset_leaves(loader['dataset']) if loader else ():
            leaf['metainfo'] = dict(classes=tuple(classes))
            if 'decode_head' in cfg.model:  # others refuse classes that are not their own
                kept = ('metainfo', 'data_root', 'data_prefix', 'pipeline')
                for key in leaf.keys() - set(kept):
                    leaf.pop(key)
                leaf['type'] = 'mmseg.BaseSegDataset'
    cfg.data_set = dict(name=data['name'], classes=list(classes))
