"""The figures of a benchmark in a JSON file, to which a run that was stopped adds the rest."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmattn.errors import UsageError
from mmattn.files import check_writable, write_text_atomic

from .compare import Curve, Row

_SAME = ('cpu', 'gpu', 'torch')  # of the machine, in all parts of one file


@dataclass
class Results:
    """Rows and curves that were measured on one machine.

    Attributes:
        options: pattern, size, device, dtype, rounds, layouts and modes of the command.
        machines: figures of `describe_machine` of each setting.
        rows: one for each case and setting.
        curves: curves of `--plot`.
        path: JSON file that `save` writes; None for none.
    """

    options: dict[str, Any]
    machines: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    path: Path | None = None

    @classmethod
    def open(cls, path: str | Path | None, options: dict[str, Any], resume: bool) -> 'Results':
        """Start anew, or go on with what a file has.

        Raises:
            UsageError: the file has figures of other options, or is no file of a benchmark.
            WriteError: the folder of the file does not exist or cannot be written.
        """
        if path is None:
            return cls(options)
        path = Path(path)
        check_writable(path.parent, '--json')
        if not (resume and path.exists()):
            return cls(options, path=path)
        results = cls.load(path)
        for name, value in json.loads(json.dumps(options)).items():
            if results.options.get(name) != value:
                raise UsageError(
                    f'--resume: {path} was measured with {name} {results.options.get(name)}, not '
                    f'{value}. Give the same options, or leave --resume out to start anew.'
                )
        return results

    @classmethod
    def load(cls, path: str | Path) -> 'Results':
        """Read a file that `save` wrote.

        Raises:
            UsageError: it cannot be read, or is no such file.
        """
        try:
            encoded = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(
                f'{path} cannot be read: {error.strerror}. Name a file that --json wrote.'
            ) from error
        try:
            content = json.loads(encoded)
            rows = [Row.from_json(row) for row in content['rows']]
            curves = [Curve(**curve) for curve in content['curves']]
            return cls(content['options'], content['machines'], rows, curves, Path(path))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f'{path} has no figures of a benchmark: {error!r}. Name a file that --json wrote.'
            ) from error

    def add_machine(self, machine: dict[str, Any]) -> None:
        """Note under which setting the next rows are measured.

        Raises:
            UsageError: the rows before are of another machine or another torch.
        """
        for known in self.machines:
            for name in _SAME:
                if known.get(name) != machine.get(name):
                    raise UsageError(
                        f'--resume: {self.path} was measured with {name} {known.get(name)}, this '
                        f'is {machine.get(name)}. Leave --resume out to start anew.'
                    )
        self.machines.append(machine)

    def find(self, key: tuple) -> Row | None:
        """The row of a case, size, threads and malloc."""
        return next((row for row in self.rows if row.key == key), None)

    def has_memory(self, name: str, size: tuple) -> bool:
        """Whether bytes were measured, which do not depend on threads and malloc."""
        rows = (row for row in self.rows if row.key[:2] == (name, size))
        return any(cell.saved is not None for row in rows for cell in row.cells)

    def save(self) -> None:
        """Write all figures; a kill leaves the file as it was or as it is to be."""
        if self.path is None:
            return
        parts = dict(
            options=json.dumps(self.options),
            machines=_lines(self.machines),
            rows=_lines(asdict(row) for row in self.rows),
            curves=_lines(asdict(curve) for curve in self.curves),
        )
        text = ',\n'.join(f'"{name}": {value}' for name, value in parts.items())
        write_text_atomic(self.path, f'{{\n{text}\n}}\n')


def _lines(items: Iterable[dict]) -> str:
    """A list in JSON with one item a line."""
    return '[\n' + ',\n'.join(json.dumps(item) for item in items) + '\n]'
