"""Nested parts of a config: data sets inside wrappers, and types at any depth."""

from collections.abc import Iterator

from mmengine.config import ConfigDict


def dataset_leaves(cfg: dict) -> Iterator[dict]:
    """Configs of the data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    inner = cfg.get('datasets') or ([cfg['dataset']] if 'dataset' in cfg else None)
    if inner is None:
        yield cfg
    else:
        for part in inner:
            yield from dataset_leaves(part)


def class_heads(cfg: dict, where: str) -> Iterator[tuple[str, dict]]:
    """Config key and config of every head that has a number of classes.

    Args:
        cfg: a config, or a part of one.
        where: dotted key of that part.
    """
    if 'head' in where and {'num_classes', 'num_things_classes'} & cfg.keys():
        yield where, cfg
    for name, value in cfg.items():
        if isinstance(value, dict):
            yield from class_heads(value, f'{where}.{name}')
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    yield from class_heads(item, f'{where}.{name}[{index}]')


def replace_type(cfg: ConfigDict, old: str, new: str) -> int:
    """Set `type` to `new` in every nested dict where it is `old`; returns the number of changes."""
    count = 0
    values = cfg.values() if isinstance(cfg, dict) else cfg
    for value in list(values):
        if isinstance(value, dict | list | tuple):
            count += replace_type(value, old, new)
    if isinstance(cfg, dict) and cfg.get('type') == old:
        cfg['type'] = new
        count += 1
    return count
