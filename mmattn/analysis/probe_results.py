"""Results of the context probe: the JSON file, the table, and what each task tells."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mmattn.errors import MmattnError, UsageError
from mmattn.files import check_writable, write_text_atomic

from .probe_network import CONTROLS, Cell, rows
from .probe_tasks import CEILING, CHANCE, TASKS

MARGIN = 20  # points above chance from which a block is said to do something
_NEAR = 10  # points above chance up to which a network without a block fails


class CellsDiffer(MmattnError):
    """Cells are not equal, bit for bit, to those of another file."""


@dataclass(frozen=True)
class Summary:
    """Accuracy of a block on a task over the seeds, in percent; `std` is None for one seed."""

    mean: float
    std: float | None
    seeds: int

    def __str__(self) -> str:
        return f'{self.mean:.1f}' + ('' if self.std is None else f' ± {self.std:.1f}')


@dataclass
class ProbeResults:
    """Cells that were measured with the same options.

    Attributes:
        options: size of the networks and their training, and the version of torch.
        cells: (block, task, seed) -> cell.
        left_out: block -> why it cannot stand in the network.
        path: JSON file that `save` writes; None for none.
    """

    options: dict[str, Any]
    cells: dict[tuple[str, str, int], Cell] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def open(
        cls, path: str | Path | None, options: dict[str, Any], resume: bool = False
    ) -> 'ProbeResults':
        """Start anew, or go on with what a file has.

        Raises:
            UsageError: the file has results of other options, or is no file of the probe.
            WriteError: the folder of the file cannot be written.
        """
        if path is None:
            return cls(options)
        path = Path(path)
        check_writable(path.parent, '--json')
        if not (resume and path.exists()):
            return cls(options, path=path)
        results = cls.load(path)
        results.check_options(options, 'Leave --resume out to start anew.')
        return results

    @classmethod
    def load(cls, path: str | Path) -> 'ProbeResults':
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
            cells = [Cell(**cell) for cell in content['cells']]
            options, left_out = dict(content['options']), dict(content['left_out'])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f'{path} has no results of the probe: {error!r}. Name a file that --json wrote.'
            ) from error
        return cls(options, {cell.key: cell for cell in cells}, left_out, Path(path))

    def check_options(self, options: dict[str, Any], remedy: str) -> None:
        """Compare the options with those of another run.

        Raises:
            UsageError: they differ.
        """
        for name, value in options.items():
            if self.options.get(name) != value:
                raise UsageError(
                    f'{self.path} was measured with {name} {self.options.get(name)}, this is '
                    f'{value}. {remedy}'
                )

    def add(self, cell: Cell) -> None:
        self.cells[cell.key] = cell
        self.save()

    def save(self) -> None:
        """Write all cells, one a line; a kill leaves the file as it was or as it is to be."""
        if self.path is None:
            return
        cells = ',\n'.join(json.dumps(asdict(self.cells[key])) for key in sorted(self.cells))
        parts = dict(
            options=json.dumps(self.options),
            left_out=json.dumps(self.left_out),
            cells=f'[\n{cells}\n]',
        )
        text = ',\n'.join(f'"{name}": {value}' for name, value in parts.items())
        write_text_atomic(self.path, f'{{\n{text}\n}}\n')

    def summary(self, block: str, task: str) -> Summary | None:
        """Mean and standard deviation (n - 1) over the seeds; None if none was measured."""
        cells = [cell for key, cell in self.cells.items() if key[:2] == (block, task)]
        values = [cell.accuracy for cell in cells]
        if not values:
            return None
        return Summary(mean(values), stdev(values) if len(values) > 1 else None, len(values))

    def blocks(self) -> list[str]:
        """Blocks with a result or a reason, in the order of the table."""
        measured = {block for block, _, _ in self.cells} | set(self.left_out)
        known = [row for row in rows() if row in measured]
        return known + sorted(measured - set(known))

    def tasks(self) -> list[str]:
        """Tasks with a result."""
        measured = {task for _, task, _ in self.cells}
        return [name for name in TASKS if name in measured]


def table(results: ProbeResults) -> Iterator[str]:
    """The table in Markdown: accuracy in percent, bold from `MARGIN` points above chance."""
    tasks = results.tasks()
    yield f'| block | {" | ".join(tasks)} |'
    yield f'|---|{"---:|" * len(tasks)}'
    yield f'| *chance* |{f" *{CHANCE:.0f}* |" * len(tasks)}'
    yield f'| *ceiling* |{f" *{CEILING:.0f}* |" * len(tasks)}'
    for block in results.blocks():
        cells = [_cell(results.summary(block, task)) for task in tasks]
        yield f'| {block} | {" | ".join(cells)} |'


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return '-'
    return f'**{summary}**' if summary.mean >= CHANCE + MARGIN else str(summary)


def conclusions(results: ProbeResults) -> Iterator[str]:
    """For each task the blocks that are above chance by `MARGIN` points, the best first."""
    for task in results.tasks():
        means = {
            block: summary.mean
            for block in results.blocks()
            if (summary := results.summary(block, task)) and block not in CONTROLS
        }
        means = {block: value for block, value in means.items() if value >= CHANCE + MARGIN}
        best = sorted(means, key=means.get, reverse=True)
        names = ', '.join(f'{block} {means[block]:.0f}' for block in best)
        yield f'{task} ({TASKS[task].ability}): {names or "no block"}'


def remarks(results: ProbeResults) -> Iterator[str]:
    """What the table does not say: blocks left out, diverged trainings, tasks that are local."""
    for block, reason in results.left_out.items():
        yield f'left out: {block}: {reason}'
    for cell in results.cells.values():
        if not cell.finite:
            yield f'the loss was not finite: {cell.block} on {cell.task}, seed {cell.seed}'
    for task in results.tasks():
        summary = results.summary('none', task)
        if summary and summary.mean > CHANCE + _NEAR:
            yield f'{task}: {summary} without a block, so it can be solved in part without one'


def compare(results: ProbeResults, other: ProbeResults) -> str:
    """A sentence on the cells that two files share.

    Raises:
        CellsDiffer: some are not equal, bit for bit.
    """
    shared = sorted(results.cells.keys() & other.cells.keys())
    different = [key for key in shared if results.cells[key] != other.cells[key]]
    if different:
        lines = [
            '{} on {}, seed {}: '.format(*key)
            + f'{results.cells[key].accuracy:.2f} here, {other.cells[key].accuracy:.2f} there'
            for key in different
        ]
        raise CellsDiffer(
            f'{len(different)} of {len(shared)} cells differ from those of {other.path}. Compare '
            'on a CPU of the same kind with the same torch.',
            lines,
        )
    return f'{len(shared)} cells are equal, bit for bit, to those of {other.path}'
