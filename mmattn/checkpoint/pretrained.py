"""Pretrained weights that a config names: every module starts by its own method.

Most classes leave `init_cfg=dict(type='Pretrained', ...)` to mmengine, whose loader is replaced by
one that says what fitted. Some, such as Swin, PVT, ViT or BEiT, read the file themselves and
convert it on the way: they do so, and what they then load is said, too.
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

from .load import Fit, converts_itself, start_from, unwrapped

_KINDS = ('Pretrained', 'Pretrained_Part', PretrainedInit)
_MOST = 0.5  # of the values of a module that may be missing in a file
_FEW = 0.05  # of them that may have another shape: a first layer for other images


@contextlib.contextmanager
def pretrained_reported(
    model: nn.Module, read: Callable[[str], dict], cfg: dict | None = None
) -> Iterator[None]:
    """Within the block, modules that initialise say what they load, or raise what is wrong.

    Args:
        model: whose modules initialise.
        read: a checkpoint; of several processes the first fetches it.
        cfg: what the model is built of; it says which key names the file.

    Raises:
        CheckpointError: a file is missing or refused, or does not fit; with the config's key.
    """
    names = {id(module): name for name, module in model.named_modules()}
    loaded: list[tuple[nn.Module, dict]] = []

    def load(init: PretrainedInit, module: nn.Module) -> None:
        name = names.get(id(module), type(module).__name__)
        with _named(_keys(name, cfg)):
            weights = unwrapped(read(init.checkpoint)['state_dict'])
            if init.prefix:
                start = init.prefix.rstrip('.') + '.'
                weights = {
                    k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)
                }
            _check_share(module, weights, init.checkpoint)
            _say(name, start_from(module, weights, init.checkpoint, partial=True))
        loaded.append((module, weights))
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=init._get_init_info())

    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(PretrainedInit, '__call__', load))
        for name, module in model.named_modules():
            if _source(module) and converts_itself(module):
                _watch(stack, name, module, _keys(name, cfg))
        yield
    for module, weights in loaded:  # blocks below plain containers have begun anew meanwhile
        if any(block.plugin.weight_map for _, block in named_plugins(module)):
            _inherit(module, weights)


def _source(module: nn.Module) -> str | None:
    """The file that a module's `init_cfg` names."""
    cfg = getattr(module, 'init_cfg', None)
    for part in cfg if isinstance(cfg, list | tuple) else [cfg]:
        if isinstance(part, dict) and part.get('type') in _KINDS:
            return part.get('checkpoint')
    return None


def _check_share(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Refuse what is of a network of another kind; a part that is missing is said."""
    fit = Fit(module, adapt_state_dict(module, weights))
    new = {k for path, _ in named_plugins(module) for k in fit.missing if k.startswith(f'{path}.')}
    sizes = {key: value.numel() for key, value in fit.own.items() if key not in new}
    share = {
        name: sum(sizes.get(k, 0) for k in keys) / max(1, sum(sizes.values()))
        for name, keys in (('missing', fit.missing), ('shapes', fit.shapes))
    }
    if not fit.matched or share['missing'] > _MOST or share['shapes'] > _FEW:
        raise CheckpointError(f'weights {source} {fit.complaint()}.')


def _inherit(module: nn.Module, weights: dict[str, Tensor]) -> None:
    own = module.state_dict()
    given = adapt_state_dict(module, weights)
    keys = {
        f'{path}.{to}'
        for path, block in named_plugins(module)
        for _, to, _ in block.plugin.weight_map
    }
    found = {
        k: given[k] for k in keys if k in given and k in own and own[k].shape == given[k].shape
    }
    module.load_state_dict({**own, **found})


def _watch(
    stack: contextlib.ExitStack, name: str, module: nn.Module, keys: tuple[str, str]
) -> None:
    """Have a class that reads its file itself say what it loads, and fail in one sentence."""
    source, own, before = _source(module), module.init_weights, module.load_state_dict
    seen = []

    def look(weights: dict) -> None:
        fit = Fit(module, weights)
        if not fit.matched:
            raise CheckpointError(f'weights {source} {fit.complaint()}.{_conversion(name, module)}')
        seen.append(fit)

    def load(weights, *args, **kwargs):
        look(weights)
        return before(weights, *args, **kwargs)

    def load_into(target, weights, *args, **kwargs):
        if target is module:
            look(weights)
        return engine_load(target, weights, *args, **kwargs)

    def start() -> None:
        with _named(keys):
            try:
                own()
            except (AssertionError, AttributeError, LookupError, RuntimeError, ValueError) as error:
                why = str(error) or type(error).__name__
                raise CheckpointError(
                    f'weights {source} cannot be read by {type(module).__name__}: {why}.'
                    f'{_conversion(name, module)}'
                ) from error
        for fit in seen:
            said = [f'{len(fit.matched)} tensors loaded from {source}', *fit.wrong]
            _say(name, '; '.join(said), converted=True)

    for key, value in dict(init_weights=start, load_state_dict=load).items():
        setattr(module, key, value)
        stack.callback(delattr, module, key)
    home = sys.modules.get(type(module).__module__, SimpleNamespace())
    if getattr(home, 'load_state_dict', None) is engine_load:
        stack.enter_context(_replaced(home, 'load_state_dict', load_into))


def _conversion(name: str, module: nn.Module) -> str:
    """What is left to try where a class would convert its authors' files and was not told to."""
    if getattr(module, 'convert_weights', True):
        return ''
    return (
        f' {type(module).__name__} converts a file of its authors with --cfg-options '
        f'model.{name}.convert_weights=True.'
    )


def _say(name: str, said: str, converted: bool = False) -> None:
    odd = any(f' {what}: ' in said for what in ('missing', 'of another shape'))
    level = logging.WARNING if odd and not converted else logging.INFO
    print_log(f'{name}: {said}', logger='current', level=level)


def _keys(name: str, cfg: dict | None) -> tuple[str, str]:
    """The config's keys for other weights and for none: `init_cfg`, or `pretrained` as of old."""
    part = cfg or {}
    if name == 'backbone' and part.get('pretrained'):
        return 'model.pretrained', 'model.pretrained'
    for step in name.split('.'):
        part = part.get(step) if isinstance(part, dict) else None
    if isinstance(part, dict) and part.get('pretrained'):
        return (f'model.{name}.pretrained',) * 2
    return f'model.{name}.init_cfg.checkpoint', f'model.{name}.init_cfg'


@contextlib.contextmanager
def _named(keys: tuple[str, str]) -> Iterator[None]:
    """Add to an error which key of the config names the file."""
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
def _replaced(owner, name: str, value) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
