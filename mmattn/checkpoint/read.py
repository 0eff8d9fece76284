"""Reading checkpoints safely: nothing in them is executed, and damaged files are refused."""

import functools
import json
import os
import pickle
import re
from pathlib import Path
from reprlib import repr as show

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mmattn.errors import CheckpointError
from mmattn.text import some

from .download import fetch
from .manifest import file_sha256, verify

# Keys under which training scripts save weights, and averages of weights.
_WEIGHT_KEYS = ('model', 'model_state_dict', 'model_state', 'network', 'net', 'weights')
_AVERAGE_KEYS = ('state_dict_ema', 'model_ema', 'ema_state_dict', 'ema_model', 'ema')
_TRAINING_KEYS = ('optimizer', 'gradients')  # large, and of use to a resumed training alone


class Checkpoint:
    """A checkpoint file, read once by `open_checkpoint` and handed on.

    Attributes:
        path: the file; of an address, the downloaded one.
        meta: facts that the training recorded; empty in files from elsewhere.
    """

    def __init__(self, path: Path, content: dict) -> None:
        self.path = path
        self.meta: dict = content.get('meta', {})
        self._content: dict | None = content

    @property
    def content(self) -> dict:
        """Everything in the file: `state_dict`, `meta`, `optimizer`, ...

        After `release` it is read again.
        """
        if self._content is None:
            self._content = read_checkpoint(self.path)
        return self._content

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The weights, on the CPU."""
        return self.content['state_dict']

    @functools.cached_property
    def sha256(self) -> str:
        """The sha256 of the file, in hexadecimal."""
        return file_sha256(self.path)

    def release(self) -> None:
        """Free the memory of the tensors; path, meta and sha256 remain."""
        self._content = None


def open_checkpoint(
    source: 'str | Path | Checkpoint', *, training_state: bool = True
) -> Checkpoint:
    """Read and verify a checkpoint.

    Args:
        source: path or address of the file, see `fetch`; an open checkpoint is returned as it is.
        training_state: keep the state of the optimizer, which may be twice as large as the weights.

    Raises:
        CheckpointError: see `read_checkpoint`.
    """
    if isinstance(source, Checkpoint):
        return source
    path = fetch(source)
    content = read_checkpoint(path)
    if not training_state:
        content = {key: value for key, value in content.items() if key not in _TRAINING_KEYS}
    return Checkpoint(path, content)


def read_checkpoint(path: str | Path, *, structure: bool = False) -> dict:
    """The content of a `.safetensors` or `.pth` file, tensors on the CPU.

    Weights are found under `state_dict`, under another key of training scripts, such as `model`, or
    at the top level. Averages, such as `ema`, are taken where there are no others.

    Args:
        path: path or address of the file, see `fetch`.
        structure: read everything but the values of tensors, also before there is a manifest; of
            `.safetensors`, the metadata alone.

    Returns:
        a dict with `state_dict`, and whatever else the file holds (`meta`, `optimizer`, ...).

    Raises:
        CheckpointError: the file is missing, is no checkpoint, is damaged, by itself or by its
            manifest (see `mmattn.checkpoint.write`), or holds more than tensors and plain values.
    """
    path = fetch(path)
    content = _read(path, structure)
    if 'state_dict' not in content:
        content = _with_state_dict(content, path)
    if not _is_state_dict(content['state_dict']):
        raise CheckpointError(f'checkpoint {path} holds no weights.')
    problem = _meta_problem(content.get('meta', {}))
    if problem:
        raise CheckpointError(
            f'checkpoint {path} is refused: {problem}. Ask its author for weights that '
            'tools/publish.py wrote.'
        )
    if 'meta' in content:
        config = content['meta'].pop('config', None)  # Python in older files: mmengine evaluates it
        if isinstance(config, str) and re.fullmatch(r'[\w.-]+', config):
            content['meta']['config_name'] = config  # of published ones
    return content


def _is_state_dict(value) -> bool:
    return isinstance(value, dict) and all(isinstance(v, Tensor) for v in value.values())


def _with_state_dict(content: dict, path: Path) -> dict:
    """Move the weights of a file from elsewhere to `state_dict`; log which of several they are."""
    if _is_state_dict(content):
        return dict(state_dict=content)
    candidates = [
        key
        for key in (*_WEIGHT_KEYS, *_AVERAGE_KEYS)
        if content.get(key) and _is_state_dict(content[key])
    ]
    chosen = [key for key in candidates if key in _WEIGHT_KEYS] or candidates
    if len(chosen) != 1:
        why = f'under {" and ".join(chosen)}, which of them is unknown' if chosen else ''
        keys = '' if chosen or not content else f' It has {some(content)}.'
        raise CheckpointError(
            f'checkpoint {path} holds {f"weights {why}" if chosen else "no weights"}.{keys}'
        )
    key = chosen[0]
    ignored = [other for other in candidates if other != key]
    others = f', not {", ".join(ignored)}' if ignored else ''
    _log_once(f'weights of {path}: those under {key!r}{others}')
    rest = {k: v for k, v in content.items() if k not in candidates and k != 'meta'}
    return dict(rest, state_dict=content[key])


def _log_once(text: str) -> None:
    if text not in _logged:
        _logged.add(text)
        print_log(text, logger='current')


_logged: set[str] = set()


def _read(path: Path, structure: bool = False) -> dict:
    """The content of a file, unchanged: tensors and plain values."""
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob('*.pth')) if path.parent.is_dir() else []
        hint = f' {path.parent} has: {", ".join(others)}.' if others else ''
        raise CheckpointError(f'checkpoint {path} does not exist.{hint}')
    if not structure:
        verify(path)
    try:
        if path.suffix == '.safetensors':
            return _read_safetensors(path, structure)
        device = 'meta' if structure else 'cpu'  # torch reads no values for the first
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r'(?:GLOBAL|Unsupported class) (\S+)', str(error))
        if refused:
            remedy = 'Ask its author for safetensors.'
            if refused[1] == 'argparse.Namespace':  # of DETR's and torchvision's scripts
                remedy = (
                    'Save the weights without the arguments of the script, where it was '
                    "trained: torch.save({'model': checkpoint['model']}, FILE)."
                )
            raise CheckpointError(
                f'checkpoint {path} holds more than tensors and plain values ({refused[1]}): it '
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


def _read_safetensors(path: Path, structure: bool) -> dict:
    with safe_open(path, 'pt') as file:
        meta = json.loads((file.metadata() or {}).get('mmattn', '{}'))
    return dict(state_dict={} if structure else load_file(path), meta=meta)


def _meta_problem(meta) -> str | None:
    """Why the recorded facts cannot be those of a training, in words; the file may be anyone's."""
    if not isinstance(meta, dict):
        return f'meta is {show(meta)}'
    for key in 'attention', 'blocks', 'dataset_meta', 'data_set':
        if not isinstance(meta.get(key) or {}, dict):
            return f'meta.{key} is {show(meta[key])}'
    if problem := _data_set_problem(meta.get('data_set')):
        return problem
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


def _data_set_problem(data: dict | None) -> str | None:
    if not data:
        return None
    name, classes = data.get('name'), data.get('classes')
    # the name becomes part of the names of folders and files
    if not isinstance(name, str) or not re.fullmatch(r'[\w-]+', name):
        return f'meta.data_set.name is {show(name)}'
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
        return f'meta.data_set.classes is {show(classes)}'
    return None


def load_safely(filename: str, map_location=None) -> dict:
    """A loader for mmengine's `CheckpointLoader`, whose own retries without `weights_only`."""
    return _read(fetch(os.path.expanduser(filename)))


def replace_loader() -> None:
    """Make mmengine's `CheckpointLoader`, which many networks call, use `load_safely`."""
    for prefix in [*CheckpointLoader._schemes]:
        CheckpointLoader.register_scheme(prefix, load_safely, force=True)
