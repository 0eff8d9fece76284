"""Reading checkpoints: never executing what is in them, never loading half of one in silence."""

import hashlib
import json
import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from mmattn.errors import CheckpointError

_SHOWN = 5  # keys named in an error


def read_checkpoint(path: str | Path) -> dict:
    """The content of a `.safetensors` or `.pth` file, tensors on the CPU.

    Returns:
        a dict with `state_dict`, and whatever else the file has (`meta`, `optimizer`, ...).

    Raises:
        CheckpointError: no such file; not a checkpoint; damaged; holds more than plain data.
    """
    if '://' in str(path):
        raise CheckpointError(f'checkpoint {path} is an address. Download it and name the file.')
    path = Path(path)
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob('*.pth')) if path.parent.is_dir() else []
        hint = f' {path.parent} has: {", ".join(others)}.' if others else ''
        raise CheckpointError(f'checkpoint {path} does not exist.{hint}')
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


def block_forms(model: nn.Module) -> dict[str, str]:
    """Path -> form of every attention block whose weights do not tell its function."""
    from mmattn.blocks import AttentionBlock

    blocks = ((name, m) for name, m in model.named_modules() if isinstance(m, AttentionBlock))
    return {name.removeprefix('module.'): block.form for name, block in blocks if block.form}


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
    weights = {k.removeprefix('module.'): v for k, v in weights.items()}
    own = model.state_dict()
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    missing, unexpected = [k for k in own if k not in weights], [k for k in weights if k not in own]
    if not set(own) & set(weights):
        raise CheckpointError(
            f'checkpoint {source} is of another model: none of its {len(weights)} keys match, e.g. '
            f'{next(iter(weights), "(empty)")}. Use the config it was trained with.'
        )
    parts = [
        f'{len(shapes)} of another shape: '
        + ', '.join(
            f'{k} {tuple(weights[k].shape)}, model {tuple(own[k].shape)}' for k in shapes[:_SHOWN]
        ),
        f'{len(missing)} missing: ' + ', '.join(missing[:_SHOWN]),
        f'{len(unexpected)} left over: ' + ', '.join(unexpected[:_SHOWN]),
    ]
    wrong = [part for part in parts if not part.startswith('0 ')]
    if wrong:
        raise CheckpointError(
            f'checkpoint {source} does not fit the model: {"; ".join(wrong)}. '
            'Use the config it was trained with.'
        )
    own_forms = block_forms(model)
    for name, form in (forms or {}).items():
        if own_forms.get(name, form) != form:
            raise CheckpointError(
                f'checkpoint {source} does not fit the model: {name} was trained with '
                f"init='{form}' and computes something else with init='{own_forms[name]}'. "
                f"Write init='{form}' in the config."
            )
    model.load_state_dict(weights)


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, 'rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()
