"""Published weights of a model: from the index, a folder, an address or the Hugging Face Hub."""

import re
from pathlib import Path

from mmattn.checkpoint.download import fetch
from mmattn.checkpoint.read import read_checkpoint, sha256
from mmattn.errors import CheckpointError, UsageError

from .index import Model, find_model, model_index


def resolve(
    name: str | Path, weights: str | Path | None, attention: str | None = None
) -> tuple[Path, Path]:
    """Config and checkpoint of what a command line names, both as `load_model` takes them.

    Args:
        name, weights: as in `load_model`.
        attention: what was added to the config, in the name of published files; None if not known.
    """
    if Path(name).suffix == '.py' or Path(name).is_file():
        model = Model(Path(name).stem, Path(name))
    else:
        model = find_model(str(name))
    if weights is not None:
        return model.config, _file(model.name, weights, attention)
    if model.weights is None:
        raise UsageError(f'{name} has no published weights. Name a checkpoint behind it.')
    path = _file(model.name, model.weights)
    _check_hash(path, model.sha256)
    return model.config, path


def _file(name: str, source: str | Path, attention: str | None = None) -> Path:
    """The file of a model's weights, downloaded if need be."""
    if str(source).startswith('hf://'):
        path = _from_hub(name, str(source).removeprefix('hf://'), attention)
    elif not Path(source).is_dir():
        return fetch(source)
    else:
        newest = sorted(Path(source).iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        found = [file.name for file in newest if file.is_file()]
        kinds = _of_model(name, found, attention)
        kinds = {kind: [f for f in files if _is_of(Path(source) / f, name, kind)]
                 for kind, files in kinds.items()}  # fmt: skip
        kinds = {kind: files for kind, files in kinds.items() if files}
        if not kinds:
            known = '_'.join(filter(None, [name, _joined(attention or 'none')]))
            raise CheckpointError(
                f'folder {source} has no weights of {known}: files are named '
                f'{known}-<8 digits>.safetensors or .pth, as tools/publish.py names them.'
            )
        path = (
            Path(source) / _one_kind(kinds, f'folder {source}', 'Choose with --attention.', name)[0]
        )
    digits = re.search(r'-([0-9a-f]{8})\.\w+$', path.name)
    _check_hash(path, digits and digits[1])
    return path


def _from_hub(name: str, address: str, attention: str | None = None) -> Path:
    """Download what a repository of the Hugging Face Hub has of a model."""
    try:
        from huggingface_hub import hf_hub_download, list_repo_files
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise UsageError(
            f'weights hf://{address}: huggingface_hub is not installed. Run: '
            'pip install huggingface_hub'
        ) from error
    owner, _, rest = address.partition('/')
    repository, _, file = rest.partition('/')
    try:
        if not file:
            kinds = _of_model(name, list_repo_files(f'{owner}/{repository}'), attention)
            if not kinds:
                raise CheckpointError(f'hf://{address} has no weights of {name}.')
            found = _one_kind(kinds, f'hf://{address}', f'Name one, hf://{address}/FILE.', name)
            if len(found) > 1:
                files = ', '.join(found)
                raise CheckpointError(f'hf://{address} has {files}: name one, hf://{address}/FILE.')
            file = found[0]
        return Path(hf_hub_download(f'{owner}/{repository}', file))
    except (OSError, HfHubHTTPError, ValueError) as error:  # no network, no such repository or file
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f'weights hf://{address} cannot be had: {reason}') from error


def _of_model(name: str, files: list[str], attention: str | None = None) -> dict[str, list[str]]:
    """Published files of a model, by what was added to it ('' for nothing), in the given order.

    Where one is there in both formats, the one without pickle. A longer name is a model of its own
    if the index has it: `ccnet_r18_street` is not `ccnet_r18` with `street` added.
    """
    pattern = re.compile(rf'{re.escape(name)}(?:_([\w-]+?))?-[0-9a-f]{{8}}\.(safetensors|pth)')
    kinds: dict[str, list[str]] = {}
    for file in files:
        match = pattern.fullmatch(file)
        if match and not any(f'{name}_{match[1]}_'.startswith(f'{o}_') for o in _longer(name)):
            kinds.setdefault(match[1] or '', []).append(file)
    if attention is not None:
        wanted = _joined(attention)
        kinds = {kind: files for kind, files in kinds.items() if kind == wanted}
    for kind, found in kinds.items():
        kinds[kind] = [file for file in found if file.endswith('.safetensors')] or found
    return kinds


def _longer(name: str) -> list[str]:
    """Other models of the index whose names begin with this one."""
    return [other for other in model_index() if other.startswith(f'{name}_')]


def _joined(attention: str) -> str:
    """Blocks as they stand in the name of a run, see `run_name`."""
    return '' if attention == 'none' else attention.replace(',', '_')


def _one_kind(kinds: dict[str, list[str]], where: str, how: str, name: str) -> list[str]:
    """The files of the plain model, or of the only attention that was added to it."""
    if '' not in kinds and len(kinds) > 1:
        files = ', '.join(files[0] for files in kinds.values())
        raise CheckpointError(f'{where} has {name} with different attention: {files}. {how}')
    return kinds.get('') or next(iter(kinds.values()))


def _is_of(path: Path, name: str, kind: str) -> bool:
    """Whether a file of published weights says that it is of a model with attention added to it."""
    if not kind:
        return True
    try:
        meta = read_checkpoint(path).get('meta', {})
    except CheckpointError:
        return False
    return meta.get('config_name') == name and bool(meta.get('attention'))


def _check_hash(path: Path, digits: str | None) -> None:
    """Compare the sha256 of a file, or the beginning of it, where it is known."""
    if digits and not sha256(path).startswith(digits):
        raise CheckpointError(
            f'weights {path} are not what was published: their sha256 does not begin with '
            f'{digits}. Delete them and get them again.'
        )
