"""The notation of our docstrings as LaTeX: `y = x * sigmoid(W2 s)` is y = x ⊙ sigmoid(W₂ s).

A formula is a sentence of clauses, with commas and semicolons between them. A clause with `=` or
`<-` is an equation, any other is a remark. In an equation `*` is the element-wise product, ` . `
the dot product, `a_b` and `a[b]` have an index, `[a ; b]` is a concatenation; a word of several
letters is a name, as of a function, and a Greek letter is written as its name.
"""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"(\s*)(\d+(?:\.\d+)?|[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*'?|<-|[-=+*/^.,;()\[\]])"
)
_EQUALS = re.compile(r' (?:=|<-) ')
_GREEK = {'alpha', 'gamma', 'theta', 'psi', 'phi', 'lambda', 'rho', 'sigma'}
_SCALARS = {'gamma', 'rho', 'lambda'}  # which scale a map without a sign for it
_OPERATORS = {'sum': r'\sum', 'max': r'\text{max}'}
_SIGNS = {'<-': r'\leftarrow', '.': r'\cdot', ';': r'\,;\,', ',': r',\,', '=': '=', '+': '+'}
_SIGNS |= {'-': '-', '/': '/'}
_PAIRS = {'(': ')', '[': ']'}


@dataclass(frozen=True)
class Formula:
    """A sentence of a docstring, taken apart.

    Attributes:
        equations: LaTeX of each equation.
        remarks: the other clauses, as they are written.
    """

    equations: tuple[str, ...]
    remarks: tuple[str, ...]


def parse_formula(sentence: str) -> Formula:
    """Take a sentence with equations apart.

    Raises:
        ValueError: a sign in an equation that the notation does not have.
    """
    clauses = _split(sentence.strip().removesuffix('.'))
    equations = [clause for clause in clauses if _EQUALS.search(_outside(clause))]
    remarks = [clause for clause in clauses if clause not in equations]
    return Formula(tuple(map(to_latex, equations)), tuple(remarks))


def to_latex(equation: str) -> str:
    """One equation in LaTeX.

    Raises:
        ValueError: a sign that the notation does not have; a bracket without its partner.
    """
    tokens, position = [], 0
    text = equation.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f'formula {equation!r}: cannot read {text[position:]!r}')
        tokens.append((match[2], bool(match[1])))
        position = match.end()
    latex, rest = _Reader(equation, tokens).read()
    if rest:
        raise ValueError(f'formula {equation!r}: {rest[0][0]} without its partner')
    return latex


def _split(sentence: str) -> list[str]:
    """Clauses of a sentence: what is between commas and semicolons outside of brackets."""
    shown, start, clauses = _outside(sentence), 0, []
    for match in re.finditer(r'[,;] ', shown):
        clauses.append(sentence[start : match.start()])
        start = match.end()
    return [*clauses, sentence[start:]]


def _outside(text: str) -> str:
    """The text, of the same length, with blanks for what is in brackets."""
    depth, shown = 0, []
    for sign in text:
        depth -= sign in ')]'
        shown.append(' ' if depth else sign)
        depth += sign in '(['
    return ''.join(shown)


class _Reader:
    """Writes tokens, each with whether a blank is before it, as LaTeX."""

    def __init__(self, equation: str, tokens: list[tuple[str, bool]]) -> None:
        self.equation, self.tokens = equation, tokens

    def read(self) -> tuple[str, list[tuple[str, bool]]]:
        """LaTeX up to a closing bracket, and the tokens from there on."""
        parts: list[str] = []
        after_operand = False
        while self.tokens and self.tokens[0][0] not in _PAIRS.values():
            token, blank = self.tokens.pop(0)
            is_operand = token[0].isalnum() or token in _PAIRS
            if is_operand and after_operand and blank:
                is_word = self._is_plain(token) or parts[-1].startswith(r'\text')
                parts.append(r'\;' if is_word else r'\,')
            if token == '[' and after_operand and not blank:
                parts.append(f'_{{{self._inside(token)}}}')
            elif token in _PAIRS:
                parts.append(f'{token}{self._inside(token)}{_PAIRS[token]}')
            elif token == '*':
                parts.append(r'\,' if self._is_scalar(parts) else r'\odot')
            elif token == '^':
                parts.append(f'^{{{self._exponent()}}}')
            elif token in _SIGNS:
                parts.append(_SIGNS[token])
            elif token[0].isdigit():
                parts.append(token)
            elif token == 'sqrt' and self._next() == '(':
                parts.append(rf'\sqrt{{{self._inside(self.tokens.pop(0)[0])}}}')
            elif self._is_plain(token):
                words = [token]
                while self.tokens and self._is_plain(self.tokens[0][0], ahead=1):
                    words.append(self.tokens.pop(0)[0])
                parts.append(rf'\text{{{" ".join(words)}}}')
            else:
                parts.append(_symbol(token))
            after_operand = is_operand
        return ' '.join(parts), self.tokens

    def _inside(self, opening: str) -> str:
        """What is in the brackets that have just been opened."""
        latex, rest = self.read()
        if not rest or rest[0][0] != _PAIRS[opening]:
            raise ValueError(f'formula {self.equation!r}: {opening} without its partner')
        self.tokens.pop(0)
        return latex

    def _exponent(self) -> str:
        token, _ = self.tokens.pop(0)
        return self._inside(token) if token in _PAIRS else token

    def _next(self, ahead: int = 0) -> str:
        """The next token, if no blank is before it."""
        if len(self.tokens) <= ahead or self.tokens[ahead][1]:
            return ''
        return self.tokens[ahead][0]

    def _is_plain(self, token: str, ahead: int = 0) -> bool:
        """Whether a token is a word: neither a letter with its index nor a function."""
        is_word = len(token) > 1 and token.isalpha() and token not in _GREEK
        following = self.tokens[ahead : ahead + 1]
        sums_up = token in _OPERATORS and not (following and following[0][0] == 'of')
        return is_word and not sums_up and self._next(ahead) not in _PAIRS

    @staticmethod
    def _is_scalar(parts: list[str]) -> bool:
        last = parts[-1] if parts else ''
        return last.isdigit() or last.lstrip('\\').partition('_')[0] in _SCALARS


def _symbol(token: str) -> str:
    """A letter, Greek letter, operator or name of a function, with index and prime."""
    name, prime = token.removesuffix("'"), r'^{\prime}' if token.endswith("'") else ''
    base, *indices = name.split('_')
    if match := re.fullmatch(r'([A-Za-z])(\d+)', base):
        return f'{match[1]}_{{{match[2]}}}{prime}'
    if any(len(index) > 2 for index in indices) and len(base) > 1:
        return rf'\text{{{"-".join([base, *indices])}}}{prime}'
    if base in _OPERATORS:
        symbol = _OPERATORS[base]
    elif base in _GREEK:
        symbol = rf'\{base}'
    else:
        symbol = base if len(base) == 1 else rf'\text{{{base}}}'
    written = [index if len(index) <= 2 else rf'\text{{{index}}}' for index in indices]
    return symbol + (f'_{{{",".join(written)}}}' if written else '') + prime
