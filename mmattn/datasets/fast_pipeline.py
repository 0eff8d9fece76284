"""Replacing steps of a data set's pipeline by faster ones with equal results.

Stock steps stay in the configs: what a config says can be used with the stock tools, and a run may
change between copies and originals when it resumes.
"""

import copy
import os
from collections.abc import Sequence
from typing import Any

import mmcv.transforms
import mmseg.datasets.transforms as segmentation
from mmengine.logging import print_log

from mmattn.config.leaves import dataset_leaves
from mmattn.errors import UsageError
from mmattn.log import warn

from . import cached_steps, transforms
from .image_cache import ImageCache, open_cache
from .loading import step_class

# What the copies of a cache hold: how these steps decode an image and a label map.
_DECODED = {
    mmcv.transforms.LoadImageFromFile: dict(imdecode_backend='cv2', color_type='color'),
    segmentation.LoadAnnotations: dict(imdecode_backend='pillow'),
}
_CACHED = {
    mmcv.transforms.LoadImageFromFile: cached_steps.LoadImageFromFile,
    segmentation.LoadAnnotations: cached_steps.LoadAnnotations,
}
_REMOTE = ('backend_args', 'file_client_args')  # arguments of a step that reads no local file


def use_fast_steps(dataset: dict, narrow_labels: bool = True) -> dict:
    """The config of a data set with faster steps in its pipelines.

    Images and label maps are read from the cache of the data set if it has one (see
    `image_cache`); a step that the cache has no pixels for is named and stays as it is.

    Args:
        dataset: config of a data set, wrappers included; not changed.
        narrow_labels: leave label maps uint8, see `transforms.PackSegInputs`.
    """
    dataset = copy.deepcopy(dataset)
    for leaf in dataset_leaves(dataset):
        steps = leaf.get('pipeline') if isinstance(leaf, dict) else None
        if not isinstance(steps, list | tuple) or not steps:
            continue
        cache = _find_cache(leaf)
        steps = _replace(steps, cache)
        if narrow_labels and _kind(steps[-1]) is segmentation.PackSegInputs:
            steps[-1] = _with_type(steps[-1], transforms.PackSegInputs)
        leaf['pipeline'] = steps
    return dataset


def _find_cache(leaf: dict) -> ImageCache | None:
    """The cache of a data set, compared with its originals; None if it has none."""
    root = leaf.get('data_root')
    if not isinstance(root, str | os.PathLike) or leaf.get('backend_args'):
        return None
    cache = open_cache(str(root))
    if cache is None:
        return None
    prefixes = [p for p in (leaf.get('data_prefix') or {}).values() if isinstance(p, str)]
    cache.check(prefixes or [''])
    print_log(f'{cache.folder}: images are read from these copies of {root}', 'current')
    return cache


def _replace(steps: Sequence, cache: ImageCache | None) -> list:
    """The steps, nested ones included, with faster ones in the place of some."""
    replaced = []
    for step in steps:
        if isinstance(step, list | tuple):  # alternatives, as in RandomChoice
            replaced.append(_replace(step, cache))
            continue
        kind = _kind(step)
        if kind is segmentation.RandomCrop:
            step = _with_type(step, transforms.RandomCrop)
        elif kind in _CACHED and cache is not None:
            step = _read_from(cache, step, kind)
        elif isinstance(step, dict) and isinstance(step.get('transforms'), list | tuple):
            step = copy.copy(step)
            step['transforms'] = _replace(step['transforms'], cache)
        replaced.append(step)
    return replaced


def _read_from(cache: ImageCache, step: dict, kind: type) -> dict:
    """A loading step that reads from a cache, unless it decodes otherwise."""
    if any(step.get(key) for key in _REMOTE):
        return step
    for key, value in _DECODED[kind].items():
        if step.get(key, value) != value:
            warn(
                f'{cache.folder} is not used by {kind.__name__}: it has {key}={step[key]!r}, and '
                f'the copies hold {key}={value!r}.'
            )
            return step
    return _with_type(step, _CACHED[kind], cache=cache)


def _kind(step: Any) -> type | None:
    """The class of the config of a step; None if it is none, or not registered."""
    if not isinstance(step, dict) or 'type' not in step:
        return None
    try:
        return step_class(step)
    except (UsageError, ImportError, KeyError):  # building it raises the error for the user
        return None


def _with_type(step: dict, kind: type, **arguments: Any) -> dict:
    step = copy.copy(step)
    step.update(type=kind, **arguments)
    return step
