"""Finding published weights: in the index, a folder, at an address or on the Hugging Face Hub."""

import re
from pathlib import Path

from mmattn.checkpoint.download import fetch
from mmattn.checkpoint.read import Checkpoint, read_checkpoint
from mmattn.errors import CheckpointError, UsageError
from mmattn.files import sha256
from mmattn.hub import hub_access

from .index import Model, find_model, model_index


def resolve(
    name: str | Path, weights: str | Path | Checkpoint | None, attention: str | None = None
) -> tuple[Path, Path | Checkpoint]:
    """Paths of the config and the checkpoint that a command line names.

    Args:
        name, weights: as in `load_model`.
        attention: names of the added blocks, which are part of the names of published files; None
            if unknown.

    Raises:
        UsageError: no such model, or it has no published weights.
        CheckpointError: no such weights, or they differ from what was published.
    """
    if Path(name).suffix == '.py' or Path(name).is_file():
        model = Model(Path(name).stem, Path(name))
    else:
        model = find_model(str(name))
    if isinstance(weights, Checkpoint):
        return model.config, weights
    if weights is not None:
        return model.config, _file(model.name, weights, attention)
    if model.weights is None:
        raise UsageError(f'{name} has no published weights. Name a checkpoint after it.')
    path = _file(model.name, model.weights)
    _check_hash(path, model.sha256)
    return model.config, path


def _file(name: str, source: str | Path, attention: str | None = None) -> Path:
    """Path of a model's weights, downloaded if necessary."""
    if str(source).startswith('hf://'):
        path = _from_hub(name, str(source).removeprefix('hf://'), attention)
    elif not Path(source).is_dir():
        return fetch(source)
    else:
        folder = Path(source)
        newest_first = sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
        names = [path.name for path in newest_first if path.is_file()]
        files = {
            blocks: [file for file in group if _matches_meta(folder / file, name, blocks)]
            for blocks, group in _files_by_attention(name, names, attention).items()
        }
        files = {blocks: group for blocks, group in files.items() if group}
        if not files:
            stem = '_'.join(filter(None, [name, _in_file_name(attention or 'none')]))
            raise CheckpointError(
                f'folder {folder} has no weights of {stem}: files are named '
                f'{stem}-<8 digits>.safetensors or .pth, as tools/publish.py names them.'
            )
        path = folder / _choose(files, f'folder {folder}', 'Choose with --attention.', name)[0]
    digits = re.search(r'-([0-9a-f]{8})\.\w+$', path.name)
    _check_hash(path, digits and digits[1])
    return path


def _from_hub(name: str, address: str, attention: str | None = None) -> Path:
    """Download the weights of a model from a repository of the Hugging Face Hub."""
    owner, _, rest = address.partition('/')
    repository, _, file = rest.partition('/')
    failure = f'cannot download weights hf://{address}'
    with hub_access(f'weights hf://{address}', failure, CheckpointError) as hub:
        if not file:
            names = hub.list_repo_files(f'{owner}/{repository}')
            files = _files_by_attention(name, names, attention)
            if not files:
                raise CheckpointError(f'hf://{address} has no weights of {name}.')
            remedy = f'Name one, hf://{address}/FILE.'
            file, *others = _choose(files, f'hf://{address}', remedy, name)
            if others:
                raise CheckpointError(
                    f'hf://{address} has {", ".join([file, *others])}: name one, '
                    f'hf://{address}/FILE.'
                )
        return Path(hub.hf_hub_download(f'{owner}/{repository}', file))


def _files_by_attention(
    name: str, files: list[str], attention: str | None = None
) -> dict[str, list[str]]:
    """Published files of a model by the names of the added blocks, '' for none, in the given order.

    Where a model is there in both formats, the file without pickle. A longer name is a model of its
    own if the index has it: `ccnet_r18_street` is not `ccnet_r18` with `street` added.
    """
    pattern = re.compile(rf'{re.escape(name)}(?:_([\w-]+?))?-[0-9a-f]{{8}}\.(safetensors|pth)')
    others = [f'{other}_' for other in model_index() if other.startswith(f'{name}_')]
    groups: dict[str, list[str]] = {}
    for file in files:
        match = pattern.fullmatch(file)
        if match and not f'{name}_{match[1]}_'.startswith(tuple(others)):
            groups.setdefault(match[1] or '', []).append(file)
    if attention is not None:
        blocks = _in_file_name(attention)
        groups = {blocks: groups[blocks]} if blocks in groups else {}
    for blocks, group in groups.items():
        groups[blocks] = [file for file in group if file.endswith('.safetensors')] or group
    return groups


def _in_file_name(attention: str) -> str:
    """Names of added blocks as they are written in the name of a run, see `run_name`."""
    return '' if attention == 'none' else attention.replace(',', '_')


def _choose(files: dict[str, list[str]], where: str, remedy: str, name: str) -> list[str]:
    """The files of the plain model, or of the only attention that was added to it."""
    if '' not in files and len(files) > 1:
        names = ', '.join(group[0] for group in files.values())
        raise CheckpointError(f'{where} has {name} with different attention: {names}. {remedy}')
    return files.get('') or next(iter(files.values()))


def _matches_meta(path: Path, name: str, blocks: str) -> bool:
    """Whether the meta of published weights with added blocks names the model and its attention."""
    if not blocks:
        return True
    try:
        meta = read_checkpoint(path, structure=True).get('meta', {})
    except CheckpointError:
        return False
    return meta.get('config_name') == name and bool(meta.get('attention'))


def _check_hash(path: Path, digits: str | None) -> None:
    """Check that the sha256 of a file begins with the known digits, if any."""
    if digits and not sha256(path).startswith(digits):
        raise CheckpointError(
            f'weights {path} are not what was published: their sha256 does not begin with '
            f'{digits}. Delete them and download them again.'
        )
