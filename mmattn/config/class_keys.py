"""Config keys that a class uses: its arguments, and keys that its sources take out of dicts."""

import ast
import functools
import inspect
import itertools
import sys
import textwrap

from mmengine.hooks import CheckpointHook

_PASSED_ON = {CheckpointHook}  # stores any keyword, although saving takes none of them
_GETTERS = ('get', 'pop', 'setdefault')


@functools.cache
def arguments(cls) -> set[str] | None:
    """Names of the arguments of a class or function; None if it passes any on to others."""
    if not inspect.isclass(cls):
        parameters = inspect.signature(cls).parameters.values()
        has_kwargs = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return None if has_kwargs else {p.name for p in parameters}
    # with several bases that take arguments, their order does not say which one gets **kwargs
    several = any(
        sum(map(_takes_arguments, c.__bases__)) > 1 for c in cls.__mro__ if not _is_foreign(c)
    )
    names: set[str] = set()
    complete = False
    for base in cls.__mro__:
        if '__init__' not in vars(base) or base is object:
            continue
        try:
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        except ValueError:
            return None
        names |= {p.name for p in parameters} | _deprecated_names(base.__init__)
        kwargs = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        to_base, elsewhere, keys = _uses(base.__init__, kwargs) if kwargs else (False, False, set())
        names |= keys
        if elsewhere and not to_base and base not in _PASSED_ON:
            return None  # another library may take them
        complete |= not to_base
        if complete and not several:
            return names
    return names if complete else None


@functools.cache
def _uses(function, name: str) -> tuple[bool, bool, set[str]]:
    """How a function uses its `**kwargs`, from its source.

    Args:
        function: `__init__` of a class.
        name: name of its `**kwargs`.

    Returns:
        whether they are passed to `__init__` of a base, whether they are used in other ways, and
        the keys that are read or removed.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return True, False, set()
    to_base, keys, explained = False, set(), 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            is_passed = any(k.arg is None and _is_name(k.value, name) for k in node.keywords)
            if is_passed and getattr(node.func, 'attr', '') == '__init__':
                to_base, explained = True, explained + 1
            elif _is_name(getattr(node.func, 'value', None), name) and node.func.attr in _GETTERS:
                explained += 1
                keys |= {t.value for t in node.args[:1] if isinstance(t, ast.Constant)}
        elif isinstance(node, ast.Subscript) and _is_name(node.value, name):
            explained += 1
            keys |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
        elif isinstance(node, ast.Compare) and _is_name(node.comparators[0], name):
            explained += 1
            keys |= {node.left.value} if isinstance(node.left, ast.Constant) else set()
    uses = sum(_is_name(node, name) for node in ast.walk(tree))
    return to_base, uses > explained, keys


def _is_name(node, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _deprecated_names(function) -> set[str]:
    """Old names of arguments that mmengine's `deprecated_api_warning` still accepts."""
    if not hasattr(function, '__wrapped__'):
        return set()
    return set(inspect.getclosurevars(function).nonlocals.get('name_dict', ()))


@functools.cache
def keys_in_sources(cls: type, attributes: bool = False) -> set[str]:
    """Keys that the modules of a class and its bases take out of dicts.

    Args:
        cls: class of a network, a data set, ...
        attributes: whether to add the names of attributes: `cfg.x` for `cfg['x']`.
    """
    names: set[str] = set()
    for base in cls.__mro__:
        keys, read = ((), ()) if _is_foreign(base) else module_keys(base.__module__)
        names.update(keys, read if attributes else ())
    return names


def _takes_arguments(cls: type) -> bool:
    """Whether a class has an `__init__`, its own or inherited; mixins with methods have none."""
    return any('__init__' in vars(base) for base in cls.__mro__ if base is not object)


def _is_foreign(cls: type) -> bool:
    return cls.__module__.partition('.')[0] in ('builtins', 'abc', 'typing', 'torch')


@functools.cache
def module_keys(module: str) -> tuple[set[str], set[str]]:
    """Keys and attributes in the source of a module; empty sets if it has no source."""
    keys: set[str] = set()
    attributes: set[str] = set()
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):
        return keys, attributes
    for node in ast.walk(tree):
        nodes: list = []
        if isinstance(node, ast.Attribute):
            attributes.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') in _GETTERS:
            nodes = node.args[:1]
        elif isinstance(node, ast.Subscript):
            nodes = [node.slice]
        elif isinstance(node, ast.Compare):
            lists = [getattr(other, 'elts', [other]) for other in node.comparators]
            nodes = [node.left, *itertools.chain(*lists)]
        elif isinstance(node, ast.Dict):
            nodes = node.keys
        keys |= {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return keys, attributes
