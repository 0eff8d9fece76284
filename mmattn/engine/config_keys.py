"""Who reads a key of a config: one that nobody reads is refused, with the nearest that is read."""

import ast
import difflib
import functools
import inspect
import itertools
import sys
from collections.abc import Iterable, Iterator

from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry, root
from mmengine.runner import LogProcessor, Runner
from torch.utils.data import DataLoader

from mmattn.errors import UsageError

REGISTRIES = [value for value in vars(root).values() if isinstance(value, Registry)]
RUNNER_KEYS = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | {
    'model_wrapper_cfg',
    'tta_model',
    'tta_pipeline',
    'find_unused_parameters',
    'test_pipeline',  # of mmseg.apis
    'attention',  # of `add_attention`
}
# Dicts whose `type` is no registered class but a function of torch or mmcv, and which.
UNREGISTERED = ('clip_grad', '.nms', '.roi_layer')
FUNCTIONS = ('norm', 'value', 'nms', 'soft_nms', 'RoIAlign', 'RoIPool')
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
    'plugins[]': {'cfg', 'stages', 'blocks', 'position', 'at', 'replace', 'learn'},
    'data_prefix': {'img', 'img_path', 'seg_map_path', 'depth_map_path', 'seg', 'sub_data_root'},
}
# Those of a network are read by any of its classes, and these by functions of mmdet; by nobody
# where a head has no use for them, but its recipes carry them along.
_OF_NETWORKS = 'train_cfg', 'test_cfg', 'rpn', 'rpn_proposal', 'rcnn'
_CARRIED = {
    *('assigner', 'sampler', 'allowed_border', 'pos_weight', 'debug', 'mask_size'),
    *('nms_pre', 'min_bbox_size', 'score_thr', 'nms', 'max_per_img', 'mask_thr_binary'),
}
# Keys that the builders take out of a dict before the class sees it.
_BUILDER_KEYS = {'type', '_scope_', 'priority', 'requires_grad', 'convert_to_iter_based', 'postfix'}
_OPTIM_WRAPPER = {'constructor', 'paramwise_cfg'}  # the same, where parameters are grouped
_MULTIPLIERS = {'lr_mult', 'decay_mult'}
_SWALLOW = {CheckpointHook}  # accept any keyword and read none of it
_FOREIGN = {'Albu': ('transforms', 'bbox_params')}  # what another library reads, by class


def check_keys(cfg: dict, scope: str) -> None:
    """Go through a whole config.

    A dict with a `type` is read by the arguments of its class, and by the classes around it where
    they take a key out by name, such as `upsample_cfg.pop('scale_factor')`. One without is read by
    what is known to read it; `train_cfg` and `test_cfg` of a network, by all classes of that.

    Args:
        cfg: of which mmengine's runner reads every key.
        scope: whose registries are asked first.

    Raises:
        UsageError: names the key, where it stands, and the nearest key that is read.
    """
    for name in sorted(cfg):
        _check(cfg[name], name, scope, cfg)


def _check(value, where: str, scope: str, cfg: dict, around: tuple[type, ...] = ()) -> None:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f'{where}[{index}]', scope, cfg, around)
    if not isinstance(value, dict):
        return
    kind = value.get('type')
    if not isinstance(kind, str) or where.endswith(UNREGISTERED) or kind in FUNCTIONS:
        cls, taken, allowed = None, set(), _plain(where, kind, scope, cfg)
    else:
        cls, taken = find_class(kind, scope), set().union(*map(_sources, around))
        allowed = _arguments(cls) if cls else None
        if cls is None and kind not in taken:
            hint = _hint(kind, scope)
            raise UsageError(f"config key {where}.type: '{kind}' is not registered.{hint}")
    if where == 'optim_wrapper':
        _check_groups(value, scope, cfg)
        value = {k: v for k, v in value.items() if k not in _OPTIM_WRAPPER}
    around = (*around, cls) if inspect.isclass(cls) else around
    for name, item in value.items():
        if allowed is not None and name not in allowed | _BUILDER_KEYS | taken:
            raise UsageError(
                f'config key {where}.{name} is read by nobody: {value.get("type", where)} has no '
                f'{name}.{nearest(name, allowed)}'
            )
        if not cls or name not in _FOREIGN.get(cls.__name__, ()):
            _check(item, f'{where}.{name}', scope, cfg, around)


def _plain(where: str, kind: str | None, scope: str, cfg: dict) -> set[str] | None:
    """Keys that are read of a dict whose `type` is no class; None if that is not known."""
    steps = ''.join(c for c in where if not c.isdigit()).split('.')
    if kind is None and steps[0] == 'model' and steps[-1].removesuffix('[]') in _OF_NETWORKS:
        classes = set(_classes(cfg['model'], scope))
        return _CARRIED.union(*(_sources(cls, attributes=True) for cls in classes))
    names = [where, '.'.join(steps[-2:]), steps[-1]]
    return next((_PLAIN_DICTS[name] for name in names if name in _PLAIN_DICTS), None)


def _check_groups(wrapper: dict, scope: str, cfg: dict) -> None:
    """Check what puts parameters into groups with settings of their own."""
    kind, settings = wrapper.get('constructor'), wrapper.get('paramwise_cfg')
    if kind:
        _check(dict(type=kind), 'optim_wrapper.constructor', scope, cfg)
        return  # what it makes of the settings is its own
    where = 'optim_wrapper.paramwise_cfg'
    _check(settings, where, scope, cfg)
    optimizer = find_class(wrapper.get('optimizer', {}).get('type', ''), scope)
    allowed = _MULTIPLIERS | (_arguments(optimizer) or set() if optimizer else set())
    for key, group in ((settings or {}).get('custom_keys') or {}).items():
        for name in group:
            if name not in allowed:
                raise UsageError(
                    f'config key {where}.custom_keys[{key!r}].{name} is read by nobody.'
                    f'{nearest(name, allowed)}'
                )


# ---- registries --------------------------------------------------------------------------------
def find_class(name: str, scope: str) -> type | None:
    """What is registered under a name, as a config of that scope would find it."""
    for registry in REGISTRIES:
        found = registry.children.get(scope, registry).get(name)
        if found is not None:
            return found
    return None


def _hint(kind: str, scope: str) -> str:
    package = kind.partition('.')[0]
    scopes = {name for registry in REGISTRIES for name in registry.children}
    if '.' in kind and package not in scopes:
        return f' Is {package} installed, and imported by custom_imports?'
    return nearest(kind, _known(scope))


def _known(scope: str) -> set[str]:
    """All registered names as a config of that scope would write them."""
    names = set()
    for registry in REGISTRIES:
        children = registry.children
        names |= set(registry.module_dict)
        if scope in children:
            names |= set(children[scope].module_dict)
        if 'mmattn' in children:
            names |= {f'mmattn.{name}' for name in children['mmattn'].module_dict}
    return names


def _classes(value, scope: str) -> Iterator[type]:
    """The classes of all dicts with a `type` in `value`."""
    if isinstance(value, dict):
        cls = find_class(value['type'], scope) if isinstance(value.get('type'), str) else None
        if inspect.isclass(cls):
            yield cls
        value = value.values()
    if not isinstance(value, str):
        for item in value if hasattr(value, '__iter__') else ():
            yield from _classes(item, scope)


# ---- what a class reads ------------------------------------------------------------------------
@functools.cache
def _arguments(cls) -> set[str] | None:
    """The names a class or function accepts; None if it passes others on beyond its bases."""
    if not inspect.isclass(cls):
        parameters = inspect.signature(cls).parameters.values()
        open_end = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return None if open_end else {p.name for p in parameters}
    # with several bases, which of them is passed on to is not told by their order
    several = any(len(c.__bases__) > 1 for c in cls.__mro__ if not _is_foreign(c))
    names: set[str] = set()
    closed = False
    for base in cls.__mro__:
        if '__init__' not in vars(base) or base is object:
            continue
        try:
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        except ValueError:
            return None
        names |= {p.name for p in parameters} | _old_names(base.__init__)
        closed |= not any(p.kind is p.VAR_KEYWORD for p in parameters)
        if base in _SWALLOW or (closed and not several):
            return names
    return names if closed else None


def _old_names(function) -> set[str]:
    """Those that mmengine's `deprecated_api_warning` still takes."""
    if not hasattr(function, '__wrapped__'):
        return set()
    return set(inspect.getclosurevars(function).nonlocals.get('name_dict', ()))


@functools.cache
def _sources(cls: type, attributes: bool = False) -> set[str]:
    """Keys that the sources of a class, with its bases, take out of dicts; and their attributes."""
    found: set[str] = set()
    for base in cls.__mro__:
        keys, names = ((), ()) if _is_foreign(base) else _read(base.__module__)
        found.update(keys, names if attributes else ())
    return found


def _is_foreign(cls: type) -> bool:
    return cls.__module__.partition('.')[0] in ('builtins', 'abc', 'typing', 'torch')


@functools.cache
def _read(module: str) -> tuple[set[str], set[str]]:
    """Keys and attributes in the source of a module; none where there is no source."""
    keys: set[str] = set()
    attributes: set[str] = set()
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):
        return keys, attributes
    for node in ast.walk(tree):
        texts: list = []
        if isinstance(node, ast.Attribute):
            attributes.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') in _GETTERS:
            texts = node.args[:1]
        elif isinstance(node, ast.Subscript):
            texts = [node.slice]
        elif isinstance(node, ast.Compare):
            lists = [getattr(other, 'elts', [other]) for other in node.comparators]
            texts = [node.left, *itertools.chain(*lists)]
        elif isinstance(node, ast.Dict):
            texts = node.keys
        keys |= {t.value for t in texts if isinstance(t, ast.Constant) and isinstance(t.value, str)}
    return keys, attributes


_GETTERS = ('get', 'pop', 'setdefault')


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: what may have been meant."""
    known = list(known)
    same = [k for k in known if k.casefold() == name.casefold()]
    near = same or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f' Did you mean {near[0]}?' if near else ''
