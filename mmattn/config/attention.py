"""Attention in a config: `--attention NAME`, and what a checkpoint records of it."""

import inspect
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmattn.errors import CheckpointError, UsageError
from mmattn.text import nearest

from .names import CONFIG_FOLDERS
from .scopes import DATA_FORMATS, find_unregistered, use_scope
from .unused_keys import find_class


def check_recorded_attention(cfg: Config, attention: dict) -> None:
    """Refuse what a checkpoint has of attention if a type in it is not registered.

    The checkpoint may be a stranger's, and mmengine takes the path of any function for a type.
    """
    parts = {key: attention[key] for key in ('plugins', 'backbone')}
    wrong = find_unregistered(parts, use_scope(cfg))
    if wrong:
        raise CheckpointError(
            f'the attention that the checkpoint records is refused: {wrong}. Ask its author for '
            'weights that tools/publish.py wrote.'
        )


def add_attention(cfg: Config, names: str) -> None:
    """Put blocks into the network of a config, each where its authors have it.

    The placements are `_base_/attention/<name>.py` beside the config or in mmattn's own configs.
    What was put stands in `cfg.attention`: the names, and the plugins as they are.

    Args:
        cfg: of a detector or segmentor; changed.
        names: one or several, 'cbam' or 'se,gc', in the order in which they apply; 'none' for none.

    Raises:
        UsageError: no such name; a network that takes no plugins.
    """
    plugins, backbone = [], {}
    own = _backbone(cfg)
    for name in [n for n in names.split(',') if n != 'none']:
        placement = Config.fromfile(_placement(cfg, name))
        plugins += placement.get('plugins', [])
        if 'backbones' in placement:
            kind = own.type.split('.')[-1]
            if kind not in placement.backbones:
                raise UsageError(
                    f'--attention {name} is a backbone instead of '
                    f'{" or ".join(placement.backbones)}; the config has {kind}.'
                )
            backbone = dict(placement.arguments, type=placement.backbones[kind])
    cfg.attention = dict(names=names, plugins=plugins, backbone=backbone)
    apply_attention(cfg)


def apply_attention(cfg: Config) -> None:
    """Put what stands in `cfg.attention` into the network."""
    _backbone(cfg).update(cfg.attention['backbone'])
    plugins = cfg.attention['plugins']
    if not plugins:
        return
    from mmattn.models.with_plugins import type_with_plugins

    scope = cfg.model.get('_scope_') or use_scope(cfg)
    network = find_class(cfg.model.type, scope)
    name = type_with_plugins(network) if inspect.isclass(network) else None
    if name is None:
        raise UsageError(
            f'--attention: {cfg.model.type} is no detector of mmdet and no segmentor of mmseg, so '
            'it takes no plugins. Derive its class from mmattn.models.with_plugins.PluginsMixin, '
            'too.'
        )
    cfg.model.type = name or cfg.model.type
    cfg.model.plugins = [*cfg.model.get('plugins', []), *plugins]


def _backbone(cfg: Config) -> ConfigDict:
    if 'backbone' not in (cfg.get('model') or {}):
        raise UsageError(
            f'--attention: config {cfg.filename} has no model.backbone to put it into.'
        )
    return cfg.model.backbone


def _placement(cfg: Config, name: str) -> Path:
    own = Path(cfg.filename)
    homes = CONFIG_FOLDERS if own.suffix in DATA_FORMATS else (own.parent, *CONFIG_FOLDERS)
    folders = [home / '_base_' / 'attention' for home in homes]
    for folder in folders:
        if name and (folder / f'{name}.py').is_file():
            return folder / f'{name}.py'
    known = sorted({path.stem for folder in folders for path in folder.glob('*.py')})
    raise UsageError(
        f'--attention {name}: no such placement.{nearest(name, known)} Known: {", ".join(known)}.'
    )
