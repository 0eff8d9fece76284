"""`--cfg-options`: values from a command line, parsed by the type of the value they replace."""

import inspect
import re
import shlex
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

from mmengine.config import Config, DictAction

from mmattn.errors import UsageError

_QUOTES = ('"', "'")
_PAIRS = {'[': ']', '(': ')'}
_NUMBERS = re.compile(r'\b(int|float|bool|number)\b')


class Options(dict):
    """Dotted keys and their values as mmengine's `DictAction` parses them.

    Attributes:
        texts: dotted key -> text after the `=`.
    """

    def __init__(self, texts: dict[str, str]) -> None:
        super().__init__({key: _parse(key, text) for key, text in texts.items()})
        self.texts = dict(texts)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.texts.pop(key, None)

    def __deepcopy__(self, memo: dict) -> 'Options':
        copy = Options({})
        copy.update(deepcopy(dict(self), memo))
        copy.texts = dict(self.texts)
        return copy


def parse_options(options: dict | Iterable[str] | None) -> dict:
    """Parse the `key=value` strings of `--cfg-options` as mmengine's `DictAction` does.

    Blanks and quotes inside lists are kept; `merge_options` then keeps a text where it replaces a
    string of the config.

    Raises:
        UsageError: a string without a key or `=`.
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


def merge_options(cfg: Config, options: dict, class_of: Callable[[dict], type | None]) -> None:
    """Change a config by dotted keys.

    A text replaces a string as it is: '2021_07', 'my set' and 'true' stay text where the config has
    text. None, and lists in brackets, are parsed; in quotes they are text.

    Args:
        cfg: config; changed.
        options: result of `parse_options`, or dotted keys and values.
        class_of: returns the class that is built from a dict of the config; None if unknown.

    Raises:
        UsageError: a key does not fit into the config.
    """
    texts = getattr(options, 'texts', {})
    values = {}
    for key, value in options.items():
        parent, old = _lookup(cfg, key)
        if key in texts:
            value = _parse_like(key, texts[key], old, parent, class_of)
        values[key] = tuple(value) if isinstance(old, tuple) and isinstance(value, list) else value
    try:
        cfg.merge_from_dict(values)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        parsed = ', '.join(f'{key}={value!r}' for key, value in values.items())
        raise UsageError(
            f'--cfg-options does not fit {cfg.filename}: {error.args[0]}. It was parsed as '
            f'{parsed}.'
        ) from error


def command_line(options: dict, relative=str) -> str:
    """Options as one would type them in a shell.

    Args:
        options: result of `parse_options`, or dotted keys and values.
        relative: function that makes paths in texts relative.
    """
    texts = getattr(options, 'texts', {})
    values = {key: texts.get(key, value) for key, value in options.items()}
    pairs = [f'{k}={relative(v) if isinstance(v, str) else v}' for k, v in values.items()]
    return ' '.join(shlex.quote(pair) for pair in pairs)


def _lookup(cfg: Config, key: str) -> tuple[Any, Any]:
    """The parent and the value of a dotted key; None for what the config lacks."""
    parent, value = None, cfg
    for part in key.split('.'):
        try:
            child = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return parent, None
        parent, value = value, child
    return parent, value


def _parse_like(key: str, text: str, old: Any, parent: Any, class_of: Callable) -> Any:
    """Parse a text as a value that replaces `old`."""
    if isinstance(old, str):
        bare = text.strip()
        if _is_quoted(bare):
            return bare[1:-1]
        if bare == 'None':
            return None
        if bare[:1] in _PAIRS and bare.endswith(_PAIRS[bare[0]]):
            return _parse(key, text)
        value = DictAction._parse_int_float_bool(bare)
        name = key.split('.')[-1]
        takes_both = not isinstance(value, str) and _takes_numbers(parent, name, class_of)
        return value if takes_both else text
    if isinstance(old, list | tuple) and old and all(isinstance(item, str) for item in old):
        return _parse(key, text, words=True)
    if old is None or isinstance(old, dict):
        bare = text.strip()
        if _is_quoted(bare) and bare[1:2] not in _PAIRS:
            return bare[1:-1]
        if re.fullmatch(r'[+-]?(0\d+|\d+(_\d+)+)', bare):  # a number to Python alone
            return text
    return _parse(key, text)


def _takes_numbers(parent: Any, name: str, class_of: Callable) -> bool:
    """Whether a class documents that an argument may be a number or a bool, not a string alone."""
    cls = class_of(parent) if isinstance(parent, dict) else None
    for base in inspect.getmro(cls) if inspect.isclass(cls) else ():
        entry = re.search(rf'^\s*{re.escape(name)} \((.*?)\)', base.__doc__ or '', re.MULTILINE)
        try:
            parameter = inspect.signature(base).parameters.get(name)
        except (TypeError, ValueError):
            parameter = None
        if entry or parameter:
            types = entry[1] if entry else ''
            if parameter:
                types += f' {parameter.annotation} {type(parameter.default).__name__}'
            return bool(_NUMBERS.search(types))
    return False


def _parse(key: str, text: str, words: bool = False) -> Any:
    """Parse numbers, words, [a,b] and (a,b) as `DictAction` does; quoted parts are text.

    Args:
        key: dotted key, for the error message.
        text: text after the `=`.
        words: whether items of a list stay text.
    """
    text = text.strip()
    if _is_quoted(text):  # as a whole: its content is parsed
        text = text[1:-1].strip()
    if ',' not in text and not _is_enclosed(text):
        return _single(text, words=False)
    return _value(key, text, words)


def _value(key: str, text: str, words: bool) -> Any:
    text = text.strip()
    enclosed = _is_enclosed(text)
    parts = _split(text[1:-1] if enclosed else text)
    if parts is None:
        raise UsageError(
            f'--cfg-options {key}={text}: its brackets or quotes do not match. Values are '
            'numbers, words, [a,b] and (a,b); write anything else in a config file.'
        )
    if not enclosed and len(parts) == 1:
        return _single(text, words)
    if not parts[-1].strip():
        parts.pop()  # of (a,) and []
    values = [_value(key, part, words) for part in parts]
    return tuple(values) if enclosed and text[0] == '(' else values


def _is_enclosed(text: str) -> bool:
    """Whether one pair of brackets encloses all of a text."""
    ends = text[:1] in _PAIRS and text[-1:] == _PAIRS[text[0]]
    return ends and (_split(text[1:-1]) is not None or _split(text) is None)


def _single(text: str, words: bool) -> Any:
    if _is_quoted(text):
        return text[1:-1]
    if words and text != 'None':
        return text
    return DictAction._parse_int_float_bool(text)


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] in _QUOTES and text[0] not in text[1:-1]


def _split(text: str) -> list[str] | None:
    """Split a text at commas outside brackets and quotes; None if these do not match."""
    parts, start, brackets, quote = [], 0, [], ''
    for index, letter in enumerate(text):
        if quote:
            quote = '' if letter == quote else quote
        elif letter in _QUOTES and text[:index].rstrip()[-1:] in ('', ',', *_PAIRS):
            quote = letter
        elif letter in _PAIRS:
            brackets.append(_PAIRS[letter])
        elif letter in _PAIRS.values():
            if not brackets or brackets.pop() != letter:
                return None
        elif letter == ',' and not brackets:
            parts.append(text[start:index])
            start = index + 1
    return None if brackets or quote else [*parts, text[start:]]
