"""Reading checkpoints: never executing what is in them, never loading half of one in silence."""

import difflib
import json
import pickle
import re
import sys
from pathlib import Path
from urllib.parse import urlparse

import mmengine
import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import get_external_models
from torch import Tensor, nn

from mmattn.blocks import AttentionBlock
from mmattn.errors import CheckpointError
from mmattn.plugins import inherited, plugged

from .saving import sha256 as sha256
from .saving import verify

_SHOWN = 5  # keys named in an error
_CLASSIFIERS = ('fc', 'head', 'classifier')  # of ImageNet networks, which a backbone has not


def read_checkpoint(path: str | Path) -> dict:
    """The content of a `.safetensors` or `.pth` file, tensors on the CPU.

    Args:
        path: of a file; or an address, see `fetch`.

    Returns:
        a dict with `state_dict`, and whatever else the file has (`meta`, `optimizer`, ...).

    Raises:
        CheckpointError: no such file; not a checkpoint; damaged, by itself or by its manifest (see
            `saving`); holds more than plain data.
    """
    path = fetch(path)
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob('*.pth')) if path.parent.is_dir() else []
        hint = f' {path.parent} has: {", ".join(others)}.' if others else ''
        raise CheckpointError(f'checkpoint {path} does not exist.{hint}')
    verify(path)
    try:
        if path.suffix == '.safetensors':
            from safetensors import safe_open
            from safetensors.torch import load_file

            with safe_open(path, 'pt') as file:
                notes = json.loads((file.metadata() or {}).get('mmattn', '{}'))
            return dict(state_dict=load_file(path), meta=notes)
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r'GLOBAL (\S+)', str(error))
        if code:
            raise CheckpointError(
                f'checkpoint {path} holds more than tensors and plain values ({code.group(1)}): it '
                'is refused, as loading it could execute code. Ask its author for safetensors.'
            ) from error
        raise CheckpointError(f'checkpoint {path} is damaged or is no checkpoint.') from error
    except Exception as error:  # the readers raise many kinds, down to IndexError
        reason = f': {error}' if str(error) else ''
        raise CheckpointError(
            f'checkpoint {path} is damaged or is no checkpoint{reason}.'
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f'checkpoint {path} holds a {type(content).__name__}, not weights.')
    if 'state_dict' not in content:
        content = dict(state_dict=content)
    weights = content['state_dict']
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f'checkpoint {path} holds no weights.')
    return content


def fetch(address: str | Path) -> Path:
    """The file of an address, downloaded once into torch's cache; a path as it is.

    Args:
        address: a path, `https://...`, `torchvision://resnet50`, or `open-mmlab://` with a name of
            OpenMMLab's list. The eight digits of a hash in a name, as in resnet50-0676ba61.pth, are
            checked against the sha256 of what came.

    Raises:
        CheckpointError: no such name; it cannot be had; the hash differs.
    """
    scheme, _, name = str(address).partition('://')
    if not name:
        return Path(address)
    url = str(address) if scheme in ('http', 'https') else _known_address(scheme, name)
    path = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlparse(url).path).name
    if path.is_file():
        return path
    digits = re.search(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$', path.name)  # no date
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        print_log(f'downloading {url} to {path}')
        torch.hub.download_url_to_file(
            url, str(path), digits and digits[1], progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError) as error:  # URLError and its kind; another hash
        raise CheckpointError(
            f'weights {address} cannot be had: {error}. Download them elsewhere and name the file.'
        ) from error
    return path


def _known_address(scheme: str, name: str) -> str:
    """The URL behind a name of torchvision or OpenMMLab."""
    if scheme == 'torchvision':
        # without importing torchvision, which need not be there
        table = json.loads(
            (Path(mmengine.__file__).parent / 'hub/torchvision_0.12.json').read_text()
        )
    elif scheme in ('open-mmlab', 'openmmlab'):
        table = get_external_models()
    else:
        raise CheckpointError(
            f'weights {scheme}://{name}: allowed https://, torchvision://, open-mmlab:// or a path.'
        )
    if not table.get(name):  # some names of torchvision have no weights
        near = difflib.get_close_matches(name, [k for k in table if table[k]], n=3)
        hint = f' Did you mean {", ".join(near)}?' if near else ''
        raise CheckpointError(f'weights {scheme}://{name}: no such name is known.{hint}')
    found = table[name]
    return found if '://' in found else f'https://download.openmmlab.com/{found}'


def block_forms(model: nn.Module) -> dict[str, str]:
    """Path -> form of every attention block whose weights do not tell its function."""
    return {name: block.form for name, block in _blocks(model).items() if block.form}


def _blocks(model: nn.Module) -> dict[str, AttentionBlock]:
    return {
        name.removeprefix('module.'): m
        for name, m in model.named_modules()
        if isinstance(m, AttentionBlock)
    }


def load_weights(
    model: nn.Module,
    weights: dict[str, Tensor],
    source: str | Path,
    forms: dict[str, str] | None = None,
) -> None:
    """Load a state dict strictly.

    Args:
        model: takes the weights.
        weights: the state dict.
        source: where it is from, for messages.
        forms: of the blocks that had these weights, see `block_forms`; not checked if None.

    Raises:
        CheckpointError: a key is missing or left over, or a shape or a block's form differs; the
            model is unchanged.
    """
    weights = _unwrapped(weights)
    fit = _Fit(model, weights)
    if not fit.matched or fit.wrong:
        raise CheckpointError(
            f'checkpoint {source} {fit.complaint()}. Use the config it was trained with.'
        )
    _check_forms(model, forms, source)
    model.load_state_dict(weights)


def start_from(
    model: nn.Module,
    weights: dict[str, Tensor],
    source: str | Path,
    *,
    forms: dict[str, str] | None = None,
    partial: bool = False,
) -> str:
    """Load weights of the plain network into one with attention.

    Parameters of blocks may be missing, they keep their start; replacements with init='identity'
    start from what they replace. The classifier of an ImageNet network is left out.

    Args:
        model: takes the weights.
        weights, source, forms: as in `load_weights`.
        partial: load what fits, whatever else is missing, left over or of another shape.

    Returns:
        a sentence: how many tensors were loaded, which are new, which were left.

    Raises:
        CheckpointError: anything else is missing, left over or of another shape, unless `partial`;
            nothing fits at all. The model is unchanged.
    """
    weights = inherited(model, _unwrapped(weights))
    fit = _Fit(model, weights)
    places = _outermost({*_blocks(model), *dict(plugged(model))})
    inherited_keys = {
        f'{path}.{to}' for path, block in plugged(model) for _, to, _ in block.plugin.inherits
    }
    new = [k for k in fit.missing if k.startswith(places) and k not in inherited_keys]
    fit.missing = [
        k for k in fit.missing if k not in set(new) and not k.endswith('.num_batches_tracked')
    ]  # which old files have not
    heads = [key for key in fit.unexpected if key.split('.')[0] in _CLASSIFIERS]
    if not hasattr(model, 'backbone'):
        fit.unexpected = [key for key in fit.unexpected if key not in heads]
    if not fit.matched or (fit.wrong and not partial):
        raise CheckpointError(
            f'weights {source} {fit.complaint()}. Name weights of the same network, or load what '
            'fits with --init-from.'
        )
    _check_forms(model, forms, source)
    model.load_state_dict({**fit.own, **{key: weights[key] for key in fit.matched}})
    parts = [f'{len(fit.matched)} tensors loaded from {source}']
    if new:
        paths = [place[:-1] for place in places if any(key.startswith(place) for key in new)]
        parts.append(f'new: {len(new)} of {len(paths)} blocks ({_some(paths)})')
    if heads and not hasattr(model, 'backbone'):
        parts.append(f'left: the classifier ({_some(heads)})')
    return '; '.join(parts + fit.wrong)


class _Fit:
    """How a state dict fits a model."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        own = self.own = model.state_dict()
        self.weights = weights
        self.matched = [k for k in own if k in weights and own[k].shape == weights[k].shape]
        self.shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
        self.missing = [k for k in own if k not in weights]
        self.unexpected = [k for k in weights if k not in own]

    @property
    def wrong(self) -> list[str]:
        """What does not fit, in words."""
        shapes = [
            f'{k} {tuple(self.weights[k].shape)}, model {tuple(self.own[k].shape)}'
            for k in self.shapes
        ]
        found = {'of another shape': shapes, 'missing': self.missing, 'left over': self.unexpected}
        return [f'{len(keys)} {what}: {_some(keys)}' for what, keys in found.items() if keys]

    def complaint(self) -> str:
        if not set(self.own) & set(self.weights):
            first = next(iter(self.weights), '(empty)')
            return f'is of another model: none of its {len(self.weights)} keys match, e.g. {first}'
        return f'does not fit the model: {"; ".join(self.wrong)}'


def _outermost(paths: set[str]) -> tuple[str, ...]:
    """The paths that lie in none of the others, each with a dot behind."""
    found: list[str] = []
    for path in sorted(f'{path}.' for path in paths):
        if not path.startswith(tuple(found)):
            found.append(path)
    return tuple(found)


def _some(names: list[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def _check_forms(model: nn.Module, forms: dict[str, str] | None, source: str | Path) -> None:
    own = block_forms(model)
    for name, form in (forms or {}).items():
        if own.get(name, form) != form:
            raise CheckpointError(
                f'checkpoint {source} does not fit the model: {name} was trained with '
                f"init='{form}' and computes something else with init='{own[name]}'. "
                f"Write init='{form}' in the config."
            )
