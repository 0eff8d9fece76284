"""Config values that affect training; resuming with different ones is refused."""

import hashlib
import json

import torch
from mmengine.config import Config

from mmattn.errors import UsageError

_PARTS = ('model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'randomness')
_OPTIONS = ('channels_last', 'compile')  # change the rounding of a step
_UNSET = {(key, value) for key in ('randomness', *_OPTIONS) for value in ('None', 'False')}
# Keys without effect on a step: where data are, how they are loaded, initial weights, testing.
_IGNORED_KEYS = {
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


def config_fingerprint(cfg: Config) -> dict[str, str]:
    """Dotted keys and values of everything that affects what a step computes.

    A config and the copy of it that its run saved have the same.
    """
    fingerprint: dict[str, str] = {}
    for part in (*_PARTS, *_OPTIONS):
        _flatten(cfg.get(part), part, fingerprint)
    loop = cfg.train_cfg.get('type') or ('Epoch' if cfg.train_cfg.get('by_epoch') else 'Iter')
    fingerprint['train_cfg.type'] = _name(loop)
    hooks = [*(cfg.get('custom_hooks') or []), *(cfg.get('default_hooks') or {}).values()]
    for hook in hooks:
        if isinstance(hook, dict) and _name(hook['type']).endswith('EMAHook'):
            _flatten(hook, 'custom_hooks.EMAHook', fingerprint)
    sync_bn = torch.cuda.is_available() and cfg.get('launcher', 'none') != 'none'
    return _normalised(fingerprint, sync_bn)


def _name(kind: str | type) -> str:
    return kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__qualname__}'


def _normalised(fingerprint: dict[str, str], sync_bn: bool) -> dict[str, str]:
    """Replace values that mean the same by one of them.

    Args:
        fingerprint: of a config, as it is written.
        sync_bn: SyncBN is kept; else the run uses BN instead, see `replace_sync_bn`.
    """
    values = {k: v for k, v in fingerprint.items() if (k, v) not in _UNSET}
    loop = values.get('train_cfg.type', '')
    values['train_cfg.type'] = loop.split('.')[-1].removesuffix('BasedTrainLoop')
    if not sync_bn:
        values = {k: repr('BN') if v in _SYNC_BN else v for k, v in values.items()}
    return values


_SYNC_BN = {repr('SyncBN'), repr('MMSyncBN')}


def _flatten(value, key: str, fingerprint: dict[str, str]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in _IGNORED_KEYS:
                _flatten(item, f'{key}.{name}', fingerprint)
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            _flatten(item, f'{key}.{index}', fingerprint)
    elif hasattr(value, '__qualname__'):  # a class, of which a saved config has the name
        fingerprint[key] = repr(_name(value))
    else:
        fingerprint[key] = repr(list(value) if isinstance(value, tuple) else value)


def fingerprint_hash(fingerprint: dict[str, str]) -> str:
    """The first 16 digits of the fingerprint's sha256."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def changed_values(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Changed keys with the old and the new value, as text."""
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return [f'{k} {old.get(k, "absent")} -> {new.get(k, "absent")}' for k in keys]


def check_fingerprint(
    meta: dict, fingerprint: dict[str, str], world: int, batch: int, *, topology: bool, config: bool
) -> list[str]:
    """Refuse to resume with another number of processes or another config, unless allowed.

    Args:
        meta: facts of the checkpoint.
        fingerprint: fingerprint of this run.
        world: number of processes of this run.
        batch: batch size of each process.
        topology: allow another number of processes.
        config: allow another config.

    Returns:
        reasons why the resumed run is not bit-exact.

    Raises:
        UsageError: names the differences, and the flag that allows them.
    """
    reasons = []
    old_world = meta.get('world', world)
    if old_world != world:
        old_batch = old_world * meta.get('batch', batch)
        if not topology:
            raise UsageError(
                f'checkpoint was written by {old_world} ranks, this run has {world}; global batch '
                f'{old_batch} -> {world * batch}. Pass --allow-topology-change and review the '
                'learning rate.'
            )
        reasons.append(f'ranks {old_world} -> {world}')
    if 'course' not in meta:
        return [*reasons, 'the checkpoint does not record its config']
    sync_bn = torch.cuda.is_available() and world > 1
    old, new = _normalised(meta['course'], sync_bn), _normalised(fingerprint, sync_bn)
    if 'seed' in meta:  # drawn at random by the first run if the config has none
        old.setdefault('randomness.seed', repr(meta['seed']))
        new = {'randomness.seed': repr(meta['seed']), **new}
    differences = changed_values(old, new)
    if differences and not config:
        more = f' and {len(differences) - _SHOWN} more' if len(differences) > _SHOWN else ''
        raise UsageError(
            f'config differs from the checkpoint: {"; ".join(differences[:_SHOWN])}{more}. '
            'Pass --allow-config-change to go on with it.'
        )
    return reasons + differences
