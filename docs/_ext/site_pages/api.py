"""The API reference: every public name, under the part of the package that it belongs to."""

from inspect import isclass

import mmattn
from mmattn import errors

_BLOCKS = 'mmattn.blocks'
_PARTS = {  # title -> modules whose public names it has, and other names that those return or take
    'Put blocks into a network': (
        ['mmattn.plugins'],
        ['mmattn.plugins.keep_trainable', 'mmattn.plugins.named_plugins', 'mmattn.plugins.Plugin',
         'mmattn.plugins.BlockReport', 'mmattn.plugins.BlockRow', 'mmattn.plugins.hooks.NotOneMap'],
    ),
    'Look at attention': (['mmattn.visualization.recording'], []),
    "The authors' weights": (['mmattn.zoo.authors'], []),
    'Train, test, predict': (
        ['mmattn.engine.train', 'mmattn.engine.test', 'mmattn.inference.predictor'],
        ['mmattn.engine.train.TrainOptions', 'mmattn.engine.test.TestOptions',
         'mmattn.checkpoint.read.Checkpoint', 'mmattn.datasets.loading.Loaded',
         'mmattn.inference.predictor.PredictionFailed'],
    ),
    'Models and blocks by name': (
        ['mmattn.config.index', 'mmattn.zoo.load', 'mmattn.zoo.catalogue'],
        ['mmattn.zoo.catalogue.BlockInfo'],
    ),
    'Save, load and share': (['mmattn.zoo.pretrained'], []),
    'Heads, backbones and networks': (['mmattn.models'], []),
    'Base classes of blocks': (['mmattn.blocks.base'], ['mmattn.ops.pairs.Pairs']),
}  # fmt: skip
_WITH_MEMBERS = {'mmattn.AttentionBlock', 'mmattn.PairwiseBlock', 'mmattn.Predictor'}
_WITH_MEMBERS |= {'mmattn.plugins.BlockReport'}


def page() -> str:
    """The page in reStructuredText, which autodoc reads.

    Raises:
        LookupError: a public name is of a module that is in no part.
    """
    homes = {name: home for name, home in mmattn._MODULES.items() if name in mmattn.__all__}
    placed = {home for modules, _ in _PARTS.values() for home in modules} | {_BLOCKS}
    if missing := set(homes.values()) - placed:
        raise LookupError(f'{", ".join(sorted(missing))}: add to _PARTS in {__name__}')
    lines = [
        *_title('API', '='),
        'The public names are those of ``mmattn.__all__``; everything else may move. Importing',
        'mmattn loads neither torch nor any other package: a name loads its module on first use.',
        '',
        '.. py:module:: mmattn',
        '',
        '.. py:data:: __version__',
        '   :type: str',
        '',
        '   Version of the package.',
        '',
    ]
    for title, (modules, others) in _PARTS.items():
        names = [f'mmattn.{name}' for name, home in homes.items() if home in modules]
        lines += _title(title, '-')
        for name in sorted(names) + others:
            lines += _entry(name)
    lines += _title('Blocks', '-')
    for name, home in sorted(homes.items()):
        if home == _BLOCKS:
            lines.append(f'- :py:class:`mmattn.{name}`')
    lines += ['', *_title('Errors', '-')]
    lines += ['The exit code of a command is that of the error it ends with.', '']
    for name, value in vars(errors).items():
        if isclass(value) and value.__module__ == errors.__name__:
            lines += [f'.. autoclass:: {errors.__name__}.{name}', *_attributes(value), '']
    return '\n'.join(lines)


def _title(text: str, line: str) -> list[str]:
    return [text, line * len(text), '']


def _entry(name: str) -> list[str]:
    """The directive of autodoc for a name."""
    kind = 'autoclass' if isclass(_find(name)) else 'autofunction'
    lines = [f'.. {kind}:: {name}']
    if name in _WITH_MEMBERS:
        lines.append('   :members:')
    return [*lines, '']


def _find(name: str) -> object:
    home, _, last = name.rpartition('.')
    module = __import__(home, fromlist=[last])
    return getattr(module, last)


def _attributes(value: type) -> list[str]:
    """Members of an enumeration, one of the errors' module."""
    return ['   :members:', '   :undoc-members:'] if value is errors.Exit else []


def files() -> set[str]:
    """Path in the repository of the modules that define the functions of this page."""
    functions = [getattr(mmattn, name) for name in mmattn.__all__]
    homes = {f.__module__ for f in functions if callable(f) and not isclass(f)}
    return {f'{home.replace(".", "/")}.py' for home in homes}
