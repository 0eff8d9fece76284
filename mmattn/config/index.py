"""The index of models: every config by its name, with the weights that are published for it."""

import difflib
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import yaml

from mmattn.errors import UsageError

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Model:
    """A model of the index.

    Attributes:
        name: of the config, without folder and suffix.
        config: the file.
        weights: their address; None if none are published.
        sha256: of the weights; None if not known beyond the digits in their name.
    """

    name: str
    config: Path
    weights: str | None = None
    sha256: str | None = None


def list_models(pattern: str = '*', *, weights: bool = False) -> list[str]:
    """Names of the models that fit a pattern, in alphabetical order.

    Args:
        pattern: with stars, such as '*cbam*'.
        weights: only those whose weights are published.
    """
    found = (model for name, model in model_index().items() if fnmatch(name, pattern))
    return sorted(model.name for model in found if model.weights or not weights)


def find_model(name: str) -> Model:
    """The model of a name.

    Raises:
        UsageError: there is none; with the nearest names.
    """
    models = model_index()
    if name not in models:
        near = difflib.get_close_matches(name, models, n=3)
        hint = f'nearest: {", ".join(near)}' if near else "mmattn.zoo.list_models('*') lists all"
        raise UsageError(f'model {name}: no such name in the index; {hint}.')
    return models[name]


@cache
def model_index() -> dict[str, Model]:
    """Name -> model, of the configs and what `metafile.yml` says of their weights."""
    folder = next(
        (f for f in (_PACKAGE.parent / 'configs', _PACKAGE / '.mim' / 'configs') if f.is_dir()),
        None,
    )
    if folder is None:
        raise UsageError('the configs of mmattn are not installed. Run: pip install mmattn again')
    rows = yaml.safe_load((folder / 'metafile.yml').read_text(encoding='utf-8'))['Models']
    models = {path.stem: Model(path.stem, path) for path in folder.glob('*.py')}
    for row in rows:
        found = dict(weights=row.get('Weights'), sha256=row.get('SHA256'))
        models[row['Name']] = replace(models[row['Name']], **found)
    return models
