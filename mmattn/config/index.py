"""The index of models: every config by name, with its published weights."""

import difflib
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import yaml

from mmattn.errors import UsageError
from mmattn.text import nearest

from .names import CONFIG_FOLDERS, config_names, is_config

_REPOSITORY = 'https://github.com/mmattn/mmattn'


@dataclass(frozen=True)
class Model:
    """A model of the index.

    Attributes:
        name: name of the config, without folder and suffix.
        config: path of its file, or of a config that has none, see `names`.
        weights: address of the weights; None if none are published.
        sha256: hash of the weights; None if only the digits in their name are known.
    """

    name: str
    config: Path
    weights: str | None = None
    sha256: str | None = None


def list_models(pattern: str = '*', *, weights: bool = False) -> list[str]:
    """Names of the models that match a pattern, in alphabetical order.

    Args:
        pattern: name with wildcards, such as '*cbam*'.
        weights: whether to list only models with published weights.
    """
    models = (model for name, model in model_index().items() if fnmatch(name, pattern))
    return sorted(model.name for model in models if model.weights or not weights)


def find_model(name: str) -> Model:
    """The model of a name, which need not be listed: any config that `names` finds has one.

    Raises:
        UsageError: no such name; with the nearest names.
    """
    models = model_index()
    path = _folder() / f'{name}.py'
    if name not in models and is_config(path):
        return Model(name, path)
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3)
        hint = f'nearest: {", ".join(near)}' if near else "mmattn.list_models('*') lists all"
        raise UsageError(f'model {name}: no such name in the index; {hint}.')
    return models[name]


def find_config(config: str | Path) -> Path:
    """The path of a config: the one given, or that of a name of the index.

    Args:
        config: path of a file, or of a config that has none, see `names`; or a name, without
            folder and suffix.

    Raises:
        UsageError: no such config; with the nearest names.
    """
    path = Path(config)
    if is_config(path):
        return path
    if path.suffix or len(path.parts) > 1:
        hint = nearest(path.stem, config_names(path.parent))
        raise UsageError(f'config {path} does not exist.{hint}')
    return find_model(str(path)).config


@cache
def model_index() -> dict[str, Model]:
    """Name -> model, from the configs and the weights in `metafile.yml`."""
    folder = _folder()
    rows = yaml.safe_load((folder / 'metafile.yml').read_text(encoding='utf-8'))['Models']
    models = {name: Model(name, folder / f'{name}.py') for name in config_names(folder)}
    for row in rows:
        weights = _address(row.get('Weights'), folder)
        models[row['Name']] = replace(
            models[row['Name']], weights=weights, sha256=row.get('SHA256')
        )
    return models


def _address(weights: str | None, folder: Path) -> str | None:
    """Weights of the repository as a file, or its address where there is no clone."""
    if weights is None or '://' in weights:
        return weights
    file = folder.parent / weights
    return str(file) if file.is_file() else f'{_REPOSITORY}/raw/main/{weights}'


def _folder() -> Path:
    """The folder of mmattn's own configs."""
    folder = next((folder for folder in CONFIG_FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise UsageError('the configs of mmattn are not installed. Run: pip install mmattn again')
    return folder
