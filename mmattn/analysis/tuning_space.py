"""Search spaces of `mmattn tune`: config keys with ranges, as written on a command line."""

import copy
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmattn.config.check import check_config
from mmattn.config.load import change_config, load_config_file, parse_options
from mmattn.errors import UsageError

if TYPE_CHECKING:
    from optuna import Trial

ATTENTION = 'attention'  # in place of a config key: the blocks of `--attention`
_PLAIN = 'none'
_GRAMMAR = 'Write KEY=float:0:1, KEY=log:1e-5:1e-2, KEY=int:1:8, or a choice, KEY=a|b|c.'


@dataclass(frozen=True)
class Range:
    """The values that a config key may have.

    Attributes:
        key: dotted key of the config, or 'attention'.
        kind: 'float', 'log' (float, whose logarithm is drawn), 'int' or 'choice'.
        low, high: bounds, both included; 0 for a choice.
        choices: values as on a command line; empty for numbers.
    """

    key: str
    kind: str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()

    def suggest(self, trial: 'Trial') -> str:
        """The value of a trial, as on a command line; drawn once."""
        if self.kind == 'choice':
            return trial.suggest_categorical(self.key, list(self.choices))
        if self.kind == 'int':
            return str(trial.suggest_int(self.key, self.low, self.high))
        return repr(trial.suggest_float(self.key, self.low, self.high, log=self.kind == 'log'))

    @property
    def examples(self) -> Sequence[str]:
        """All choices, or both bounds."""
        return self.choices or (repr(self.low), repr(self.high))


def parse_space(pairs: Iterable[str]) -> list[Range]:
    """Parse `KEY=RANGE` texts.

    Raises:
        UsageError: a text is not of this form; shows the forms.
    """
    ranges: dict[str, Range] = {}
    for pair in pairs:
        key, _, text = pair.partition('=')
        if not key or not text:
            raise _wrong(pair, 'it needs a key and a range')
        if key in ranges:
            raise _wrong(pair, f'{key} has a range already')
        number = re.fullmatch(r'(float|log|int):(.*)', text)
        ranges[key] = _numbers(pair, key, *number.groups()) if number else _choice(pair, key, text)
    return list(ranges.values())


def _numbers(pair: str, key: str, kind: str, text: str) -> Range:
    if key == ATTENTION:
        raise _wrong(pair, 'blocks are a choice')
    bounds = text.split(':')
    if len(bounds) != 2:
        raise _wrong(pair, f'{kind} has two bounds')
    try:
        low, high = map(int if kind == 'int' else float, bounds)
    except ValueError:
        numbers = 'whole numbers' if kind == 'int' else 'numbers'
        raise _wrong(pair, f'its bounds are no {numbers}') from None
    if not low < high or not math.isfinite(high - low):
        raise _wrong(pair, 'the first bound has to be below the second')
    if kind == 'log' and low <= 0:
        raise _wrong(pair, 'log needs bounds above 0')
    return Range(key, kind, low, high)


def _choice(pair: str, key: str, text: str) -> Range:
    choices = tuple(text.split('|'))
    if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choices):
        raise _wrong(pair, 'it is no range of numbers, and a choice has two values or more')
    return Range(key, 'choice', choices=choices)


def _wrong(pair: str, problem: str) -> UsageError:
    return UsageError(f'--space {pair}: {problem}. {_GRAMMAR}')


def split_values(
    values: dict[str, str], attention: str | None = None
) -> tuple[list[str], str | None]:
    """`--cfg-options` and `--attention` for the values of a trial.

    Args:
        values: key -> text.
        attention: blocks if the space has no 'attention'.
    """
    options = [f'{key}={text}' for key, text in values.items() if key != ATTENTION]
    attention = values.get(ATTENTION, attention)
    return options, None if attention == _PLAIN else attention


def check_space(
    config: str | Path,
    ranges: list[Range],
    attention: str | None = None,
    options: list[str] | None = None,
    data: str | None = None,
) -> None:
    """Refuse keys that nothing uses and choices that the config cannot have, before any trial.

    Each choice and bound is tried with the first values of the other keys.

    Args:
        config: path or name of the config.
        ranges: the space.
        attention: blocks that all trials have.
        options: `--cfg-options` of all trials.
        data: `--data` of all trials.

    Raises:
        UsageError: names the key and the nearest one that is used; or it is set twice.
    """
    given = [option.partition('=')[0] for option in options or ()]
    given += [ATTENTION] if attention else []
    twice = next((r.key for r in ranges if r.key in given), None)
    if twice:
        flag = '--attention' if twice == ATTENTION else '--cfg-options'
        raise UsageError(f'{twice} is in --space and in {flag}: leave it out of one.')
    file = load_config_file(config)
    first = {r.key: r.examples[0] for r in ranges}
    tried = [first] + [{**first, r.key: text} for r in ranges for text in r.examples[1:]]
    for values in tried:
        changes, blocks = split_values(values, attention)
        parsed = parse_options([*(options or ()), *changes])
        cfg = change_config(copy.deepcopy(file), parsed, blocks, data)
        check_config(cfg, {key.split('.')[0] for key in parsed})
