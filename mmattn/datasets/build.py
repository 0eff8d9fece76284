"""A data set of a config, built without reading its files, and what its config makes of it."""

import inspect
import os

import numpy as np
from mmengine.registry import DATASETS

from mmattn.errors import DataError, UsageError


def build_dataset(leaf: dict):
    """Build a data set without reading its files.

    Args:
        leaf: config of one data set, without wrappers.

    Raises:
        DataError: it cannot be built, e.g. because it looks for its folder at once.
        UsageError: `metainfo.classes` is a string.
    """
    _check_classes_key(leaf)
    try:
        dataset = DATASETS.build(dict(leaf, **_accepted(leaf, dict(lazy_init=True, pipeline=[]))))
        metainfo = getattr(dataset, '_metainfo', None)
        if isinstance(metainfo, dict):  # arrays have no truth value
            arrays = {k: v.tolist() for k, v in metainfo.items() if isinstance(v, np.ndarray)}
            metainfo.update(arrays)
        return dataset
    except (TypeError, KeyError, ValueError, AssertionError, RuntimeError, OSError) as error:
        reason = str(error).strip() or f'{type(error).__name__} without a message'
        raise DataError(
            f'data set {leaf["type"]} with data_root={leaf.get("data_root")} cannot be made: '
            f'{reason}'
        ) from error


def _accepted(leaf: dict, arguments: dict) -> dict:
    """Those of some arguments that a data set takes: one that is none of mmengine's may not."""
    kind = leaf['type']
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if kind is None:  # which building it explains
        return arguments
    parameters = inspect.signature(kind).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def metainfo_of(dataset) -> dict:
    """`metainfo` of a built data set; empty for one without."""
    return getattr(dataset, 'metainfo', None) or {}


def _check_classes_key(leaf: dict) -> None:
    """Refuse classes that are one string: its letters would be the classes."""
    classes = (leaf.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and not os.path.isfile(classes):
        raise UsageError(
            f'config key metainfo.classes={classes!r} of data set {leaf["type"]} is a string, '
            f'whose letters would be the classes. Write classes=({classes!r},), with a comma.'
        )


def has_label_maps(dataset) -> bool:
    """Whether a data set is of MMSegmentation's kind: images with label maps."""
    return 'seg_map_path' in (getattr(dataset, 'data_prefix', None) or {})


def trains_masks(leaf: dict) -> bool:
    """Whether a step of the pipeline loads masks."""
    return any(step.get('with_mask') for step in leaf.get('pipeline', []))


def scores_masks(evaluator: dict | list | None) -> bool:
    """Whether an evaluator, or one of several, compares masks."""
    return any(
        'segm' in (metric.get('metric') or ())
        for metric in _metrics(evaluator)
        if isinstance(metric, dict)
    )


def is_unscored(evaluator: dict | list | None) -> bool:
    """Whether results are only written, as for the server of a benchmark."""
    return all(
        isinstance(metric, dict) and bool(metric.get('format_only'))
        for metric in _metrics(evaluator)
    )


def _metrics(evaluator: dict | list | None) -> list:
    return list(evaluator) if isinstance(evaluator, list | tuple) else [evaluator]
