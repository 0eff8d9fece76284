"""Tables in Markdown, and texts of code as Markdown."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; signs that would end a cell are escaped."""
    lines = [heads, ['---'] * len(heads), *rows]
    escaped = ([cell.replace('|', r'\|') for cell in row] for row in lines)
    return '\n'.join(f'| {" | ".join(row)} |' for row in escaped)


def escape(text: str) -> str:
    """Plain text as Markdown: signs with a meaning are escaped, code in backticks stays."""
    parts = re.split(r'(`[^`]*`)', text)
    parts[::2] = [re.sub(r'([\\*_<>\[\]$])', r'\\\1', part) for part in parts[::2]]
    return ''.join(parts)
