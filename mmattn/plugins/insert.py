"""Putting blocks at named places of any network."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from inspect import signature
from itertools import chain, count
from typing import Any, NoReturn

from mmengine.registry import Registry
from torch import Tensor, nn

from mmattn.blocks import AttentionBlock
from mmattn.registry import MODELS

_KEYS = ('cfg', 'stages', 'blocks', 'position', 'at', 'replace', 'learn')
_GEOMETRY = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation')
_KINDS = dict(position=str, at=str, replace=str, stages=(list, tuple), blocks=(list, tuple))
# DCNv2 multiplies by sigmoid(0) = 0.5 at its start, so it computes what the plain convolution did
# with twice the weights: Deformable ConvNets v2, CVPR 2019, eq. 1.
_STRENGTH = {'ModulatedDeformConv2dPack': 2.0}


@dataclass(frozen=True)
class Plugin:
    """What is known of a block in its place; stands on the block as `plugin`.

    Attributes:
        entry: the number of the dict in the list it came from.
        place: where, in words, e.g. 'after backbone.layer1.0.bn3'.
        learn: whether it learns in a frozen stage and its norms update under `norm_eval`.
        inherits: for a replacement, parameter of the plain module -> (own parameter, factor).
    """

    entry: int
    place: str
    learn: bool = False
    inherits: tuple[tuple[str, str, float], ...] = ()


def insert(model: nn.Module, plugins: Sequence[dict]) -> list[str]:
    """Put blocks into a network, in place. State-dict keys of the network stay as they are.

    Each plugin is a dict of

    - `cfg`: type and arguments of the block. Its channels are found from the place; where they
      cannot be, write `in_channels`. `postfix` tells apart two of a kind at one place.
    - one of the places

      - `position`: of the residual blocks of a ResNet: 'after_conv1', 'after_conv2', ... (after
        norm and activation; after the last convolution, before the addition), 'before_add' (after
        the last convolution, whichever that is), 'after_add', 'after_stage'. `stages`, a bool for
        each, and `blocks`, numbers within a stage such as (-1,), choose among them; by default all.
      - `at`: a pattern for the paths of modules, after which it goes: 'neck.fpn_convs.*'. A star
        stands for a part of one step of a path.
      - `replace`: a pattern for the convolutions that it replaces, with their channels, kernel,
        stride, padding and dilation (with init='identity' also groups and bias), and their weights
        where it can start from them.

    - `learn=True`: it learns inside frozen stages, and its norms update under `norm_eval=True`; in
      networks of mmattn, whose `train` knows of it.

    Several at one place apply in the order in which they are written; replacements come first.

    A block is an attribute of the module that it stands behind, such as `se`: its `_abbr_` with
    the `postfix`. Where the network has another attribute of that name which is no module, such as
    timm's `self.se = None`, it is the first free one of `se_2`, `se_3`, ...

    Args:
        model: any network; residual positions are looked for in modules named layer1, layer2, ...
        plugins: see above; not changed.

    Returns:
        the paths of the blocks, below which their state-dict keys are.

    Raises:
        ValueError: a plugin that cannot be understood, built or placed. The model is unchanged.
        NotOneMap: when the network runs, a plugin behind a module that returns a tuple, say.
    """
    entries = [_Entry(model, plugin, number) for number, plugin in enumerate(plugins)]
    entries.sort(key=lambda entry: entry.place != 'replace')
    with ExitStack() as undo:
        for entry in entries:
            entry.undo = undo.callback
        paths = [path for entry in entries for path in entry.put()]
        undo.pop_all()
    return paths


def find_block(kind: str, network: type | None = None) -> type[nn.Module] | None:
    """The block of a name: mmattn's, or else what a config of the network would find by it.

    Args:
        kind: a registered name, with its scope or without.
        network: a class, in whose own registry, or that of whose package, is looked next; then in
            that of the default scope.
    """
    if kind in ('DCN', 'DCNv2'):
        with suppress(ImportError):  # registers them
            import mmcv.ops  # noqa: F401
    with MODELS.parent.switch_scope_and_registry(None) as current:
        hosts = [MODELS, *_hosts(network), current]
    return next((found for host in hosts if (found := host.get(kind)) is not None), None)


def _hosts(network: type | None) -> Iterator[Registry]:
    if hasattr(network, 'host'):
        yield network.host
    for base in getattr(network, '__mro__', ()):
        package = base.__module__.partition('.')[0]
        if package in MODELS.parent.children:
            yield MODELS.parent.children[package]


def _known_blocks() -> set[str]:
    nodes = MODELS.parent.children.values()
    return {f'{n.scope}.{name}' for n in nodes for name in n.module_dict} | {
        *MODELS.parent.module_dict
    }


def plugged(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and block of everything that `insert` put into a network."""
    return ((name, m) for name, m in model.named_modules() if hasattr(m, 'plugin'))


def keep_learning(model: nn.Module, mode: bool = True) -> None:
    """What `train(mode)` of a network with frozen stages or norms owes its plugins.

    Networks of mmattn call it for plugins with `learn`; of any other network all plugins learn.
    """
    every = not getattr(model, 'keeps_learning', False)
    for _, block in plugged(model):
        if every or block.plugin.learn:
            block.requires_grad_(True)
            block.train(mode)


def inherited(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the plain network under the keys of the network with replacements.

    Loading does the same, by whatever loader: this is for who wants to know beforehand.

    Args:
        model: has plugins with `replace`.
        weights: a state dict; keys of modules that are not replaced are kept.

    Returns:
        a new dict. What a replacement cannot start from is left out.
    """
    weights = dict(weights)
    for path, block in plugged(model):
        if block.plugin.place.startswith('instead'):
            _inherit(block, weights, f'{path}.')
            own = {f'{path}.{key}' for key in block.state_dict()}
            if own.isdisjoint(weights):
                weights = {k: v for k, v in weights.items() if not k.startswith(f'{path}.')}
    return weights


def _inherit(block: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Turn the weights of the convolution that was here into those of its replacement, in place."""
    found = {key for key in weights if key.startswith(prefix)}
    if not found <= {f'{prefix}{key}' for key, _, _ in block.plugin.inherits}:
        return  # weights of the replacement itself
    values = {key: weights.pop(key) for key in found}
    for key, to, factor in block.plugin.inherits:
        if f'{prefix}{key}' in values:
            weights[f'{prefix}{to}'] = factor * values[f'{prefix}{key}']


class NotOneMap(TypeError):
    """A plugin stands behind a module that returns something else than one map."""


class _Apply:
    """A hook that sends a map through blocks of a host, in order."""

    def __init__(self, host: nn.Module, where: str) -> None:
        self.host, self.where, self.names = host, where, []

    def __call__(self, module: nn.Module, inputs: tuple, output: Any = None) -> Any:
        if output is None:  # before the module
            return (self.run(inputs[0]), *inputs[1:])
        return self.run(output)

    def run(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise NotOneMap(
                f'plugin {self.names[0]} {self.where}: there is a {type(x).__name__}, not one map. '
                'Name a module that returns one map, such as neck.fpn_convs.*'
            )
        for name in self.names:
            x = self.host._modules[name](x)
        return x


class _Entry:
    """One dict of the list, being read and put into a model."""

    def __init__(self, model: nn.Module, plugin: dict, number: int) -> None:
        self.model, self.number = model, number
        self.undo: Callable = lambda function, *args: None
        cfg = plugin.get('cfg') if isinstance(plugin, dict) else None
        if not isinstance(cfg, dict) or not isinstance(cfg.get('type'), str | type):
            raise ValueError(f'plugins[{number}]={plugin!r}: write dict(cfg=dict(type=...), ...)')
        self.cfg = dict(cfg)
        self.what = f'plugins[{number}] ({_name_of(self.cfg["type"])})'
        for key in plugin:
            if key not in _KEYS:
                self.fail(f'has no key {key}; allowed {", ".join(_KEYS)}')
        places = [key for key in ('position', 'at', 'replace') if plugin.get(key) is not None]
        if len(places) != 1:
            self.fail(
                f'needs one of position, at, replace, and has {" and ".join(places) or "none"}'
            )
        self.place = places[0]
        if self.place != 'position' and not {'stages', 'blocks'}.isdisjoint(plugin):
            self.fail(f'stages and blocks go with position, not with {self.place}')
        for key, kind in _KINDS.items():
            if plugin.get(key) is not None and not isinstance(plugin[key], kind):
                allowed = 'a string' if kind is str else 'a list'
                self.fail(f'{key}={plugin[key]!r}, allowed is {allowed}')
        self.plugin = dict(plugin)
        self.cls = self.find()
        self.learn = bool(plugin.get('learn', False))
        if self.learn and not getattr(model, 'keeps_learning', False):
            self.fail(
                'learn=True works in networks of mmattn, whose train() restores it. Here, call '
                'mmattn.plugins.keep_learning(model) after model.train() and leave learn out'
            )

    def fail(self, reason: str) -> NoReturn:
        raise ValueError(f'{self.what}: {reason}{"" if reason.endswith("?") else "."}')

    def find(self) -> type[nn.Module]:
        kind = self.cfg.pop('type')
        if not isinstance(kind, str):
            return kind
        found = find_block(kind, type(self.model))
        if found is None:
            self.fail(f'no such type is registered.{_near(kind, _known_blocks())}')
        return found

    # ---- places ----
    def put(self) -> list[str]:
        if self.place == 'replace':
            return [self.replace(path) for path in self.matches(self.plugin['replace'])]
        if self.place == 'at':
            return [self.after(path, path) for path in self.matches(self.plugin['at'])]
        position = self.plugin['position']
        paths = []
        for stage, blocks in self.stages():
            if position == 'after_stage':
                paths.append(self.after(stage, stage))
                continue
            for block in blocks:
                paths.append(self.in_block(block, position))
        return paths

    def matches(self, pattern: str) -> list[str]:
        steps, exact = pattern.split('.'), not set(pattern) & set('*?[')
        put = dict(plugged(self.model))
        inside = tuple(f'{path}.' for path in put)
        added = {path for path, block in put.items() if block.plugin.place[:7] != 'instead'}
        every = [name for name, _ in self.model.named_modules() if name]
        found = [
            name
            for name in every
            if name.count('.') == len(steps) - 1
            and all(fnmatch.fnmatchcase(a, b) for a, b in zip(name.split('.'), steps))
            and (exact or not (name.startswith(inside) or name in added))  # a star finds no plugins
        ]
        if not found:
            near = difflib.get_close_matches(pattern, every, n=3, cutoff=0)
            self.fail(
                f'{self.place}={pattern!r} matches no module of {type(self.model).__name__}; '
                f'the nearest paths are {", ".join(near) or "none"}'
            )
        return found

    def stages(self) -> list[tuple[str, list[str]]]:
        """Paths of the chosen stages and of the chosen residual blocks in each."""
        for module in getattr(self.model, 'backbone', self.model).modules():
            names = getattr(module, 'res_layers', None) or sorted(
                name for name, _ in module.named_children() if re.fullmatch(r'layer\d+', name)
            )
            if len(names) > 1 or hasattr(module, 'res_layers'):
                break
        else:
            self.fail(
                'position needs stages named layer1, layer2, ..., and '
                f'{type(self.model).__name__} has none. Name modules with at'
            )
        home = next(path for path, m in self.model.named_modules() if m is module)
        every = [f'{home}.{name}' if home else name for name in names]
        chosen = self.plugin.get('stages')
        chosen = (True,) * len(every) if chosen is None else tuple(chosen)
        if len(chosen) != len(every):
            self.fail(
                f'stages={chosen}: {len(every)} stages need a bool each, {len(chosen)} are given'
            )
        found = []
        for stage in (path for path, wanted in zip(every, chosen) if wanted):
            children = self.model.get_submodule(stage).named_children()
            inside = [f'{stage}.{name}' for name, m in children if not hasattr(m, 'plugin')]
            numbers = self.plugin.get('blocks')
            for number in numbers or ():
                if not -len(inside) <= number < len(inside):
                    self.fail(f'blocks={tuple(numbers)}: {stage} has {len(inside)} blocks')
            order = (
                range(len(inside)) if numbers is None else sorted(n % len(inside) for n in numbers)
            )
            found.append((stage, [inside[n] for n in dict.fromkeys(order)]))
        return found

    def in_block(self, path: str, position: str) -> str:
        """Put it into one residual block, under whose path its keys are."""
        block = self.model.get_submodule(path)
        last = _last_conv(block)
        known = [f'after_conv{k}' for k in range(1, last + 1)]
        known += ['before_add'] * bool(last) + ['after_add', 'after_stage']
        if position not in known:
            hint = ' before_add is the end of the residual branch in both kinds of block.'
            self.fail(
                f'position={position!r}, but {path} ({type(block).__name__}) has '
                f'{", ".join(known)}.{hint if last else ""}'
            )
        if position == 'after_add':
            return self.after(path, path)
        number = last if position == 'before_add' else int(position.removeprefix('after_conv'))
        if number < last:  # activations are often shared: before the next one is after this one
            return self.hook(path, f'{path}.conv{number + 1}', before=True)
        norm = getattr(block, f'norm{number}', None) or getattr(block, f'bn{number}', None)
        name = next((n for n, m in block.named_children() if m is norm), f'conv{number}')
        return self.hook(path, f'{path}.{name}')

    def after(self, host: str, path: str) -> str:
        """Put it behind a module, under its path."""
        module = self.model.get_submodule(path)
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            return self.add(host, self.build(path, _out_channels(module)), f'after {path}')
        if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            self.fail(
                f'{path} is a {type(module).__name__}, of which no one map comes out. '
                f'Name what is inside: {path}.*'
            )
        return self.hook(host, path)

    def hook(self, host: str, path: str, before: bool = False) -> str:
        module, owner = self.model.get_submodule(path), self.model.get_submodule(host)
        place = f'{"before" if before else "after"} {path}'
        channels = getattr(module, 'in_channels', None) if before else _out_channels(module)
        name = self.add(host, self.build(path, channels), place)
        hooks = module._forward_pre_hooks if before else module._forward_hooks
        last = next(reversed(hooks.values()), None)
        if not (isinstance(last, _Apply) and last.host is owner):
            last = _Apply(owner, place)
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            self.undo(register(last).remove)
        last.names.append(name.rsplit('.', 1)[-1])
        self.undo(last.names.pop)
        return name

    def replace(self, path: str) -> str:
        old = self.model.get_submodule(path)
        if not all(hasattr(old, name) for name in (*_GEOMETRY, 'weight')):
            self.fail(f'{path} is a {type(old).__name__}; only convolutions are replaced')
        if inside := [name for name, _ in plugged(old)]:
            self.fail(f'{path} holds the plugin {inside[0]}. Replace it first')
        known = signature(self.cls.__init__).parameters
        missing = [name for name in _GEOMETRY if name not in known]
        if missing and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            self.fail(f'is no convolution, it has no {missing[0]}, so it replaces none. Use at')
        cfg = {name: getattr(old, name) for name in _GEOMETRY}
        starts = self.cfg.get('init') == 'identity' or not issubclass(self.cls, AttentionBlock)
        if starts:  # from the weights of what it replaces
            cfg |= dict(groups=old.groups, bias=old.bias is not None)
        new = self.build(path, None, cfg | self.cfg)
        new.to(old.weight.device, old.weight.dtype).train(old.training)
        inherits = self.inherit(new, old) if starts else ()
        for kind in '_forward_hooks', '_forward_pre_hooks':  # of plugins around it
            getattr(new, kind).update(getattr(old, kind))
        new.plugin = Plugin(self.number, f'instead of {path}', self.learn, inherits)
        new.register_load_state_dict_pre_hook(_inherit)
        self.model.set_submodule(path, new)
        self.undo(self.model.set_submodule, path, old)
        return path

    def inherit(self, new: nn.Module, old: nn.Module) -> tuple[tuple[str, str, float], ...]:
        """Copy the weights, and say which went where."""
        inner = f'{new.plain}.' if hasattr(new, 'plain') else ''
        factor, values = _STRENGTH.get(type(new).__name__, 1.0), new.state_dict()
        pairs = tuple(
            (key, f'{inner}{key}', factor if key == 'weight' else 1.0) for key in old.state_dict()
        )
        for key, to, factor in pairs:
            value = old.state_dict()[key]
            if to not in values or values[to].shape != value.shape:
                self.fail(
                    f'cannot start from {key} {tuple(value.shape)} of the convolution it replaces, '
                    f'its own is {tuple(values[to].shape) if to in values else "none"}. Give it '
                    "the same groups and bias, or init='paper'"
                )
            values[to].copy_(factor * value)
        return pairs

    # ---- blocks ----
    def build(self, path: str, channels: int | None, cfg: dict | None = None) -> nn.Module:
        cfg = dict(self.cfg if cfg is None else cfg)
        cfg.pop('postfix', None)
        if 'in_channels' not in cfg:
            if not isinstance(channels, int):
                kind = type(self.model.get_submodule(path)).__name__
                self.fail(
                    f'how many channels come out of {path} ({kind}) cannot be told. Write '
                    'in_channels in its cfg'
                )
            cfg['in_channels'] = channels
        limits = getattr(self.cls, 'limits', {})  # of some classes it follows from the arguments
        reason = limits.get('plugin') if isinstance(limits, dict) else None
        if reason and self.place != 'replace':
            self.fail(f'cannot stand behind {path}: {reason}')
        try:
            return self.cls(**cfg)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f'{self.what} at {path}: {error}') from error

    def add(self, host: str, block: nn.Module, place: str) -> str:
        owner = self.model.get_submodule(host)
        name = _attribute(owner, f'{_abbreviation(self.cls)}{self.cfg.get("postfix", "")}')
        if hasattr(owner, name):
            self.fail(
                f'{host} has a {name} already. Tell them apart: postfix in cfg, '
                "such as postfix='_2'"
            )
        values = chain(owner.parameters(), self.model.parameters())
        like = next((value for value in values if value.is_floating_point()), None)
        if like is not None:
            block.to(like.device, like.dtype)
        block.plugin = Plugin(self.number, place, self.learn)
        block.train(owner.training)
        owner.add_module(name, block)
        self.undo(delattr, owner, name)
        return f'{host}.{name}'


def _name_of(kind: str | type) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def _abbreviation(cls: type[nn.Module]) -> str:
    """The attribute name of a plugin, as MMCV makes it: `_abbr_`, or the class in snake case."""
    words = re.sub(r'([A-Z]+)([A-Z][a-z])', r'\1_\2', cls.__name__)
    return getattr(cls, '_abbr_', re.sub(r'([a-z\d])([A-Z])', r'\1_\2', words).lower())


def _attribute(owner: nn.Module, name: str) -> str:
    """The name, or the next, under which no attribute stands that is no module."""
    names = chain([name], (f'{name}_{number}' for number in count(2)))
    return next(
        n for n in names if not hasattr(owner, n) or isinstance(getattr(owner, n), nn.Module)
    )


def _last_conv(block: nn.Module) -> int:
    """The number of the last convolution conv1, conv2, ... of a residual block; 0 without any."""
    numbers = [re.fullmatch(r'conv(\d+)', name) for name, _ in block.named_children()]
    return max((int(found[1]) for found in numbers if found), default=0)


def _out_channels(module: nn.Module) -> int | None:
    """Channels of the map that a module returns; None if its kind does not say."""
    for name in 'out_channels', 'num_features', 'num_channels':  # convolutions, norms
        if isinstance(getattr(module, name, None), int):
            return getattr(module, name)
    if isinstance(module, AttentionBlock):
        return module.in_channels
    if last := _last_conv(module):
        return _out_channels(module.get_submodule(f'conv{last}'))
    if isinstance(module, nn.Sequential):
        for child in reversed(module):
            if next(child.parameters(), None) is not None and not hasattr(child, 'plugin'):
                return _out_channels(child)
    return None


def _near(name: str, known: set[str]) -> str:
    same = sorted(one for one in known if one.rpartition('.')[2] == name.rpartition('.')[2])
    if same:
        return f' Did you mean {" or ".join(same[:2])}?'
    near = difflib.get_close_matches(name, sorted(known), n=2, cutoff=0.5)
    return f' Did you mean {" or ".join(near)}?' if near else ''
