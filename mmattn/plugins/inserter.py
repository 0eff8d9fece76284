"""One plugin dict: checked, and its blocks built and put into a network."""

import difflib
import fnmatch
from collections.abc import Callable
from inspect import signature
from itertools import chain
from typing import NoReturn

from torch import nn

from mmattn.blocks import AttentionBlock
from mmattn.torch_compat import register_load_state_dict_pre_hook, set_submodule

from .find_block import find_block, suggest
from .hooks import RunPlugins, pin_forward, take_nhwc
from .module_info import (
    abbreviation,
    free_attribute,
    iterates_over_children,
    last_conv,
    out_channels,
)
from .observed_maps import LAYOUTS, ObservedMaps
from .plugin import Plugin, named_plugins
from .recompute import recompute_forward, recompute_frozen
from .stages import block_paths, find_stages, last_of_each_size
from .weights import convert_plain_weights, copy_plain_weights

PLUGIN_KEYS = ('cfg', 'stages', 'blocks', 'position', 'at', 'replace', 'learn', 'layout', 'memory')
_VALUE_TYPES = dict(position=str, at=str, replace=str, stages=(list, tuple), blocks=(list, tuple))
_MEMORY = ('keep', 'recompute')
_GEOMETRY = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation')


class PluginInserter:
    """Puts the blocks of one plugin dict into a network.

    Args:
        model: the network.
        plugin: the dict, see `insert`.
        index: position of the dict in its list, for messages.
        maps: the maps that the modules of the network return.

    Attributes:
        place: the key that names the place: 'position', 'at' or 'replace'.
        undo: called with a function and its arguments for every change of the network.

    Raises:
        ValueError: a dict that cannot be understood.
    """

    def __init__(self, model: nn.Module, plugin: dict, index: int, maps: ObservedMaps) -> None:
        self.model, self.index, self.maps = model, index, maps
        self.undo: Callable = lambda function, *args: None
        cfg = plugin.get('cfg') if isinstance(plugin, dict) else None
        if not isinstance(cfg, dict) or not isinstance(cfg.get('type'), str | type):
            raise ValueError(f'plugins[{index}]={plugin!r}: write dict(cfg=dict(type=...), ...)')
        self.cfg = dict(cfg)
        name = cfg['type'] if isinstance(cfg['type'], str) else cfg['type'].__name__
        self.label = f'plugins[{index}] ({name})'
        for key in plugin:
            if key not in PLUGIN_KEYS:
                self.fail(f'has no key {key}; allowed {", ".join(PLUGIN_KEYS)}')
        places = [key for key in ('position', 'at', 'replace') if plugin.get(key) is not None]
        if len(places) != 1:
            self.fail(
                f'needs one of position, at, replace, and has {" and ".join(places) or "none"}'
            )
        self.place = places[0]
        if self.place != 'position' and not {'stages', 'blocks'}.isdisjoint(plugin):
            self.fail(f'stages and blocks go with position, not with {self.place}')
        for key, types in _VALUE_TYPES.items():
            if plugin.get(key) is not None and not isinstance(plugin[key], types):
                allowed = 'a string' if types is str else 'a list'
                self.fail(f'{key}={plugin[key]!r}, allowed is {allowed}')
        if plugin.get('layout', 'NCHW') not in LAYOUTS:
            self.fail(f'layout={plugin["layout"]!r}, allowed are {" and ".join(LAYOUTS)}')
        if plugin.get('memory', 'keep') not in _MEMORY:
            self.fail(f'memory={plugin["memory"]!r}, allowed are {" and ".join(_MEMORY)}')
        for key in 'layout', 'memory':
            if key in plugin and self.place == 'replace':
                self.fail(f'{key} goes with position and at, not with replace')
        self.plugin = dict(plugin)
        self.cls = self._block_class()
        self.trainable = bool(plugin.get('learn', False))
        if self.trainable and not getattr(model, 'trains_plugins', False):
            self.fail(
                'learn=True works in networks of mmattn, whose train() restores it. Here, call '
                'mmattn.plugins.keep_trainable(model) after model.train() and leave learn out'
            )

    def fail(self, reason: str) -> NoReturn:
        raise ValueError(f'{self.label}: {reason}{"" if reason.endswith(("?", ".")) else "."}')

    def _block_class(self) -> type[nn.Module]:
        name = self.cfg.pop('type')
        if not isinstance(name, str):
            return name
        cls = find_block(name, type(self.model))
        if cls is None:
            self.fail(f'no such type is registered.{suggest(name)}')
        return cls

    # ---- places ----
    def insert(self) -> list[str]:
        """Put a block at every place; returns their paths."""
        if self.place == 'replace':
            return [self._replace(path) for path in self._matches(self.plugin['replace'])]
        if self.place == 'at':
            return [self._insert_after(path) for path in self._matches(self.plugin['at'])]
        position = self.plugin['position']
        paths = []
        for stage, blocks in self._stages():
            if position == 'after_stage':
                paths.append(self._insert_after(stage))
            else:
                paths += [self._insert_in_block(block, position) for block in blocks]
        return paths

    def _matches(self, pattern: str) -> list[str]:
        """Paths of the modules that a pattern matches; wildcards do not match plugins."""
        steps, exact = pattern.split('.'), not set(pattern) & set('*?[')
        plugins = dict(named_plugins(self.model))
        inside_plugins = tuple(f'{path}.' for path in plugins)
        added = {path for path, block in plugins.items() if not block.plugin.replaces}
        paths = [path for path, _ in self.model.named_modules() if path]
        matches = [
            path
            for path in paths
            if path.count('.') == len(steps) - 1
            and all(fnmatch.fnmatchcase(name, step) for name, step in zip(path.split('.'), steps))
            and (exact or not (path.startswith(inside_plugins) or path in added))
        ]
        if not matches:
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0)
            self.fail(
                f'{self.place}={pattern!r} matches no module of {type(self.model).__name__}; '
                f'the nearest paths are {", ".join(near) or "none"}'
            )
        return matches

    def _stages(self) -> list[tuple[str, list[str]]]:
        """Paths of the chosen stages and of the chosen residual blocks in each."""
        stages = find_stages(self.model)
        if not stages:
            last = last_of_each_size(self.model, self.maps.shapes())
            hint = (
                f'; the last of each map size are at={", ".join(map(repr, last))}' if last else ''
            )
            self.fail(
                'position needs stages named layer1, layer2, ..., or stages.0, stages.1, ..., each '
                f'a sequence of blocks, and {type(self.model).__name__} has none. Name modules '
                f'with at{hint}'
            )
        chosen = self.plugin.get('stages')
        chosen = (True,) * len(stages) if chosen is None else tuple(chosen)
        if len(chosen) != len(stages):
            self.fail(
                f'stages={chosen}: {len(stages)} stages need a bool each, {len(chosen)} are given'
            )
        return [
            (stage, self._residual_blocks(stage))
            for stage, is_chosen in zip(stages, chosen)
            if is_chosen
        ]

    def _residual_blocks(self, stage: str) -> list[str]:
        """Paths of the chosen residual blocks of a stage, from its start to its end."""
        paths = [f'{stage}.{path}' for path in block_paths(self.model.get_submodule(stage))]
        chosen = self.plugin.get('blocks')
        if chosen is None:
            return paths
        for number in chosen:
            if not -len(paths) <= number < len(paths):
                self.fail(f'blocks={tuple(chosen)}: {stage} has {len(paths)} blocks')
        return [paths[n] for n in sorted({number % len(paths) for number in chosen})]

    def _insert_in_block(self, path: str, position: str) -> str:
        """Put a block into a residual block, under whose path its keys are."""
        block = self.model.get_submodule(path)
        last = last_conv(block)
        positions = [f'after_conv{k}' for k in range(1, last + 1)]
        positions += ['before_add'] * bool(last) + ['after_add', 'after_stage']
        if position not in positions:
            hint = ' before_add is the end of the residual branch in both kinds of block.'
            self.fail(
                f'position={position!r}, but {path} ({type(block).__name__}) has '
                f'{", ".join(positions)}.{hint if last else ""}'
            )
        if position == 'after_add':
            return self._insert_after(path)
        number = last if position == 'before_add' else int(position.removeprefix('after_conv'))
        if number < last:
            reader = f'{path}.conv{number + 1}'
            own_act = isinstance(getattr(block, f'act{number}', None), nn.Module)
            # one activation often serves all: hook the next convolution instead
            return self._add_hooked(path, f'{path}.act{number}' if own_act else reader, reader)
        norm = getattr(block, f'norm{number}', None) or getattr(block, f'bn{number}', None)
        name = next((n for n, m in block.named_children() if m is norm), f'conv{number}')
        return self._add_hooked(path, f'{path}.{name}')

    def _insert_after(self, path: str) -> str:
        """Put a block after a module, under its path."""
        module = self.model.get_submodule(path)
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            channels, layout = self._map_after(path)
            block = self._build(path, channels)
            added = self._add(path, block, f'after {path}', layout)
            if block.plugin.memory == 'recompute':
                recompute_forward(block)
            return added
        if iterates_over_children(module):
            self.fail(
                f'{path} ({type(module).__name__}) runs all its children, and would run the block '
                'as one of them. Name the last of them, or the module after it, with at'
            )
        if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            self.fail(
                f'{path} is a {type(module).__name__}, which does not return one map. '
                f'Name what is inside: {path}.*'
            )
        return self._add_hooked(path, path)

    def _map_after(self, path: str) -> tuple[int | None, str]:
        """Channels and layout of the map that a module returns; None for unknown channels."""
        layout = self.plugin.get('layout')
        channels = out_channels(self.model.get_submodule(path))
        observed = self.maps.get(path) if channels is None else None
        if observed is None:
            return channels, layout or 'NCHW'
        if not observed.layout and (len(observed.shape) != 4 or layout is None):
            what = f'tensor {observed.shape}' if observed.shape else observed.type
            self.fail(
                f'{path} ({type(self.model.get_submodule(path)).__name__}) returns a {what}, not a '
                'map (N, C, H, W) or (N, H, W, C). Name a module that returns one map'
            )
        layout = layout or observed.layout
        if layout == '?':
            self.fail(
                f'{path} returns a map {observed.shape}, which may be (N, C, H, W) or '
                "(N, H, W, C). Write layout='NCHW' or layout='NHWC'"
            )
        return observed.channels(layout), layout

    def _add_hooked(self, host: str, path: str, reader: str = '') -> str:
        """Add a block to a host, to run after the module at `path`.

        `reader` is the convolution that reads the map and tells its channels; if it is the module
        at `path`, the block runs before it.
        """
        module, owner = self.model.get_submodule(path), self.model.get_submodule(host)
        before = path == reader
        place = f'{"before" if before else "after"} {path}'
        if reader:
            channels = getattr(self.model.get_submodule(reader), 'in_channels', None)
            layout = 'NCHW'
        else:
            channels, layout = self._map_after(path)
        block_path = self._add(host, self._build(path, channels), place, layout)
        hooks = module._forward_pre_hooks if before else module._forward_hooks
        hook = next(reversed(hooks.values()), None)
        if not (isinstance(hook, RunPlugins) and hook.host is owner):
            hook = RunPlugins(owner, place)
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            self.undo(register(hook).remove)
            if 'forward' not in vars(module):
                pin_forward(module)
                self.undo(vars(module).pop, 'forward')
        hook.names.append(block_path.rsplit('.', 1)[-1])
        self.undo(hook.names.pop)
        return block_path

    def _replace(self, path: str) -> str:
        """Put a block in place of a convolution."""
        old = self.model.get_submodule(path)
        if not all(hasattr(old, name) for name in (*_GEOMETRY, 'weight')):
            self.fail(f'{path} is a {type(old).__name__}; only convolutions are replaced')
        if inside := [name for name, _ in named_plugins(old)]:
            self.fail(f'{path} holds the plugin {inside[0]}. Replace it first')
        parameters = signature(self.cls.__init__).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        missing = [name for name in _GEOMETRY if name not in parameters]
        if missing and not takes_any:
            self.fail(f'is no convolution, it has no {missing[0]}, so it replaces none. Use at')
        cfg = {name: getattr(old, name) for name in _GEOMETRY}
        copies = self.cfg.get('init') == 'identity' or not issubclass(self.cls, AttentionBlock)
        if copies:
            if 'groups' not in parameters and not takes_any:
                self.fail(
                    "init='identity' starts as the convolution that is replaced, and this block "
                    "contains none. Write init='paper'"
                )
            cfg |= dict(groups=old.groups, bias=old.bias is not None)
        new = self._build(path, None, cfg | self.cfg)
        new.to(old.weight.device, old.weight.dtype).train(old.training)
        weight_map = ()
        if copies:
            try:
                weight_map = copy_plain_weights(new, old)
            except ValueError as error:
                self.fail(str(error))
        for hooks in '_forward_hooks', '_forward_pre_hooks':  # of plugins around it
            getattr(new, hooks).update(getattr(old, hooks))
        if 'forward' in vars(old):
            pin_forward(new)
        place = f'instead of {path}'
        new.plugin = Plugin(self.index, place, self.trainable, replaces=True, weight_map=weight_map)
        register_load_state_dict_pre_hook(new, convert_plain_weights)
        set_submodule(self.model, path, new)
        self.undo(set_submodule, self.model, path, old)
        return path

    # ---- blocks ----
    def _build(self, path: str, channels: int | None, cfg: dict | None = None) -> nn.Module:
        cfg = dict(self.cfg if cfg is None else cfg)
        cfg.pop('postfix', None)
        if 'in_channels' not in cfg:
            if not isinstance(channels, int):
                name = type(self.model.get_submodule(path)).__name__
                self.fail(
                    f'the number of channels out of {path} ({name}) is unknown. Write '
                    'in_channels in its cfg'
                )
            cfg['in_channels'] = channels
        limits = getattr(self.cls, 'limits', {})  # a property in some classes
        reason = limits.get('plugin') if isinstance(limits, dict) else None
        if reason and self.place != 'replace':
            self.fail(f'cannot be inserted after {path}: {reason}')
        try:
            return self.cls(**cfg)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f'{self.label} at {path}: {error}') from error

    def _add(self, host: str, block: nn.Module, place: str, layout: str = 'NCHW') -> str:
        """Make a block a child of a host; returns its path."""
        owner = self.model.get_submodule(host)
        name = free_attribute(owner, f'{abbreviation(self.cls)}{self.cfg.get("postfix", "")}')
        if hasattr(owner, name):
            self.fail(
                f'{host} has a {name} already. Tell them apart: postfix in cfg, '
                "such as postfix='_2'"
            )
        weights = chain(owner.parameters(), self.model.parameters())
        like = next((weight for weight in weights if weight.is_floating_point()), None)
        if like is not None:
            block.to(like.device, like.dtype)
        memory = self.plugin.get('memory') or getattr(block, 'plugin_memory', 'keep')
        block.plugin = Plugin(self.index, place, self.trainable, layout, memory)
        if layout == 'NHWC':
            take_nhwc(block)
        block.train(owner.training)
        owner.add_module(name, block)
        self.undo(delattr, owner, name)
        if memory == 'recompute':
            self._recompute_stages(host)
        return f'{host}.{name}'

    def _recompute_stages(self, path: str) -> None:
        """Let containers around a block keep nothing where it is frozen in all else."""
        while path:
            stage = self.model.get_submodule(path)
            if type(stage).forward is nn.Sequential.forward and 'forward' not in vars(stage):
                recompute_frozen(stage)
                self.undo(vars(stage).pop, 'forward')
            path = path.rpartition('.')[0]
