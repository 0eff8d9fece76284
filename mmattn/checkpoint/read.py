"""Reading checkpoints: never executing what is in them, never loading half of one in silence.

Importing this also gives mmengine's own loader, which many networks call, these readers.
"""

import difflib
import hashlib
import json
import os
import pickle
import re
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from reprlib import repr as show
from urllib.parse import unquote, urlparse
from urllib.request import HTTPRedirectHandler, build_opener

import mmengine
import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader, get_external_models
from torch import Tensor, nn

from mmattn.blocks import AttentionBlock
from mmattn.errors import CheckpointError
from mmattn.plugins import inherited, plugged
from mmattn.progress import track

from .write import sha256 as sha256
from .write import verify

_SHOWN = 5  # keys named in an error
_BACKBONE = 'backbone.'
_CLASSIFIERS = ('fc', 'head', 'classifier')  # of ImageNet networks, which a backbone has not
_NAMES = ('model', 'model_state_dict', 'model_state', 'network', 'net', 'weights')
_AVERAGES = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema_model', 'ema')
_SCHEMES = ('https',)  # that are downloaded
_LARGEST = 4 << 30  # bytes of a download
_PATIENCE = 60  # seconds without a byte
_BLOCK = 1 << 20  # bytes


def read_checkpoint(path: str | Path, *, structure: bool = False) -> dict:
    """The content of a `.safetensors` or `.pth` file, tensors on the CPU.

    Weights stand under `state_dict`, or under another name that training scripts give them, such as
    `model`, or they are the file. Averages under `ema` count where there are no others.

    Args:
        path: of a file; or an address, see `fetch`.
        structure: see that a file which was just written can be read, without its tensors' values
            and before it has a manifest.

    Returns:
        a dict with `state_dict`, and whatever else the file has (`meta`, `optimizer`, ...).

    Raises:
        CheckpointError: no such file; not a checkpoint; damaged, by itself or by its manifest (see
            `saving`); holds more than plain data.
    """
    path = fetch(path)
    content = _read(path, structure)
    if 'state_dict' not in content:
        content = _with_weights(content, path)
    weights = content['state_dict']
    if not _are_weights(weights):
        raise CheckpointError(f'checkpoint {path} holds no weights.')
    wrong = _odd_meta(content.get('meta', {}))
    if wrong:
        raise CheckpointError(
            f'checkpoint {path} is refused: {wrong}. Ask its author for weights that '
            'tools/publish.py wrote.'
        )
    if 'meta' in content:
        config = content['meta'].pop('config', None)  # Python in older files: mmengine evaluates it
        if isinstance(config, str) and re.fullmatch(r'[\w.-]+', config):
            content['meta']['config_name'] = config  # of published ones
    return content


def _are_weights(value) -> bool:
    return isinstance(value, dict) and all(isinstance(v, Tensor) for v in value.values())


def _with_weights(content: dict, path: Path) -> dict:
    """Name the weights of a file from elsewhere `state_dict`; say which of several were taken."""
    if _are_weights(content):
        return dict(state_dict=content)
    there = [k for k in (*_NAMES, *_AVERAGES) if content.get(k) and _are_weights(content[k])]
    chosen = [k for k in there if k in _NAMES] or there
    if len(chosen) != 1:
        why = f'under {" and ".join(chosen)}, which of them is unknown' if chosen else ''
        keys = '' if chosen else f' It has {_some([str(k) for k in content])}.' if content else ''
        raise CheckpointError(
            f'checkpoint {path} holds {f"weights {why}" if chosen else "no weights"}.{keys}'
        )
    taken = chosen[0]
    left = [k for k in there if k != taken]
    _say_once(
        f'weights of {path}: those under {taken!r}' + (f', not {", ".join(left)}' if left else '')
    )
    rest = {k: v for k, v in content.items() if k not in there and k != 'meta'}
    return dict(rest, state_dict=content[taken])


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print_log(text, logger='current')


_said: set[str] = set()


def _read(path: Path, structure: bool = False) -> dict:
    """A file as it is, plain values and tensors."""
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob('*.pth')) if path.parent.is_dir() else []
        hint = f' {path.parent} has: {", ".join(others)}.' if others else ''
        raise CheckpointError(f'checkpoint {path} does not exist.{hint}')
    if not structure:
        verify(path)
    try:
        if path.suffix == '.safetensors':
            from safetensors import safe_open
            from safetensors.torch import load_file

            with safe_open(path, 'pt') as file:
                notes = json.loads((file.metadata() or {}).get('mmattn', '{}'))
            return dict(state_dict=load_file(path), meta=notes)
        where = 'meta' if structure else 'cpu'  # torch reads no values for the first
        content = torch.load(path, map_location=where, weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r'GLOBAL (\S+)', str(error))
        if code:
            remedy = 'Ask its author for safetensors.'
            if code.group(1) == 'argparse.Namespace':  # of DETR's and torchvision's scripts
                remedy = (
                    'Save the weights without the arguments of the script, where it was '
                    "trained: torch.save({'model': checkpoint['model']}, FILE)."
                )
            raise CheckpointError(
                f'checkpoint {path} holds more than tensors and plain values ({code.group(1)}): it '
                f'is refused, as loading it could execute code. {remedy}'
            ) from error
        raise CheckpointError(f'checkpoint {path} is damaged or is no checkpoint.') from error
    except Exception as error:  # the readers raise many kinds, down to IndexError
        reason = f': {error}' if str(error) else ''
        raise CheckpointError(
            f'checkpoint {path} is damaged or is no checkpoint{reason}.'
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f'checkpoint {path} holds a {type(content).__name__}, not weights.')
    return content


def _odd_meta(meta) -> str | None:
    """What of a file's notes cannot be what a run wrote, in words. They may be a stranger's."""
    if not isinstance(meta, dict):
        return f'meta is {show(meta)}'
    for key in 'attention', 'blocks', 'dataset_meta':
        if not isinstance(meta.get(key) or {}, dict):
            return f'meta.{key} is {show(meta[key])}'
    attention = meta.get('attention')
    if not attention:
        return None
    names, plugins, backbone = (attention.get(k) for k in ('names', 'plugins', 'backbone'))
    # names become part of the names of folders and files
    if not isinstance(names, str) or not re.fullmatch(r'[\w-]+(,[\w-]+)*', names):
        return f'meta.attention.names is {show(names)}'
    if not isinstance(plugins, list) or not all(isinstance(p, dict) for p in plugins):
        return f'meta.attention.plugins is {show(plugins)}'
    return None if isinstance(backbone, dict) else f'meta.attention.backbone is {show(backbone)}'


def load_from_anywhere(filename: str, map_location=None) -> dict:
    """What mmengine's loader calls: safely, where its own would try again unsafely."""
    return _read(fetch(os.path.expanduser(filename)))


for _prefix in [*CheckpointLoader._schemes]:
    CheckpointLoader.register_scheme(_prefix, load_from_anywhere, force=True)


def fetch(address: str | Path) -> Path:
    """The file of an address, downloaded once into torch's cache; a path as it is.

    Args:
        address: a path, `https://...`, `torchvision://resnet50`, or `open-mmlab://` with a name of
            OpenMMLab's list. The eight digits of a hash in a name, as in resnet50-0676ba61.pth, are
            checked against the sha256 of what came, now or before.

    Raises:
        CheckpointError: no such name; it cannot be had; the hash differs.
    """
    scheme, _, name = str(address).partition('://')
    if not name:
        return Path(address)
    url = str(address) if scheme in _SCHEMES else _known_address(scheme, name)
    file = unquote(urlparse(url).path).rpartition('/')[2]
    if not re.fullmatch(r'[\w+.-]*\w', file):
        raise CheckpointError(f'weights {address}: the address does not end in the name of a file.')
    path = Path(torch.hub.get_dir()) / 'checkpoints' / file
    digits = re.search(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$', path.name)  # no date
    digits = digits[1] if digits else ''
    if path.is_file():
        found = sha256(path) if digits else ''
        if not found.startswith(digits):
            raise CheckpointError(
                f'{path}, downloaded before, has sha256 {found}, expected {digits}...: it is '
                'damaged. Delete it.'
            )
        return path
    print_log(f'downloading {url} to {path}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, path, digits)
    except (OSError, HTTPException) as error:  # URLError and its kind
        raise CheckpointError(
            f'weights {address} cannot be had: {error}. Download them elsewhere and name the file.'
        ) from error
    return path


class _OnlySafely(HTTPRedirectHandler):
    """Follows no redirection to an address that is not encrypted."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urlparse(url).scheme not in _SCHEMES:
        raise CheckpointError(f'{url} is not downloaded: allowed is https://.')


def _download(url: str, path: Path, digits: str) -> None:
    """Download to `path`, where it appears when all of it is there and its hash is right.

    Raises:
        CheckpointError: cut short, too large, or its sha256 does not begin with `digits`.
        OSError, HTTPException: it cannot be had.
    """
    _check_scheme(url)
    part, digest, done = path.with_name(f'{path.name}.{os.getpid()}.part'), hashlib.sha256(), 0
    try:
        with build_opener(_OnlySafely).open(url, timeout=_PATIENCE) as source:
            size = int(source.headers.get('Content-Length') or 0)
            with open(part, 'wb') as file:
                blocks = track(_pieces(source), total=-(-size // _BLOCK) or None, title=path.name)
                for block in blocks:
                    done += len(block)
                    if max(done, size) > _LARGEST:
                        raise CheckpointError(
                            f'{url} has {max(done, size)} bytes or more, allowed {_LARGEST}.'
                        )
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        if size and done != size:
            raise CheckpointError(f'{url} was cut short: {done} of {size} bytes came.')
        if not digest.hexdigest().startswith(digits):
            raise CheckpointError(
                f'downloaded {url} has sha256 {digest.hexdigest()}, expected {digits}...: it is '
                'not what was published.'
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _pieces(source: HTTPResponse) -> Iterator[bytes]:
    while block := source.read(_BLOCK):
        yield block


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
    weights = unwrapped(weights)
    fit = Fit(model, weights)
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
    weights, below = _of_backbone(model, unwrapped(weights))
    weights = inherited(model, weights)
    fit = Fit(model, weights)
    places = _outermost({*_blocks(model), *dict(plugged(model))})
    inherited_keys = {
        f'{path}.{to}' for path, block in plugged(model) for _, to, _ in block.plugin.inherits
    }
    new = [k for k in fit.missing if k.startswith(places) and k not in inherited_keys]
    fit.missing = [
        k for k in fit.missing if k not in set(new) and not k.endswith('.num_batches_tracked')
    ]  # which old files have not
    heads = []
    if below or not hasattr(model, 'backbone'):
        start = _BACKBONE if below else ''
        heads = [k for k in fit.unexpected if k.removeprefix(start).split('.')[0] in _CLASSIFIERS]
        fit.unexpected = [key for key in fit.unexpected if key not in heads]
    if not fit.matched or (fit.wrong and not partial):
        remedy = ', or load what fits with --init-from' if fit.matched else ''
        raise CheckpointError(
            f'weights {source} {fit.complaint()}. Name weights of the same network{remedy}.'
            f'{_reads_itself(model, source) if not fit.matched else ""}'
        )
    _check_forms(model, forms, source)
    model.load_state_dict({**fit.own, **{key: weights[key] for key in fit.matched}})
    parts = [f'{len(fit.matched)} tensors loaded from {source}{below}']
    if new:
        paths = [place[:-1] for place in places if any(key.startswith(place) for key in new)]
        parts.append(f'new: {len(new)} of {len(paths)} blocks ({_some(paths)})')
    if heads:
        parts.append(f'left: the classifier ({_some(heads)})')
    return '; '.join(parts + fit.wrong)


def _of_backbone(model: nn.Module, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights with the names that they have in the model, and a word if they are its backbone's.

    Most of the backbone has to be there: a few keys of the same name are chance.
    """
    own = model.state_dict().keys()
    parts = [key for key in own if key.startswith(_BACKBONE)]
    if not parts or set(own) & set(weights):
        return weights, ''
    found = {_BACKBONE + key: value for key, value in weights.items()}
    counted = [key for key in parts if not key.endswith('.num_batches_tracked')]
    if sum(key in found for key in counted) * 2 < len(counted):
        return weights, ''
    return found, ' into the backbone'


def _reads_itself(model: nn.Module, source: str | Path) -> str:
    """The line that helps where a backbone converts files of its authors while it starts."""
    backbone = getattr(model, 'backbone', None)
    if backbone is None or not converts_itself(backbone):
        return ''
    return (
        f' If it is the file of a {type(backbone).__name__} as its authors publish it, which that '
        'class reads and converts, write in the config: '
        f"model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{source}')))"
    )


def converts_itself(module: nn.Module) -> bool:
    """Whether a class reads pretrained files in a method of its own, as Swin, ViT or BEiT do."""
    code = getattr(type(module).init_weights, '__code__', None)
    names = code.co_names if code else ()
    return any(name in names for name in ('CheckpointLoader', '_load_checkpoint'))


class Fit:
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


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
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
