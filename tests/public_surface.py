"""Print what users depend on as sorted JSON, or compare two such files.

Options of the tools, exit codes, registered types and their arguments, checkpoint keys, and what
the configs resolve to. A change of modules must leave all of it as it is, so nothing here names a
module that may move: it goes through `tools/`, `configs/` and the registries.

Examples, from the root of the project:
  python tests/public_surface.py > before.json
  python tests/public_surface.py --names NAMES > after.json
  python tests/public_surface.py --compare before.json after.json
"""

import argparse
import contextlib
import copy
import hashlib
import importlib.util
import inspect
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path.cwd()  # of the project that is looked at
NO_PARSER = ('setup_env',)  # takes no arguments; a call would begin to set up
PARSE = ('parse_args', 'parse_known_args', 'parse_intermixed_args', 'parse_known_intermixed_args')
MODULES = ('mmattn', 'mmattn.blocks', 'mmattn.models')
# What is built of each block; a registered block that is not listed is built with 64 channels.
BLOCKS = {
    'AFNB': [
        dict(in_channels=8),
        dict(in_channels=6, high_in_channels=8, channels=4, norm_cfg=None, key_pool_scales=(1, 2)),
    ],
    'APNB': [
        dict(in_channels=8),
        dict(in_channels=8, channels=4, norm_cfg=None, key_pool_scales=(1, 2)),
    ],
    'AttentionGate': [
        dict(in_channels=16, gating_channels=24),
        dict(in_channels=8, gating_channels=6, sub_sample=1, normalize='softmax', norm_cfg=None),
        dict(in_channels=8, gating_channels=6, project=False, init='identity'),
    ],
    'BAM': [
        dict(in_channels=32, reduction=8),
        dict(in_channels=16, reduction=4, fusion='mul'),
        dict(in_channels=16, reduction=4, num_convs=1, dilation=2),
    ],
    'CAM': [dict(in_channels=8)],
    'CBAM': [
        dict(in_channels=32),
        dict(in_channels=16, reduction=4, kernel_size=3, pool_types=('avg', 'lp', 'lse', 'max')),
        dict(in_channels=16, reduction=4, spatial=False),
    ],
    'CMPESE': [
        dict(in_channels=32),
        dict(in_channels=16, reduction=4, view='double_fc'),
        dict(in_channels=16, reduction=4, view='pair2x1'),
        dict(in_channels=16, reduction=4, view='fold3x3', fold_height=4),
    ],
    'ContextBlock': [
        dict(in_channels=32, ratio=0.25),
        dict(in_channels=16, ratio=0.25, pooling_type='avg', fusion_types=('channel_mul',)),
        dict(in_channels=16, ratio=0.5, fusion_types=('channel_add', 'channel_mul')),
    ],
    'CrissCrossAttention': [dict(in_channels=16), dict(in_channels=8, recurrence=2)],
    'DualAttention': [dict(in_channels=16), dict(in_channels=6, channels=3)],
    'NonLocal2d': [
        dict(in_channels=8),
        dict(in_channels=8, mode='gaussian', reduction=1),
        dict(in_channels=8, mode='dot_product', norm_cfg=dict(type='BN')),
        dict(in_channels=8, mode='concatenation'),
        dict(in_channels=8, sub_sample=True, use_scale=False),
        dict(in_channels=8, mode='gaussian', sub_sample=True),
    ],
    'PAM': [dict(in_channels=16), dict(in_channels=6, channels=3)],
    'ResidualAttention': [
        dict(in_channels=4, depth=2, t=1),
        dict(in_channels=8, depth=1, p=2, r=2),
        dict(in_channels=4, depth=3),
    ],
    'SCSE': [
        dict(in_channels=16),
        dict(in_channels=12, fusion='add'),
        dict(in_channels=12, fusion='channel'),
        dict(in_channels=12, fusion='spatial'),
    ],
    'SE': [dict(in_channels=32), dict(in_channels=24, reduction=4, bias=False)],
    'SGE': [dict(in_channels=64), dict(in_channels=16, groups=4)],
    'SKConv2d': [
        dict(in_channels=32),
        dict(in_channels=8, out_channels=12, groups=4, stride=2, branches=3, min_channels=4),
        dict(in_channels=4, groups=1, kernel_size=(1, 5), dilation=2, bias=True),
    ],
    'ShuffleAttention': [dict(in_channels=128), dict(in_channels=16, groups=2)],
    'SimplifiedNonLocal': [dict(in_channels=16), dict(in_channels=16, reduction=4)],
    'SpatialTransformer': [
        dict(in_channels=8),
        dict(in_channels=4, padding_mode='zeros', align_corners=True),
    ],
}
# Backbones of which the configs have not all.
BACKBONES = {
    'CMPESEResNet': [dict(depth=18), dict(depth=50, cmpese=dict(view='double_fc'))],
    'CMPESEResNetV1c': [dict(depth=18), dict(depth=50, cmpese=dict(view='double_fc'))],
    'EfficientNetLite': [dict(), dict(arch='lite1', output_stride=16)],
    'GatedResNet': [dict(depth=18), dict(depth=50, gated_stages=(3,))],
    'GatedResNetV1c': [dict(depth=18), dict(depth=50, gated_stages=(3,))],
    'ResidualAttentionNet': [dict(depth=56), dict(depth=92)],
    'SKNet': [dict(depth=50), dict(depth=101)],
}


def load_config(name: str):
    """The resolved config of a name, which need not have a file."""
    from mmattn.config.load import load_config as load

    return load(name)


# -- the parts ------------------------------------------------------------------------------------


class _Parsing(BaseException):
    """Raised in place of parsing."""


@contextlib.contextmanager
def _no_parsing() -> Iterator[list]:
    """No argparse parser parses; yields the list of (parser, method that was called)."""
    before = {name: getattr(argparse.ArgumentParser, name) for name in PARSE}
    asked = []

    def stop(name: str) -> Callable:
        def parse(self, *args, **kwargs):
            asked.append((self, name))
            raise _Parsing

        return parse

    for name in PARSE:
        setattr(argparse.ArgumentParser, name, stop(name))
    try:
        yield asked
    finally:
        for name, method in before.items():
            setattr(argparse.ArgumentParser, name, method)


def flags() -> dict:
    """Tool -> its options and positional arguments; null for a tool without a parser."""
    found = {}
    for path in sorted((ROOT / 'tools').glob('*.py')):
        found[path.stem] = None
        if path.stem in NO_PARSER:
            continue
        spec = importlib.util.spec_from_file_location(f'tool_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with _no_parsing() as asked, contextlib.suppress(_Parsing):
            module.main([])
        if asked:
            parser, method = asked[0]
            found[path.stem] = dict(_arguments(parser), method=method)
    return found


def _arguments(parser: argparse.ArgumentParser) -> dict:
    options, positionals, below = {}, [], {}
    for action in parser._actions:
        facts = dict(
            action=type(action).__name__.strip('_'),
            dest=action.dest,
            nargs=action.nargs,
            const=shown(action.const),
            default=shown(action.default),
            choices=None if action.choices is None else [shown(c) for c in action.choices],
            required=action.required,
            metavar=action.metavar,
            type=_type_name(action.type),
        )
        if action.option_strings:
            options[' '.join(action.option_strings)] = facts
        else:
            positionals.append(facts)
        if isinstance(action, argparse._SubParsersAction):
            below = {name: _arguments(one) for name, one in action.choices.items()}
    exclusive = [
        dict(dests=sorted(a.dest for a in group._group_actions), required=group.required)
        for group in parser._mutually_exclusive_groups
    ]
    return dict(
        options=options,
        positionals=positionals,
        subparsers=below,
        exclusive=exclusive,
        abbreviations=parser.allow_abbrev,
    )


def _type_name(kind: Any) -> str | None:
    """The name of a converter, be it private or not; None for text."""
    return None if kind is None else getattr(kind, '__name__', shown(kind)).lstrip('_')


def exit_codes() -> dict:
    """Constant or exception class of mmattn.errors -> exit code."""
    import mmattn.errors as errors

    found = {f'Exit.{member.name}': int(member) for member in errors.Exit}
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, BaseException) and hasattr(value, 'code'):
            found[name] = int(value.code)
    return found


def types() -> dict:
    """Registry of mmattn -> registered name -> signature."""
    return {
        name: {kind: signature(made) for kind, made in registry.module_dict.items()}
        for name, registry in _registries().items()
    }


def _registries() -> dict:
    from mmengine.registry import Registry

    import mmattn.registry as home

    found = {
        name: value
        for name, value in vars(home).items()
        if isinstance(value, Registry) and value.scope == 'mmattn'
    }
    for registry in found.values():
        registry.import_from_location()
    return found


def names() -> dict:
    """Public module -> name -> signature, or what else it is."""
    found = {}
    for path in MODULES:
        module = import_module(path)
        public = getattr(module, '__all__', None) or [n for n in dir(module) if n[0] != '_']
        found[path] = {}
        for name in public:
            value = getattr(module, name)
            if inspect.ismodule(value):
                continue
            found[path][name] = signature(value) if callable(value) else type(value).__name__
    return found


def block_states() -> dict:
    """Registered block -> its name as a plugin, and arguments -> key -> shape and dtype."""
    import torch

    from mmattn.blocks import AttentionBlock

    found = {}
    for name, made in _registries()['MODELS'].module_dict.items():
        if not (inspect.isclass(made) and issubclass(made, AttentionBlock)):
            continue
        cases = found[name] = dict(plugin=made._abbr_)
        for arguments in BLOCKS.get(name, [dict(in_channels=64)]):
            rest = copy.deepcopy(arguments)
            with torch.device('meta'):
                block = made(rest.pop('in_channels'), **rest)  # AFNB has another name for it
            cases[f'{name}({_spelled(arguments)})'] = dict(state_lines(block))
    missing = sorted(set(BLOCKS) - set(found))
    return found | dict.fromkeys(missing)


def backbone_states() -> dict:
    """Backbone with arguments -> digest of its state dict."""
    import torch
    from mmengine.registry import MODELS

    found = {}
    for name, cases in BACKBONES.items():
        for arguments in cases:
            with torch.device('meta'):
                model = MODELS.build(dict(copy.deepcopy(arguments), type=f'mmattn.{name}'))
            found[f'{name}({_spelled(arguments)})'] = state_digest(model)
    return found


def attention() -> dict:
    """Name of `--attention` -> digest of the values in its file."""
    from mmengine.config import Config

    folder = ROOT / 'configs' / '_base_' / 'attention'
    return {
        path.stem: digest(Config.fromfile(path).to_dict()) for path in sorted(folder.glob('*.py'))
    }


def configs(stems: list[str]) -> tuple[dict, dict]:
    """Digests of all values, whole and by key, and of the state dict, of each config by name."""
    values, states = {}, {}
    start = time.monotonic()
    for index, name in enumerate(stems, 1):
        say(f'{index}/{len(stems)} {name} ({time.monotonic() - start:.0f} s)')
        try:
            cfg = load_config(name)
            content = cfg.to_dict()
            values[name] = dict(
                all=digest(content), keys={key: digest(v)[:16] for key, v in content.items()}
            )
            states[name] = state_digest(build(cfg))
        except Exception as error:  # the other configs are of interest all the same
            say(f'failed: {name}: {type(error).__name__}: {error}')
            failure = f'{type(error).__name__}: {error}'.replace(str(ROOT), '<root>')
            values.setdefault(name, failure)
            states.setdefault(name, failure)
    return values, states


def build(cfg):
    """The network of a config, without memory for weights; only `init_weights` would load any."""
    import torch
    from mmengine.registry import MODELS, DefaultScope

    with (
        DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')),
        torch.device('meta'),
    ):
        return MODELS.build(copy.deepcopy(cfg.model))


# -- how it is written down -----------------------------------------------------------------------


def shown(value: Any) -> str:
    """The repr of a value, without what differs from machine to machine and from home to home."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return value.__qualname__
    return re.sub(r' at 0x[0-9a-f]+', '', repr(value)).replace(str(ROOT), '<root>')


def signature(made: Any) -> str:
    """Names, kinds and defaults of the parameters of a class or function, as in its definition."""
    # the `__new__` of the blocks takes anything
    call = made.__init__ if inspect.isclass(made) else made
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):  # made in C
        return type(made).__name__
    if inspect.isclass(made):
        parameters = parameters[1:]
    plain = [
        p.replace(
            annotation=p.empty,
            default=p.default if p.default is p.empty else _Spelled(shown(p.default)),
        )
        for p in parameters
    ]
    return str(inspect.Signature(plain))


class _Spelled(str):
    """A text whose repr is itself."""

    __repr__ = str.__str__


def _spelled(arguments: dict) -> str:
    return ', '.join(f'{key}={value!r}' for key, value in arguments.items())


def state_lines(model) -> Iterator[tuple[str, str]]:
    """Each key of the state dict with its shape and dtype."""
    for key, value in model.state_dict().items():
        yield key, f'{"x".join(map(str, value.shape)) or "scalar"} {str(value.dtype)[6:]}'


def state_digest(model) -> dict:
    """Number of keys and parameters, and a hash of the keys with shapes and dtypes."""
    lines = sorted(f'{key} {value}' for key, value in state_lines(model))
    return dict(
        keys=len(lines),
        parameters=sum(p.numel() for p in model.parameters()),
        sha256=hashlib.sha256('\n'.join(lines).encode()).hexdigest(),
    )


def digest(value: Any) -> str:
    """A hash of plain values; a list and a tuple differ, the order of keys does not count."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k if isinstance(k, str) else f'!{k!r}': _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return {'!tuple': [_plain(v) for v in value]}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return {f'!{type(value).__name__}': shown(value)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def surface(stems: list[str]) -> dict:
    """All of it."""
    found = {}
    for part in flags, exit_codes, types, names, attention:
        say(part.__name__)
        found[part.__name__] = part()
    say('state_dicts of blocks and backbones')
    found['state_dicts'] = dict(blocks=block_states(), backbones=backbone_states())
    found['config_values'], found['state_dicts']['configs'] = configs(stems)
    return found


def strangers() -> list[str]:
    """Modules of mmattn that came from elsewhere: an editable install finds those missing here."""
    home = (ROOT / 'mmattn').resolve()
    loaded = [(name, getattr(module, '__file__', None)) for name, module in sys.modules.items()]
    return sorted(
        name
        for name, file in loaded
        if name.split('.')[0] == 'mmattn' and file and home not in Path(file).resolve().parents
    )


# -- comparison -----------------------------------------------------------------------------------


def differences(old: dict, new: dict) -> list[str]:
    """Each difference on a line."""
    old, new = dict(old), dict(new)
    values = old.pop('config_values', {}), new.pop('config_values', {})
    return [*_differences(old, new, ''), *_config_differences(*values)]


def _differences(old: Any, new: Any, place: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            where = f'{place}[{key}]' if place else key
            if key not in new:
                yield f'{where}: gone, was {_short(old[key])}'
            elif key not in old:
                yield f'{where}: added, is {_short(new[key])}'
            else:
                yield from _differences(old[key], new[key], where)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new)):
            yield from _differences(*pair, f'{place}[{index}]')
    elif old != new:
        yield f'{place}: was {_short(old)}, is {_short(new)}'


def _config_differences(old: dict, new: dict) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        place = f'config_values[{name}]'
        if name not in new:
            yield f'{place}: gone'
        elif name not in old:
            yield f'{place}: added'
        elif isinstance(old[name], str) or isinstance(new[name], str):
            yield from _differences(old[name], new[name], place)
        elif old[name] != new[name]:
            a, b = old[name]['keys'], new[name]['keys']
            keys = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
            said = [
                key + (' (gone)' if key not in b else ' (added)' if key not in a else '')
                for key in keys
            ]
            yield f'{place}: other values of {", ".join(said) or "no key, the hash of all differs"}'


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= 200 else f'{text[:200]}...'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--names', metavar='FILE', help='names of configs, one a line; default: all of the index'
    )
    parser.add_argument('--compare', nargs=2, metavar='JSON', help='old and new; exit 1 if unequal')
    args = parser.parse_args(argv)
    if args.compare:
        old, new = (json.loads(Path(path).read_text(encoding='utf-8')) for path in args.compare)
        found = differences(old, new)
        print('\n'.join(found) or 'no differences')
        return int(bool(found))
    if args.names:
        stems = Path(args.names).read_text(encoding='utf-8').split()
    else:
        stems = None
    sys.path[0] = str(ROOT)  # not tests/, whose folders are named as packages are
    warnings.filterwarnings('ignore')
    with contextlib.redirect_stdout(sys.stderr):
        from mmattn.config.index import list_models

        found = surface(stems or list_models())
    print(json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False))
    states = found['state_dicts']['configs']
    failed = [name for name, state in states.items() if isinstance(state, str)]
    strange = strangers()
    if failed:
        say(f'error: configs that failed: {", ".join(failed)}')
    if strange:
        say(f'error: modules that are not of this project: {", ".join(strange)}')
    return int(bool(failed or strange))


if __name__ == '__main__':
    sys.exit(main())
