"""Who reads a key of a config: one that nobody reads is refused, with the nearest that is read."""

import ast
import contextlib
import functools
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module

from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmengine.runner import LogProcessor
from torch.utils.data import DataLoader

from mmattn.errors import UsageError
from mmattn.plugins.find_block import find_block
from mmattn.text import nearest

from .type_names import REGISTRIES

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
_PASSED_ON = {CheckpointHook}  # keeps any keyword, of which saving knows none
# What another library reads, by class.
_FOREIGN = {'Albu': ('transforms', 'bbox_params'), 'Detectron2Wrapper': ('detector',)}


def check_keys(cfg: dict, scope: str, carried: Callable[[str], bool] = lambda key: False) -> list:
    """Go through a whole config.

    A dict with a `type` is read by the arguments of its class, and by the classes around it where
    they take a key out by name, such as `upsample_cfg.pop('scale_factor')`. One without is read by
    what is known to read it; `train_cfg` and `test_cfg` of a network, by all classes of that.

    Args:
        cfg: of which mmengine's runner reads every key.
        scope: whose registries are asked first.
        carried: whether a dotted key may be there although nobody reads it.

    Returns:
        the dotted keys that nobody reads, and that may be there.

    Raises:
        UsageError: names the key, where it stands, and the nearest key that is read.
    """
    reader = _Reader(cfg, carried)
    for name in sorted(cfg):
        reader.check(cfg[name], name, scope)
    return reader.unused


class _Reader:
    """Goes through the parts of a config."""

    def __init__(self, cfg: dict, carried: Callable[[str], bool]) -> None:
        self.cfg, self.carried, self.unused = cfg, carried, []

    def refuse(self, key: str, sentence: str) -> None:
        if not self.carried(key):
            raise UsageError(sentence)
        self.unused.append(key)

    def check(self, value, where: str, scope: str, around: tuple[type, ...] = ()) -> None:
        if isinstance(value, list | tuple):
            for index, item in enumerate(value):
                self.check(item, f'{where}[{index}]', scope, around)
        if not isinstance(value, dict):
            return
        scope = value.get('_scope_') or scope
        kind = value.get('type')
        if not isinstance(kind, str) or where.endswith(UNREGISTERED) or kind in FUNCTIONS:
            cls, taken, allowed = None, set(), self.plain(where, kind, scope, around)
        else:
            cls = self.block(kind, where, scope) or find_class(kind, scope)
            taken = set().union(*map(_sources, around))
            allowed = _arguments(cls) if cls else None
            if allowed is not None and cls.__module__ == _INITIALIZERS:
                allowed = allowed | _read(_INITIALIZERS)[0]  # such as `override`
            named = f'{where}.type'
            if cls is None and where.startswith('test_pipeline[') and self.carried(named):
                self.unused.append(named)  # of a recipe of mmdet 2; training reads none of it
                return
            if cls is None and kind not in taken:
                hint = _hint(kind, scope)
                raise UsageError(f"config key {where}.type: '{kind}' is not registered.{hint}")
        if where == 'optim_wrapper':
            self.check_groups(value, scope)
            value = {k: v for k, v in value.items() if k not in _OPTIM_WRAPPER}
        if where.endswith('metainfo'):
            _check_metainfo(value, where)
        around = (*around, cls) if inspect.isclass(cls) else around
        for name, item in value.items():
            if allowed is not None and name not in allowed | _BUILDER_KEYS | taken:
                self.refuse(
                    f'{where}.{name}',
                    f'config key {where}.{name} is read by nobody: {value.get("type", where)} has '
                    f'no {name}.{nearest(name, allowed)}',
                )
            elif not cls or name not in _FOREIGN.get(cls.__name__, ()):
                self.check(item, f'{where}.{name}', scope, around)

    def plain(self, where: str, kind: str | None, scope: str, around: tuple) -> set[str] | None:
        """Keys that are read of a dict whose `type` is no class; None if that is not known."""
        steps = ''.join(c for c in where if not c.isdigit()).split('.')
        if kind is None and steps[0] == 'model' and steps[-1].removesuffix('[]') in _OF_NETWORKS:
            classes = set(_classes(self.cfg['model'], scope))
            return _CARRIED.union(*(_sources(cls, attributes=True) for cls in classes))
        names = [where, '.'.join(steps[-2:]), steps[-1]]
        known = next((_PLAIN_DICTS[name] for name in names if name in _PLAIN_DICTS), None)
        return known.union(*map(_sources, around)) if steps[-1] == 'data_prefix' else known

    def block(self, kind: str, where: str, scope: str) -> type | None:
        """The block of a plugin that a network of ours puts in, as `insert` finds it."""
        if not re.fullmatch(r'model(\.backbone)?\.plugins\[\d+\]\.cfg', where):
            return None
        model = self.cfg['model']
        network = find_class(model['type'], model.get('_scope_') or scope)
        ours = getattr(network, 'trains_plugins', False)
        return find_block(kind, network) if ours else None

    def check_groups(self, wrapper: dict, scope: str) -> None:
        """Check what puts parameters into groups with settings of their own."""
        kind, settings = wrapper.get('constructor'), wrapper.get('paramwise_cfg')
        if kind:
            self.check(dict(type=kind), 'optim_wrapper.constructor', scope)
            return  # what it makes of the settings is its own
        where = 'optim_wrapper.paramwise_cfg'
        self.check(settings, where, scope)
        optimizer = find_class(wrapper.get('optimizer', {}).get('type', ''), scope)
        allowed = _MULTIPLIERS | (_arguments(optimizer) or set() if optimizer else set())
        for key, group in ((settings or {}).get('custom_keys') or {}).items():
            for name in group:
                if name not in allowed:
                    self.refuse(
                        f'{where}.custom_keys.{key}.{name}',
                        f'config key {where}.custom_keys[{key!r}].{name} is read by nobody.'
                        f'{nearest(name, allowed)}',
                    )


_INITIALIZERS = 'mmengine.model.weight_init'
_META = ('classes', 'palette', 'thing_classes', 'stuff_classes')


def _check_metainfo(meta: dict, where: str) -> None:
    """A data set takes anything for `metainfo`, and reads lower case: not mmdet 2's CLASSES."""
    for name in meta:
        if name not in _META and str(name).lower() in _META:
            low = name.lower()
            raise UsageError(
                f'config key {where}.{name} is read by nobody: data sets read {low}, in lower '
                f'case. Write metainfo=dict({low}=...).'
            )


# ---- registries --------------------------------------------------------------------------------
def find_class(name: str, scope: str) -> type | None:
    """What is registered under a name, as a config of that scope would find it."""
    package, _, rest = name.partition('.')
    if rest and not any(package in registry.children for registry in REGISTRIES):
        with contextlib.suppress(ImportError):
            import_module(f'{package}.registry')
    for registry in REGISTRIES:
        node = registry.children.get(scope, registry)
        if not rest or package == node.scope:
            found = _inherited(node, rest or name, up=not rest)
        elif package in registry.children:
            found = _inherited(registry.children[package], rest, up=False)
        else:
            found = _inherited(registry, rest, up=False) if package == registry.scope else None
        if found is not None:
            return found
    known = any(package in registry.children for registry in REGISTRIES)
    return REGISTRIES[0].get(name) if rest and not known else None  # the path of a class


def _inherited(node: Registry | None, name: str, up: bool) -> type | None:
    """What a registry, or one above it, has under a name; nothing is imported by that name."""
    while node is not None:
        if name in _registered(node):
            return node.module_dict[name]
        node = node.parent if up else None
    return None


def _hint(kind: str, scope: str) -> str:
    package = kind.partition('.')[0]
    nodes = [node for registry in REGISTRIES for node in registry.children.values()]
    if '.' in kind and package not in {node.scope for node in nodes}:
        return f' Is {package} installed, and imported by custom_imports?'
    elsewhere = next((f'{n.scope}.{kind}' for n in nodes if kind in _registered(n)), None)
    return f' Did you mean {elsewhere}?' if elsewhere else nearest(kind, _known(scope))


def _registered(node: Registry) -> dict:
    node.import_from_location()
    return node.module_dict


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
        rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        up, away, taken = _keywords(base.__init__, rest) if rest else (False, False, set())
        names |= taken
        if away and not up and base not in _PASSED_ON:
            return None  # another library may read them
        closed |= not up
        if closed and not several:
            return names
    return names if closed else None


@functools.cache
def _keywords(function, name: str) -> tuple[bool, bool, set[str]]:
    """Whether `**kwargs` go to a base class, or elsewhere; and what is taken out of them."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return True, False, set()
    up, taken, known = False, set(), 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            passed = any(k.arg is None and _is_name(k.value, name) for k in node.keywords)
            if passed and getattr(node.func, 'attr', '') == '__init__':
                up, known = True, known + 1
            elif _is_name(getattr(node.func, 'value', None), name) and node.func.attr in _GETTERS:
                known += 1
                taken |= {t.value for t in node.args[:1] if isinstance(t, ast.Constant)}
        elif isinstance(node, ast.Subscript) and _is_name(node.value, name):
            known += 1
            taken |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
        elif isinstance(node, ast.Compare) and _is_name(node.comparators[0], name):
            known += 1
            taken |= {node.left.value} if isinstance(node.left, ast.Constant) else set()
    uses = sum(_is_name(node, name) for node in ast.walk(tree))
    return up, uses > known, taken


def _is_name(node, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


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
