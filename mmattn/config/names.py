"""Configs without a file of their own: a name that is its parent's with another part in it.

`faster_rcnn_r101_cbam_coco` is `faster_rcnn_r50_coco.py` with ResNet-101 of `_base_/backbones` and
CBAM of `_base_/attention`. This module finds the parent and writes the text of the file that such
a name stands for. It imports the standard library alone: `setup.py` loads it from its path.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CONFIG_FOLDERS = (  # of mmattn's own configs: in a checkout, and where it is installed
    Path(__file__).resolve().parents[2] / 'configs',
    Path(__file__).resolve().parents[1] / '.mim' / 'configs',
)
_NAME = re.compile(r'(?P<network>\w+?)_(?P<depth>(?:r|lite)\d+)(?:_(?P<rest>\w+))?')
_ROW = re.compile(r'^ +Config: \S*?(\w+)\.py$', re.MULTILINE)


def is_config(path: Path) -> bool:
    """Whether a path is a file, or is named after parts that its folder has."""
    return path.is_file() or config_text(path) is not None


def config_text(path: Path) -> str | None:
    """The text that a config file would have whose name puts parts together.

    Args:
        path: `<network>_<backbone>[_<attention>][_<data set>].py` in a folder with `_base_`.

    Returns:
        Text of a config in Python; None if the path is a file, or if its folder lacks the parent
        or a part.
    """
    match = _NAME.fullmatch(path.stem)
    if path.suffix != '.py' or not match or path.is_file():
        return None
    for attention, rest in _attention_names(path.parent, match['rest'] or ''):
        for depth in _depths(path.parent, match['depth']):
            stem = '_'.join(filter(None, [match['network'], depth, rest]))
            if not (path.parent / f'{stem}.py').is_file():
                continue
            backbone = ''
            if depth != match['depth']:
                backbone = _backbone(path.parent, stem, match['depth'])
            if backbone is not None:
                return _text(path.with_stem(stem), attention, match['depth'], backbone)
    return None


def is_data_set(path: Path) -> bool:
    """Whether a config file holds a data set alone, with loaders and no network."""
    if not path.is_file():
        return False
    names = _assigned(path)
    return 'train_dataloader' in names and 'model' not in names and '_base_' not in names


def config_names(folder: Path) -> list[str]:
    """Names of a folder's configs: its files, and those of `metafile.yml` without a file.

    Files of data sets alone, as `mmattn data import` writes them, are left out.
    """
    names = {path.stem for path in folder.glob('*.py') if not is_data_set(path)}
    index = folder / 'metafile.yml'
    if index.is_file():
        rows = _ROW.findall(index.read_text(encoding='utf-8'))
        names |= {name for name in rows if is_config(folder / f'{name}.py')}
    return sorted(names)


def write_configs(folder: Path) -> None:
    """Give every config of `metafile.yml` a file, for programs that look for one, as OpenMIM does.

    Args:
        folder: a copy of `configs`.
    """
    paths = [folder / f'{name}.py' for name in config_names(folder)]
    for path, text in [(path, config_text(path)) for path in paths]:  # before any is there
        if text is not None:
            path.write_text(text, encoding='utf-8')


def _attention_names(folder: Path, rest: str) -> Iterator[tuple[str, str]]:
    """(attention, what follows it) for each reading of the end of a name; '' for no attention."""
    yield '', rest
    words = rest.split('_')
    for count in range(len(words), 0, -1):  # gc_r4 before gc
        name = '_'.join(words[:count])
        if name and 'plugins' in _assigned(folder / '_base_' / 'attention' / f'{name}.py'):
            yield name, '_'.join(words[count:])


def _depths(folder: Path, depth: str) -> list[str]:
    """Backbones that the parent may have: the same, or one that a part can stand in for."""
    parts = sorted(path.stem for path in (folder / '_base_' / 'backbones').glob('*.py'))
    return [depth, *(part for part in parts if part != depth and depth in parts)]


def _backbone(folder: Path, parent: str, depth: str) -> str | None:
    """Arguments of a backbone for the parent's, as source; None if there are none for its type."""
    part = folder / '_base_' / 'backbones' / f'{depth}.py'
    arguments = _assigned(part).get('arguments')
    kind = _backbone_type(folder / f'{parent}.py')
    if isinstance(arguments, ast.Call):
        return next((ast.unparse(k.value) for k in arguments.keywords if k.arg == kind), None)
    return None


def _backbone_type(path: Path, children: tuple[Path, ...] = ()) -> str | None:
    """`model.backbone.type` of a config, from its source and that of its parents."""
    if path in children:
        return None
    values = _assigned(path)
    value: ast.expr | None = values.get('model')
    for key in 'backbone', 'type':
        words = value.keywords if isinstance(value, ast.Call) else []
        value = next((word.value for word in words if word.arg == key), None)
    if isinstance(value, ast.Constant):
        return value.value
    parents = values.get('_base_')
    nodes = ast.walk(parents) if parents else ()
    names = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
    types = (_backbone_type(path.parent / name, (*children, path)) for name in names)
    return next(filter(None, types), None)


def _assigned(path: Path) -> dict[str, ast.expr]:
    """Top-level variables of a config and the expressions that they are set to."""
    return {
        target.id: node.value
        for node in _source(path).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _source(path: Path) -> ast.Module:
    """The syntax tree of a config; an empty one if it is not in Python or has an error."""
    try:
        return ast.parse(path.read_text(encoding='utf-8')) if path.suffix == '.py' else _EMPTY
    except (OSError, SyntaxError, ValueError):
        return _EMPTY


_EMPTY = ast.Module([], [])


def _text(parent: Path, attention: str, depth: str, backbone: str) -> str:
    """The source of a config that puts a backbone or attention into its parent."""
    attention_file = [f'_base_/attention/{attention}.py'] if attention else []
    backbone_file = [f'_base_/backbones/{depth}.py'] if backbone else []
    model = ['plugins=_base_.plugins'] if attention else []
    model += [f'backbone={backbone}'] if backbone else []
    about = ast.get_docstring(_source(parent)) or ''
    if backbone:
        old = _NAME.fullmatch(parent.stem)['depth']
        about = re.sub(rf'(ResNet-|(?<![a-zA-Z])r){old[1:]}(?!\d)', rf'\g<1>{depth[1:]}', about)
    parts = ' and '.join(backbone_file + attention_file)
    about = f'{parent.name} with {parts}.\n\n{about}'.strip()
    about = about.replace('\\', r'\\').replace('"""', r'\"\"\"')
    return (
        f'"""{about}\n"""\n'
        f'_base_ = {[parent.name, *attention_file]}\n'
        f'model = dict({", ".join(model)})\n'
    )
