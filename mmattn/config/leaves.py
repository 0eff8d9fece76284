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
