"""What of a config decides the course of a training: it may not change unseen when one resumes."""

import hashlib
import json

import torch
from mmengine.config import Config

from mmattn.errors import UsageError

_PARTS = ('model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'randomness')
# Where data lie, how they are loaded, what a resumed network does not start from, and how it is
# tested change no step.
_FREE = {
    'data_root',
    'ann_file',
    'num_workers',
    'persistent_workers',
    'prefetch_factor',
    'pin_memory',
    'timeout',
    'multiprocessing_context',
    'init_cfg',
    'backend_args',
    'test_cfg',
}
_SHOWN = 8  # changes named in an error


def course_of(cfg: Config) -> dict[str, str]:
    """Dotted key -> value of everything that decides what a step computes.

    It is the same for a config and for the one that its run wrote down.
    """
    found: dict[str, str] = {}
    for part in _PARTS:
        _flatten(cfg.get(part), part, found)
    loop = cfg.train_cfg.get('type') or ('Epoch' if cfg.train_cfg.get('by_epoch') else 'Iter')
    found['train_cfg.type'] = _name(loop)
    hooks = [*(cfg.get('custom_hooks') or []), *(cfg.get('default_hooks') or {}).values()]
    for hook in hooks:
        if isinstance(hook, dict) and _name(hook['type']).endswith('EMAHook'):
            _flatten(hook, 'custom_hooks.EMAHook', found)
    return _as_built(found, torch.cuda.is_available() and cfg.get('launcher', 'none') != 'none')


def _name(kind: str | type) -> str:
    return kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__qualname__}'


def _as_built(course: dict[str, str], synced: bool) -> dict[str, str]:
    """What a config says in several ways, in one; with what a run on this machine makes of it."""
    found = {k: v for k, v in course.items() if (k, v) != ('randomness', 'None')}
    loop = found.get('train_cfg.type', '')
    found['train_cfg.type'] = loop.split('.')[-1].removesuffix('BasedTrainLoop')
    if not synced:  # see `_fit_norm`
        found = {k: repr('BN') if v in _SYNCED else v for k, v in found.items()}
    return found


_SYNCED = {repr('SyncBN'), repr('MMSyncBN')}


def _flatten(value, where: str, found: dict[str, str]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in _FREE:
                _flatten(item, f'{where}.{name}', found)
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            _flatten(item, f'{where}.{index}', found)
    elif hasattr(value, '__qualname__'):  # a class, which a config that is written down names
        found[where] = repr(_name(value))
    else:
        found[where] = repr(list(value) if isinstance(value, tuple) else value)


def digest(course: dict[str, str]) -> str:
    """Sixteen digits that stand for a course."""
    return hashlib.sha256(json.dumps(course, sort_keys=True).encode()).hexdigest()[:16]


def changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """What differs, a sentence part each."""
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return [f'{k} {old.get(k, "absent")} -> {new.get(k, "absent")}' for k in keys]


def check_same(
    meta: dict, course: dict[str, str], world: int, batch: int, *, topology: bool, config: bool
) -> list[str]:
    """Refuse to resume with other processes or another config, unless told to.

    Args:
        meta: of the checkpoint.
        course: of this run.
        world, batch: processes of this run, and images of each.
        topology, config: changes that are allowed.

    Returns:
        what makes the resumed run inexact.

    Raises:
        UsageError: names what differs, and the flag that allows it.
    """
    why = []
    old = meta.get('world', world)
    if old != world:
        before = old * meta.get('batch', batch)
        if not topology:
            raise UsageError(
                f'checkpoint was written by {old} ranks, this run has {world}; global batch '
                f'{before} -> {world * batch}. Pass --allow-topology-change and review the '
                'learning rate.'
            )
        why.append(f'ranks {old} -> {world}')
    if 'course' not in meta:
        return [*why, 'the checkpoint does not say what config it is of']
    synced = torch.cuda.is_available() and world > 1
    before, course = _as_built(meta['course'], synced), _as_built(course, synced)
    if 'seed' in meta:  # that was drawn where the config has none, and is drawn no more
        before.setdefault('randomness.seed', repr(meta['seed']))
        course = {'randomness.seed': repr(meta['seed']), **course}
    differ = changes(before, course)
    if differ and not config:
        more = f' and {len(differ) - _SHOWN} more' if len(differ) > _SHOWN else ''
        raise UsageError(
            f'config differs from the checkpoint: {"; ".join(differ[:_SHOWN])}{more}. '
            'Pass --allow-config-change to go on with it.'
        )
    return why + differ
