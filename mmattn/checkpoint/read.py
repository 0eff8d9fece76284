"""Reading checkpoints: nothing in them is executed, and none is loaded half without a report."""

import json
import os
import pickle
import re
from pathlib import Path
from reprlib import repr as show

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from mmattn.errors import CheckpointError
from mmattn.files import sha256 as sha256

from .download import fetch
from .load import _some
from .manifest import verify

_NAMES = ('model', 'model_state_dict', 'model_state', 'network', 'net', 'weights')
_AVERAGES = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema_model', 'ema')


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


def replace_loader() -> None:
    """Have mmengine's own loader, which many networks call, read as `read_checkpoint` does."""
    for prefix in [*CheckpointLoader._schemes]:
        CheckpointLoader.register_scheme(prefix, load_from_anywhere, force=True)
