"""Pretrained weights of a config (`init_cfg`), loaded with every mismatch reported.

Most classes leave `init_cfg=dict(type='Pretrained', ...)` to mmengine, whose loader is replaced by
ours. Some, such as Swin, PVT, ViT or BEiT, read and convert the file in their `init_weights`; the
state dicts that they load are compared and reported as well.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from mmengine.runner.checkpoint import load_state_dict as engine_load
from torch import Tensor, nn

from mmattn.errors import CheckpointError
from mmattn.plugins import adapt_state_dict, named_plugins

from .load import (
    StateDictMatch,
    converts_itself,
    load_and_compare,
    rename_weights,
    strip_module_prefix,
)

_PRETRAINED_TYPES = ('Pretrained', 'Pretrained_Part', PretrainedInit)
_MAX_MISSING = 0.5  # fraction of a module's values that a file may lack
_MAX_RESHAPED = 0.05  # fraction that may have another shape, as the first layer for more bands


@contextlib.contextmanager
def report_pretrained(
    model: nn.Module, read: Callable[[str], dict], cfg: dict | None = None
) -> Iterator[None]:
    """Report the pretrained weights that modules load when they initialise inside this context.

    Args:
        model: the network whose modules initialise.
        read: function that reads a checkpoint; it must download once for all processes.
        cfg: config of the model, to name the key of a file in messages.

    Raises:
        CheckpointError: a file is missing, refused, or does not fit; names the config's key.
    """
    names = {id(module): name for name, module in model.named_modules()}
    loaded: list[tuple[nn.Module, dict]] = []

    def load(init: PretrainedInit, module: nn.Module) -> None:
        name = names.get(id(module), type(module).__name__)
        with _naming_keys(_config_keys(name, cfg)):
            weights = strip_module_prefix(read(init.checkpoint)['state_dict'])
            if init.prefix:
                prefix = init.prefix.rstrip('.') + '.'
                weights = {
                    k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)
                }
            weights = rename_weights(module, weights)
            _check_similar(module, weights, init.checkpoint)
            text, match = load_and_compare(module, weights, init.checkpoint, partial=True)
            level = logging.WARNING if match.missing or match.shapes else logging.INFO
            print_log(f'{name}: {text}', logger='current', level=level)
        loaded.append((module, weights))
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=init._get_init_info())

    with contextlib.ExitStack() as stack:
        stack.enter_context(_patched(PretrainedInit, '__call__', load))
        for name, module in model.named_modules():
            if _pretrained_file(module) and converts_itself(module):
                _report_conversion(stack, name, module, _config_keys(name, cfg))
        yield
    for module, weights in loaded:  # blocks in plain containers were initialised again meanwhile
        if any(block.plugin.weight_map for _, block in named_plugins(module)):
            _inherit(module, weights)


def _pretrained_file(module: nn.Module) -> str | None:
    """The file that a module's `init_cfg` names."""
    cfg = getattr(module, 'init_cfg', None)
    for part in cfg if isinstance(cfg, list | tuple) else [cfg]:
        if isinstance(part, dict) and part.get('type') in _PRETRAINED_TYPES:
            return part.get('checkpoint')
    return None


def _check_similar(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Refuse weights of another kind of network: too many values missing or of another shape."""
    match = StateDictMatch(module, adapt_state_dict(module, weights))
    prefixes = tuple(f'{path}.' for path, _ in named_plugins(module))
    new = {key for key in match.missing if key.startswith(prefixes)}
    sizes = {key: value.numel() for key, value in match.own.items() if key not in new}
    fractions = {
        name: sum(sizes.get(k, 0) for k in keys) / max(1, sum(sizes.values()))
        for name, keys in (('missing', match.missing), ('shapes', match.shapes))
    }
    different = fractions['missing'] > _MAX_MISSING or fractions['shapes'] > _MAX_RESHAPED
    if different or not match.matched:
        raise CheckpointError(f'weights {source} {match.message()}.')


def _inherit(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load again the parameters that plugins take from the layers that they replace."""
    own = module.state_dict()
    given = adapt_state_dict(module, weights)
    keys = {
        f'{path}.{to}'
        for path, block in named_plugins(module)
        for _, to, _ in block.plugin.weight_map
    }
    loadable = {
        k: given[k] for k in keys if k in given and k in own and own[k].shape == given[k].shape
    }
    module.load_state_dict({**own, **loadable})


def _report_conversion(
    stack: contextlib.ExitStack, name: str, module: nn.Module, keys: tuple[str, str]
) -> None:
    """Patch a module whose `init_weights` converts a file: report what it loads, and its errors."""
    source = _pretrained_file(module)
    init_weights, load_state_dict = module.init_weights, module.load_state_dict
    matches = []

    def compare(weights: dict) -> None:
        match = StateDictMatch(module, weights)
        if not match.matched:
            hint = _conversion_hint(name, module)
            raise CheckpointError(f'weights {source} {match.message()}.{hint}')
        matches.append(match)

    def load(weights, *args, **kwargs):
        compare(weights)
        return load_state_dict(weights, *args, **kwargs)

    def load_into(target, weights, *args, **kwargs):
        if target is module:
            compare(weights)
        return engine_load(target, weights, *args, **kwargs)

    def initialise() -> None:
        with _naming_keys(keys):
            try:
                init_weights()
            except (AssertionError, AttributeError, LookupError, RuntimeError, ValueError) as error:
                why = str(error) or type(error).__name__
                raise CheckpointError(
                    f'weights {source} cannot be read by {type(module).__name__}: {why}.'
                    f'{_conversion_hint(name, module)}'
                ) from error
        for match in matches:
            parts = [f'{len(match.matched)} tensors loaded from {source}', *match.problems]
            print_log(f'{name}: {"; ".join(parts)}', logger='current')

    for key, value in dict(init_weights=initialise, load_state_dict=load).items():
        setattr(module, key, value)
        stack.callback(delattr, module, key)
    source_module = sys.modules.get(type(module).__module__, SimpleNamespace())
    if getattr(source_module, 'load_state_dict', None) is engine_load:
        stack.enter_context(_patched(source_module, 'load_state_dict', load_into))


def _conversion_hint(name: str, module: nn.Module) -> str:
    """A hint for classes that convert their authors' files only on request."""
    if getattr(module, 'convert_weights', True):
        return ''
    return (
        f' {type(module).__name__} converts a file of its authors with --cfg-options '
        f'model.{name}.convert_weights=True.'
    )


def _config_keys(name: str, cfg: dict | None) -> tuple[str, str]:
    """The config's keys to choose other weights, or none: `init_cfg` or the older `pretrained`."""
    part = cfg or {}
    if name == 'backbone' and part.get('pretrained'):
        return 'model.pretrained', 'model.pretrained'
    for step in name.split('.'):
        part = part.get(step) if isinstance(part, dict) else None
    if isinstance(part, dict) and part.get('pretrained'):
        return (f'model.{name}.pretrained',) * 2
    return f'model.{name}.init_cfg.checkpoint', f'model.{name}.init_cfg'


@contextlib.contextmanager
def _naming_keys(keys: tuple[str, str]) -> Iterator[None]:
    """Add the config's key of the file to an error."""
    try:
        yield
    except CheckpointError as error:
        if '--cfg-options model.' in str(error) and f'{keys[0]}=' in str(error):
            raise
        raise CheckpointError(
            f'{error} They are the pretrained weights of the config: choose others with '
            f'--cfg-options {keys[0]}=FILE, or start from random ones with --cfg-options '
            f'{keys[1]}=None'
        ) from error


@contextlib.contextmanager
def _patched(owner, name: str, value) -> Iterator[None]:
    """Set an attribute, and restore it at the end."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
