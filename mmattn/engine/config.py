"""Reading a config and refusing what nobody would read or what cannot fit, before anything runs."""

import argparse
import ast
import contextlib
import difflib
import inspect
import io
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry, init_default_scope, root
from mmengine.runner import LogProcessor, Runner
from torch.utils.data import DataLoader

from mmattn.errors import UsageError

_RUNNER_KEYS = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | {
    'model_wrapper_cfg',
    'tta_model',
    'tta_pipeline',
    'find_unused_parameters',
    'test_pipeline',  # of mmseg.apis
}
# Keys of dicts that have no `type`, by the name under which they stand.
_DATALOADER = set(inspect.signature(DataLoader.__init__).parameters) - {'self'} | {
    'num_batch_per_epoch'
}
_PLAIN_DICTS = {
    'train_dataloader': _DATALOADER,
    'val_dataloader': _DATALOADER,
    'test_dataloader': _DATALOADER,
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    'randomness': {'seed', 'diff_rank_seed', 'deterministic'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'log_processor': set(inspect.signature(LogProcessor.__init__).parameters) - {'self'},
    'clip_grad': {'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'clip_value', 'type'},
    'paramwise_cfg': {
        'custom_keys',
        'bias_lr_mult',
        'bias_decay_mult',
        'norm_decay_mult',
        'flat_decay_mult',
        'dwconv_decay_mult',
        'dcn_offset_lr_mult',
        'bypass_duplicate',
    },
    'model.test_cfg': {'mode', 'crop_size', 'stride', 'rpn', 'rcnn'},
    'data_prefix': {'img_path', 'seg_map_path', 'depth_map_path', 'img', 'seg', 'sub_data_root'},
}
# Keys that the builders take out of a dict before the class sees it.
_BUILDER_KEYS = {'type', '_scope_', 'priority', 'requires_grad', 'convert_to_iter_based', 'postfix'}
_SWALLOW = {CheckpointHook}  # accept any keyword and read none of it
_REGISTRIES = [value for value in vars(root).values() if isinstance(value, Registry)]


def load_config(path: str | Path, options: dict | None = None) -> Config:
    """The config of a file with `--cfg-options` merged in.

    Raises:
        UsageError: the file is missing or does not parse, or an option does not fit into it.
    """
    path = Path(path)
    if not path.is_file():
        near = _nearest(path.stem, [p.stem for p in path.parent.glob('*.py')])
        raise UsageError(f'config {path} does not exist.{near}')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is Python: anything can be raised inside
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UsageError(f'config {path} cannot be read: {reason}') from error
    options = {key: _as_before(cfg, key, value) for key, value in (options or {}).items()}
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError) as error:
        raise UsageError(f'--cfg-options does not fit {path}: {error.args[0]}') from error
    return cfg


def _as_before(cfg: Config, key: str, value):
    """A list given on the command line becomes a tuple where the config has one: classes insist."""
    old = cfg
    for part in key.split('.'):
        try:
            old = old[int(part)] if isinstance(old, list | tuple) else old[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return value
    return tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value


def parse_options(options: dict | Iterable[str] | None) -> dict:
    """What `--cfg-options` gave, `key=value` strings, as mmengine's own `DictAction` reads them.

    Raises:
        UsageError: not of the form key=value.
    """
    if not options or isinstance(options, dict):
        return options or {}
    for pair in options:
        if not pair.partition('=')[1]:
            raise UsageError(f'--cfg-options {pair}: write key=value.')
    reader = argparse.ArgumentParser()
    reader.add_argument('--options', nargs='+', action=DictAction)
    return reader.parse_args(['--options', *options]).options


def check_config(cfg: Config, options: Iterable[str] = ()) -> None:
    """Refuse a key that nobody reads and a type that nobody registered; drop used-up variables.

    Args:
        cfg: a config made by `load_config`.
        options: the top-level names given by `--cfg-options`, which no file reads any more.

    Raises:
        UsageError: names the key, where it stands, and the nearest key that is read.
    """
    unread = set(cfg.keys()) - _RUNNER_KEYS
    variables = _variables(Path(cfg.filename)) if cfg.filename else set()
    for name in sorted(unread - variables | {o for o in options if o in unread}):
        hint = _nearest(name, _RUNNER_KEYS)
        if name in variables:
            hint = ' It is a variable of the file, used up when that was read; set what uses it.'
        raise UsageError(f'config key {name} is read by nobody.{hint}')
    for name in unread:  # the config that a run writes down can be read again
        cfg.pop(name)
    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    # puts the registries of that scope in place; the fork prints about an optional package
    with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
        import_module(f'{scope}.datasets')
    for name in sorted(cfg.keys()):
        _check(cfg[name], name, scope)


def dataset_leaves(cfg: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    inner = cfg.get('datasets') or ([cfg['dataset']] if 'dataset' in cfg else None)
    if inner is None:
        yield cfg
    else:
        for part in inner:
            yield from dataset_leaves(part)


def _check(value, where: str, scope: str) -> None:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f'{where}[{index}]', scope)
    if not isinstance(value, dict):
        return
    if isinstance(value.get('type'), str) and not where.endswith('clip_grad'):
        cls = _find(value['type'], scope)
        if cls is None:
            near = _nearest(value['type'], _known(scope))
            raise UsageError(f"config key {where}.type: '{value['type']}' is not registered.{near}")
        allowed = _arguments(cls)
    else:
        allowed = _PLAIN_DICTS.get(where) or _PLAIN_DICTS.get(where.split('.')[-1])
    for name, item in value.items():
        if allowed is not None and name not in allowed | _BUILDER_KEYS:
            owner = value.get('type', where)
            raise UsageError(
                f'config key {where}.{name} is read by nobody: {owner} has no {name}.'
                f'{_nearest(name, allowed)}'
            )
        _check(item, f'{where}.{name}', scope)


def _find(name: str, scope: str):
    for registry in _REGISTRIES:
        found = registry.children.get(scope, registry).get(name)
        if found is not None:
            return found
    return None


def _known(scope: str) -> set[str]:
    """All registered names as a config of that scope would write them."""
    names = set()
    for registry in _REGISTRIES:
        children = registry.children
        names |= set(registry.module_dict)
        if scope in children:
            names |= set(children[scope].module_dict)
        if 'mmattn' in children:
            names |= {f'mmattn.{name}' for name in children['mmattn'].module_dict}
    return names


def _arguments(cls) -> set[str] | None:
    """The names a class or function accepts; None if it passes others on beyond its bases."""
    if not inspect.isclass(cls):
        parameters = inspect.signature(cls).parameters.values()
        open_end = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return None if open_end else {p.name for p in parameters}
    names: set[str] = set()
    for base in cls.__mro__:
        if '__init__' not in vars(base) or base is object:
            continue
        try:
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        except ValueError:
            return None
        names |= {p.name for p in parameters}
        if base in _SWALLOW or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None


def _variables(path: Path) -> set[str]:
    """Top-level names of a config file and its parents that the files themselves read."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }
    names |= {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == '_base_'
    }
    assigned = {
        t.id: n.value
        for n in tree.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    # a variable that the leaf sets again is not read by the parent that used it
    shadowed = set(assigned) - names - {'_base_'}
    parents = ast.literal_eval(assigned['_base_']) if '_base_' in assigned else []
    for parent in [parents] if isinstance(parents, str) else parents:
        names |= _variables(path.parent / parent) - shadowed
    return names


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' Did you mean {near[0]}?' if near else ''


def replace_type(cfg: ConfigDict, old: str, new: str) -> int:
    """Set `type` to `new` in every dict below `cfg` where it is `old`; returns how many."""
    count = 0
    values = cfg.values() if isinstance(cfg, dict) else cfg
    for value in list(values):
        if isinstance(value, dict | list | tuple):
            count += replace_type(value, old, new)
    if isinstance(cfg, dict) and cfg.get('type') == old:
        cfg['type'] = new
        count += 1
    return count
