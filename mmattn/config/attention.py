"""Attention blocks added to a config: by `--attention NAME`, or as a checkpoint recorded them."""

import inspect
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmattn.errors import CheckpointError, UsageError
from mmattn.models.with_plugins import type_with_plugins
from mmattn.text import nearest

from .names import CONFIG_FOLDERS
from .registered import find_class
from .scopes import DATA_FORMATS, find_unregistered, use_scope


def check_recorded_attention(cfg: Config, attention: dict) -> None:
    """Refuse attention recorded in a checkpoint if one of its types is not registered.

    Checkpoints come from strangers, and mmengine accepts the path of any function as a type.

    Raises:
        CheckpointError: names the type and where it stands.
    """
    parts = {key: attention[key] for key in ('plugins', 'backbone')}
    problem = find_unregistered(parts, use_scope(cfg))
    if problem:
        raise CheckpointError(
            f'the attention that the checkpoint records is refused: {problem}. Ask its author for '
            'weights that tools/publish.py wrote.'
        )


def add_attention(cfg: Config, names: str) -> None:
    """Add blocks to the network of a config, each where its authors have it.

    Placements are read from `_base_/attention/<name>.py` in the folder of the config, then in
    mmattn's own configs. `cfg.attention` records the names and what was added.

    Args:
        cfg: config of a detector or segmentor; changed.
        names: one name or several, 'cbam' or 'se,gc', in the order in which they apply; 'none'
            for none.

    Raises:
        UsageError: unknown name; a network that takes no plugins.
    """
    plugins, backbone = [], {}
    type_name = _backbone(cfg).type.split('.')[-1]
    for name in [n for n in names.split(',') if n != 'none']:
        placement = Config.fromfile(_placement_file(cfg, name))
        plugins += placement.get('plugins', [])
        if 'backbones' in placement:
            if type_name not in placement.backbones:
                raise UsageError(
                    f'--attention {name} replaces the backbone '
                    f'{" or ".join(placement.backbones)}; the config has {type_name}.'
                )
            backbone = dict(placement.arguments, type=placement.backbones[type_name])
    cfg.attention = dict(names=names, plugins=plugins, backbone=backbone)
    apply_attention(cfg)


def apply_attention(cfg: Config) -> None:
    """Add the attention recorded in `cfg.attention` to the network of the config."""
    _backbone(cfg).update(cfg.attention['backbone'])
    plugins = cfg.attention['plugins']
    if not plugins:
        return
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
            f'--attention: config {cfg.filename} has no model.backbone for the blocks.'
        )
    return cfg.model.backbone


def _placement_file(cfg: Config, name: str) -> Path:
    config = Path(cfg.filename)
    parents = (config.parent, *CONFIG_FOLDERS)
    if config.suffix in DATA_FORMATS:  # a config of data executes no code of its own folder
        parents = CONFIG_FOLDERS
    folders = [parent / '_base_' / 'attention' for parent in parents]
    for folder in folders:
        if name and (folder / f'{name}.py').is_file():
            return folder / f'{name}.py'
    names = sorted({path.stem for folder in folders for path in folder.glob('*.py')})
    raise UsageError(
        f'--attention {name}: no such placement.{nearest(name, names)} Known: {", ".join(names)}.'
    )
