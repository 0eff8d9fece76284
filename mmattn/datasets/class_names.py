"""Class names: all data sets of a config and its checkpoint must have the same list.

A network knows its classes by number alone. Two lists of the same length fit each other whatever
their names are, and the score of each class is then that of another.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmattn.config.leaves import dataset_leaves
from mmattn.errors import CheckpointError, UsageError
from mmattn.log import warn

from .build import build_dataset, has_label_maps, metainfo_of

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_SHOWN = 12  # longest list that is shown whole


def classes_of(meta: Any) -> tuple[str, ...] | None:
    """The class names in the meta of a data set or a checkpoint; None if there are none.

    Older releases write `CLASSES`; joined data sets of several kinds write a list of metas.
    """
    if isinstance(meta, Sequence) and not isinstance(meta, str):
        lists = {classes_of(part) for part in meta}
        return lists.pop() if len(lists) == 1 else None
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
        heads: `num_classes` of the heads by config key. A data set whose number of classes no head
            has is skipped (region proposals, text prompts).
        renames: whether data sets may have other names, e.g. in another language, because nothing
            is trained or scored.

    Raises:
        UsageError: shows both lists.
    """
    first = None
    for where, leaf, classes in _numbered_classes(cfg, heads):
        if first is None:
            first = where, classes
            continue
        reason = difference(classes, where, *reversed(first))
        if reason and not (renames and is_renamed(classes, first[1])):
            raise UsageError(
                f'classes of {leaf["type"]} in {where}: {reason}. Give all data sets of the config '
                'the same metainfo.classes, in the same order.'
            )


def check_checkpoint_classes(
    cfg: Config, heads: dict[str, int], meta: dict, checkpoint: str | Path, renames: bool = False
) -> None:
    """Refuse a checkpoint of other classes than the config's, or of the same in another order.

    Args:
        cfg, heads: as in `check_same_classes`.
        meta: meta of the checkpoint.
        checkpoint: path of the checkpoint.
        renames: whether to warn about renamed classes instead of refusing them.

    Raises:
        CheckpointError: shows both lists.
    """
    trained = classes_of(meta)
    first = next(_numbered_classes(cfg, heads), None)
    if trained is None or first is None:
        return
    _, leaf, classes = first
    owners = 'the checkpoint', f'{leaf["type"]} of the config'
    reason = difference(trained, owners[0], classes, owners[1])
    if reason and renames and is_renamed(trained, classes):
        warn(f'the classes are renamed: {_show_lists(trained, owners[0], classes, owners[1])}')
    elif reason:
        raise CheckpointError(
            f'classes of checkpoint {checkpoint}: {reason}. {_remedy(leaf, trained, classes)}'
        )


def difference(
    first: tuple[str, ...], first_owner: str, second: tuple[str, ...], second_owner: str
) -> str | None:
    """How two lists of classes differ, with both lists; None if at most in spelling."""
    a, b = (_normalized(names) for names in (first, second))
    shown = _show_lists(first, first_owner, second, second_owner)
    if len(a) != len(b):
        return f'{first_owner} has {len(a)}, {second_owner} {len(b)}: {shown}'
    if a == b:
        return None
    how = 'the same names in another order' if sorted(a) == sorted(b) else 'other names'
    return f'{how}: {shown}'


def is_renamed(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether lists of the same length differ in names alone: no name has moved."""
    a, b = (_normalized(names) for names in (first, second))
    moved = any(x != y and x in b for x, y in zip(a, b))
    return len(a) == len(b) and not moved


def _numbered_classes(
    cfg: Config, heads: dict[str, int]
) -> Iterator[tuple[str, dict, tuple[str, ...]]]:
    """Loader, config and classes of the data sets whose classes the heads know by number."""
    if _reads_prompts(cfg.model):
        return
    for name in reversed(_LOADERS):  # the data that are scored first
        for leaf in dataset_leaves(cfg[name]['dataset']) if cfg.get(name) else ():
            classes = classes_of(metainfo_of(build_dataset(leaf)))
            if classes and len(classes) in heads.values():
                yield name, leaf, classes


def _reads_prompts(model: dict) -> bool:
    """Whether the network reads the names themselves, as text prompts."""
    return any(part.startswith(('language_model', 'text')) for part in model)


def _normalized(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names without case and punctuation, unless two of them would become equal."""
    plain = tuple(''.join(c for c in name.casefold() if c.isalnum()) for name in names)
    return plain if all(plain) and len(set(plain)) == len(set(names)) else names


def _show_lists(
    first: tuple[str, ...], first_owner: str, second: tuple[str, ...], second_owner: str
) -> str:
    """Both lists, or the first difference of long ones."""
    if max(len(first), len(second)) <= _SHOWN:
        return f'{first_owner} has {first}, {second_owner} {second}'
    pairs = enumerate(zip(_normalized(first), _normalized(second)))
    last = min(len(first), len(second)) - 1
    index = next((i for i, (a, b) in pairs if a != b), last)
    return (
        f'class {index} is {first[index]!r} in {first_owner}, {second[index]!r} in {second_owner}'
    )


def _remedy(leaf: dict, trained: tuple[str, ...], classes: tuple[str, ...]) -> str:
    if sorted(_normalized(trained)) != sorted(_normalized(classes)):
        return 'Take the config that it was trained with, or start a training from it: --init-from.'
    if has_label_maps(build_dataset(leaf)):
        return (
            'If the numbers in the label maps are those of the checkpoint, give the data sets its '
            'metainfo.classes; otherwise number the label maps anew.'
        )
    return (
        'Give the data sets of the config its metainfo.classes, and put the categories of their '
        'annotation files into that order.'
    )
