"""Class names: those of every data set of a config and of the checkpoint must be one list.

A network knows its classes by number alone. Two lists of one length fit each other whatever their
names, and the score of each class is then another's.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmattn.config.leaves import dataset_leaves
from mmattn.datasets.validation import build
from mmattn.errors import CheckpointError, UsageError
from mmattn.log import warn

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_SHOWN = 12  # names of a list that are shown whole


def classes_of(meta: Any) -> tuple[str, ...] | None:
    """The class names that a data set or a checkpoint's `meta` tells of; None if it tells of none.

    Older releases write `CLASSES`; data sets of several kinds that are joined, a list of metas.
    """
    if isinstance(meta, Sequence) and not isinstance(meta, str):
        found = {classes_of(one) for one in meta}
        return found.pop() if len(found) == 1 else None
    if not isinstance(meta, Mapping):
        return None
    names = next((meta[key] for key in ('classes', 'CLASSES') if meta.get(key)), None)
    if names is None:
        return classes_of(meta.get('dataset_meta'))
    names = (names,) if isinstance(names, str) else tuple(names)
    return names if all(isinstance(name, str) for name in names) else None


def check_same_classes(cfg: Config, heads: dict[str, int], renames: bool = False) -> None:
    """Refuse a config whose data sets have different classes, or the same in another order.

    Args:
        cfg: a whole config.
        heads: `num_classes` of the heads by config key. Where none has as many as the data, the
            network does not tell classes by these numbers (region proposals, prompts of text).
        renames: data sets may have names of their own, such as in another language: nothing is
            trained or scored.

    Raises:
        UsageError: shows both lists.
    """
    first = None
    for where, leaf, classes in _told(cfg, heads):
        if first is None:
            first = where, classes
            continue
        why = difference(classes, where, *reversed(first))
        if why and not (renames and is_renamed(classes, first[1])):
            raise UsageError(
                f'classes of {leaf["type"]} in {where}: {why}. Give all data sets of the config '
                'the same metainfo.classes, in the same order.'
            )


def check_checkpoint_classes(
    cfg: Config, heads: dict[str, int], meta: dict, checkpoint: str | Path, renames: bool = False
) -> None:
    """Refuse a checkpoint of other classes than the config's, or of the same in another order.

    Args:
        cfg, heads: as in `check_same_classes`.
        meta: of the checkpoint.
        checkpoint: its path.
        renames: names that are all new are said, and taken.

    Raises:
        CheckpointError: shows both lists.
    """
    trained = classes_of(meta)
    told = next(_told(cfg, heads), None)
    if trained is None or told is None:
        return
    _, leaf, classes = told
    its, other = 'the checkpoint', f'{leaf["type"]} of the config'
    why = difference(trained, its, classes, other)
    if why and renames and is_renamed(trained, classes):
        warn(f'the classes are renamed: {_both(trained, its, classes, other)}')
    elif why:
        raise CheckpointError(
            f'classes of checkpoint {checkpoint}: {why}. {_remedy(leaf, trained, classes)}'
        )


def difference(first: tuple[str, ...], its: str, second: tuple[str, ...], other: str) -> str | None:
    """How two lists of classes differ, with what both say; None if not, or in spelling alone."""
    a, b = (_spelled(names) for names in (first, second))
    if len(a) != len(b):
        return f'{its} has {len(a)}, {other} {len(b)}: {_both(first, its, second, other)}'
    if a == b:
        return None
    how = 'the same names in another order' if sorted(a) == sorted(b) else 'other names'
    return f'{how}: {_both(first, its, second, other)}'


def is_renamed(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether lists of one length differ in names alone: none stands at another place."""
    a, b = (_spelled(names) for names in (first, second))
    moved = any(x != y and x in b for x, y in zip(a, b))
    return len(a) == len(b) and not moved


def _told(cfg: Config, heads: dict[str, int]) -> Iterator[tuple[str, dict, tuple[str, ...]]]:
    """Loader, config and classes of the data sets whose classes the heads tell by number."""
    if _reads_text(cfg.model):
        return
    for name in reversed(_LOADERS):  # of what is scored first
        for leaf in dataset_leaves(cfg[name]['dataset']) if cfg.get(name) else ():
            classes = classes_of(build(leaf).metainfo)
            if classes and len(classes) in heads.values():
                yield name, leaf, classes


def _reads_text(model: dict) -> bool:
    """Whether the names themselves are given to the network, as prompts."""
    return any(part.startswith(('language_model', 'text')) for part in model)


def _spelled(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names without what spelling varies in, unless two would then be one."""
    plain = tuple(''.join(c for c in name.casefold() if c.isalnum()) for name in names)
    return plain if all(plain) and len(set(plain)) == len(set(names)) else names


def _both(first: tuple[str, ...], its: str, second: tuple[str, ...], other: str) -> str:
    if max(len(first), len(second)) <= _SHOWN:
        return f'{its} has {first}, {other} {second}'
    pairs = zip(_spelled(first), _spelled(second))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)) - 1)
    return f'class {at} is {first[at]!r} in {its}, {second[at]!r} in {other}'


def _remedy(leaf: dict, trained: tuple[str, ...], classes: tuple[str, ...]) -> str:
    if sorted(_spelled(trained)) != sorted(_spelled(classes)):
        return 'Take the config that it was trained with, or start a training from it: --init-from.'
    if 'seg_map_path' in (getattr(build(leaf), 'data_prefix', None) or {}):
        return (
            'If the numbers in the label maps are those of the checkpoint, give the data sets its '
            'metainfo.classes; otherwise number the label maps anew.'
        )
    return (
        'Give the data sets of the config its metainfo.classes, and put the categories of their '
        'annotation files into that order.'
    )
