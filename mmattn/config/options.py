"""`--cfg-options`: values from a command line, read as what the config has in their place."""

import inspect
import re
import shlex
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from mmengine.config import Config, DictAction

from mmattn.errors import UsageError

_QUOTES = ('"', "'")
_PAIRS = {'[': ']', '(': ')'}
_NUMBERS = re.compile(r'\b(int|float|bool|number)\b')


class Options(dict):
    """Dotted keys and the values that mmengine's `DictAction` would read from their texts.

    Attributes:
        texts: dotted key -> what stood behind the `=`.
    """

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__({key: _parse(key, text) for key, text in texts.items()})
        self.texts = dict(texts)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.texts.pop(key, None)

    def __deepcopy__(self, memo: dict) -> 'Options':
        made = Options({})
        made.update(deepcopy(dict(self), memo))
        made.texts = dict(self.texts)
        return made


def parse_options(options: dict | Iterable[str] | None) -> dict:
    """What `--cfg-options` gave, `key=value` strings, read as mmengine's own `DictAction` does.

    Blanks and quotes inside lists are kept; `merge_options` then keeps a string where the config
    has one.

    Raises:
        UsageError: not of the form key=value.
    """
    if not options or isinstance(options, dict):
        return options or {}
    texts = {}
    for pair in options:
        key, is_pair, text = pair.partition('=')
        if not (key and is_pair):
            raise UsageError(f'--cfg-options {pair}: write key=value.')
        texts[key] = text
    return Options(texts)


def merge_options(cfg: Config, options: dict, reader) -> None:
    """Change a config by dotted keys.

    A text replaces a string as it is: '2021_07', 'my set' and 'true' are names of folders where a
    name stands. None, and lists in brackets, are what they look like; in quotes they are text.

    Args:
        cfg: changed.
        options: of `parse_options`, or dotted keys and values.
        reader: the class that a config key of a dict is read by, or None: (dict) -> class.

    Raises:
        UsageError: a key does not fit into the config.
    """
    texts = getattr(options, 'texts', {})
    values = {}
    for key, value in options.items():
        around, old = _there(cfg, key)
        if key in texts:
            value = _fitting(key, texts[key], old, around, reader)
        values[key] = tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value
    try:
        cfg.merge_from_dict(values)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        given = ', '.join(f'{key}={value!r}' for key, value in values.items())
        raise UsageError(
            f'--cfg-options does not fit {cfg.filename}: {error.args[0]}. Understood was {given}.'
        ) from error


def command_line(options: dict, relative=str) -> str:
    """Options as they are typed in a shell."""
    texts = getattr(options, 'texts', {})
    shown = {k: texts.get(k, v) for k, v in options.items()}
    pairs = [f'{k}={relative(v) if isinstance(v, str) else v}' for k, v in shown.items()]
    return ' '.join(shlex.quote(pair) for pair in pairs)


def _there(cfg: Config, key: str) -> tuple[Any, Any]:
    """The dict around a key and the value of the config at it; None where there is none."""
    around, old = None, cfg
    for part in key.split('.'):
        try:
            around, old = old, old[int(part)] if isinstance(old, list | tuple) else old[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return around, None
    return around, old


def _fitting(key: str, text: str, old: Any, around: Any, reader) -> Any:
    """The value of a text where the config has `old`."""
    if isinstance(old, str):
        bare = text.strip()
        if _quoted(bare):
            return bare[1:-1]
        if bare == 'None':
            return None
        if bare[:1] in _PAIRS and bare.endswith(_PAIRS[bare[0]]):
            return _parse(key, text)
        value = DictAction._parse_int_float_bool(bare)
        mixed = not isinstance(value, str) and _takes_numbers(around, key.split('.')[-1], reader)
        return value if mixed else text
    words = isinstance(old, list | tuple) and old and all(isinstance(one, str) for one in old)
    if words:
        return _parse(key, text, words=True)
    if old is None or isinstance(old, dict):
        bare = text.strip()
        if _quoted(bare) and bare[1:2] not in _PAIRS:
            return bare[1:-1]
        if re.fullmatch(r'[+-]?(0\d+|\d+(_\d+)+)', bare):  # a number to Python alone
            return text
    return _parse(key, text)


def _takes_numbers(around: Any, name: str, reader) -> bool:
    """Whether a class says that it reads a number or a bool where the config has a string."""
    cls = reader(around) if isinstance(around, dict) else None
    for base in inspect.getmro(cls) if inspect.isclass(cls) else ():
        said = re.search(rf'^\s*{re.escape(name)} \((.*?)\)', base.__doc__ or '', re.MULTILINE)
        try:
            parameter = inspect.signature(base).parameters.get(name)
        except (TypeError, ValueError):
            parameter = None
        if said or parameter:
            kinds = said[1] if said else ''
            if parameter:
                kinds += f' {parameter.annotation} {type(parameter.default).__name__}'
            return bool(_NUMBERS.search(kinds))
    return False


def _parse(key: str, text: str, words: bool = False) -> Any:
    """Numbers, words, [a,b] and (a,b) as `DictAction` reads them; quoted parts are text."""
    text = text.strip()
    if _quoted(text):  # as a whole: what is inside counts
        text = text[1:-1].strip()
    if ',' not in text and not _enclosed(text):
        return _single(text, words=False)
    return _value(key, text, words)


def _value(key: str, text: str, words: bool) -> Any:
    text = text.strip()
    enclosed = _enclosed(text)
    parts = _parts(text[1:-1] if enclosed else text)
    if parts is None:
        raise UsageError(
            f'--cfg-options {key}={text}: its brackets or quotes do not match. Values are '
            'numbers, words, [a,b] and (a,b); write what is more than that in a config file.'
        )
    if not enclosed and len(parts) == 1:
        return _single(text, words)
    if not parts[-1].strip():
        parts.pop()  # of (a,) and []
    values = [_value(key, part, words) for part in parts]
    return tuple(values) if enclosed and text[0] == '(' else values


def _enclosed(text: str) -> bool:
    """Whether one pair of brackets is around all of a text."""
    ends = text[:1] in _PAIRS and text[-1:] == _PAIRS[text[0]]
    return ends and (_parts(text[1:-1]) is not None or _parts(text) is None)


def _single(text: str, words: bool) -> Any:
    if _quoted(text):
        return text[1:-1]
    if words and text != 'None':
        return text
    return DictAction._parse_int_float_bool(text)


def _quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] in _QUOTES and text[0] not in text[1:-1]


def _parts(text: str) -> list[str] | None:
    """What commas outside brackets and quotes part; None if these do not match."""
    parts, start, waiting, quote = [], 0, [], ''
    for index, letter in enumerate(text):
        if quote:
            quote = '' if letter == quote else quote
        elif letter in _QUOTES and text[:index].rstrip()[-1:] in ('', ',', *_PAIRS):
            quote = letter
        elif letter in _PAIRS:
            waiting.append(_PAIRS[letter])
        elif letter in _PAIRS.values():
            if not waiting or waiting.pop() != letter:
                return None
        elif letter == ',' and not waiting:
            parts.append(text[start:index])
            start = index + 1
    return None if waiting or quote else [*parts, text[start:]]
