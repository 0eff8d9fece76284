"""Execute the notebooks of docs/notebooks, and store what came out in them.

python tests/notebooks.py NAME ...

`make notebooks` does so for all of them, each in the environment that has its libraries. Tests
execute them with small parameters, and check what is stored: see `execute` and `problems`.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / 'docs' / 'notebooks'
MINUTES = 5  # limit of an execution with the parameters that are stored
KILOBYTES = 600  # limit of a file, with its pictures
_PICTURES = ('image/png', 'image/jpeg')
_HASH = 'executed_sha256'  # in the metadata: hash of the code cells that the outputs are of


class NotebookFailed(Exception):
    """A notebook did not run to its end."""


def read(name: str) -> NotebookNode:
    """The notebook NAME.ipynb."""
    return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def set_parameters(notebook: NotebookNode, parameters: dict[str, Any]) -> None:
    """Change values in the first code cell, which has one `name = value  # comment` in each line.

    Raises:
        KeyError: it has no such name.
    """
    cell = code_cells(notebook)[0]
    for name, value in parameters.items():
        lines = [line for line in cell.source.splitlines() if line.startswith(f'{name} = ')]
        if len(lines) != 1:
            raise KeyError(f'the first code cell sets {name} {len(lines)} times')
        cell.source = cell.source.replace(lines[0], f'{name} = {value!r}')


def execute(
    name: str,
    folder: Path,
    parameters: dict[str, Any] | None = None,
    ask: dict[str, str] | None = None,
    before: dict[str, str] | None = None,
    timeout: int = 180,
) -> tuple[NotebookNode, dict[str, Any]]:
    """Execute a notebook in a kernel of its own, which imports mmattn of this checkout, if it is one.

    Args:
        name: name of the notebook.
        folder: working directory, with a short path, as sockets are made in it; so are temporary
            folders of the notebook.
        parameters: name -> value, instead of those in the first code cell.
        ask: name -> expression to evaluate in the kernel at the end; of plain values.
        before: id of a code cell -> code to run at its start.
        timeout: limit for each cell, in seconds.

    Returns:
        the notebook with its outputs, and the values of `ask`.

    Raises:
        NotebookFailed: a cell raised an error or took too long.
    """
    notebook = read(name)
    set_parameters(notebook, parameters or {})
    for cell in code_cells(notebook):
        cell.source = (before or {}).get(cell.id, '') + cell.source
    pairs = ', '.join(f'{key!r}: {expression}' for key, expression in (ask or {}).items())
    question = nbformat.v4.new_code_cell(f'import json\nprint(json.dumps({{{pairs}}}))')
    notebook.cells.append(question)
    # by files, as a port could be taken by another process meanwhile
    kernel = dict(transport='ipc', connection_file=str(folder / 'kernel.json'))
    client = NotebookClient(
        notebook, config=Config(KernelManager=kernel), kernel_name='python3', timeout=timeout,
        coalesce_streams=True, resources=dict(metadata=dict(path=str(folder))),
    )  # fmt: skip
    paths = [str(ROOT), os.environ.get('PYTHONPATH')]
    settings = dict(
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
        TMPDIR=str(folder),
        IPYTHONDIR=str(folder / 'ipython'),
    )
    try:
        client.execute(env=os.environ | settings)
    except CellTimeoutError as error:
        cell = next(cell for cell in code_cells(notebook) if not _is_done(cell))
        raise NotebookFailed(
            f'{name}.ipynb: the cell {cell.id} took more than {timeout} s.'
        ) from error
    except (CellExecutionError, DeadKernelError) as error:
        raise NotebookFailed(f'{name}.ipynb: {error}') from error
    notebook.cells.remove(question)
    return notebook, json.loads(question.outputs[-1].text)


def _is_done(cell: NotebookNode) -> bool:
    return 'shell.execute_reply' in cell.metadata.get('execution', {})


def pictures(notebook: NotebookNode) -> list[str]:
    """The pictures of the outputs, in base64."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [o.data[kind] for o in outputs if 'data' in o for kind in _PICTURES if kind in o.data]


def printed(notebook: NotebookNode) -> str:
    """All text of the outputs."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    texts = [output.get('text', '') for output in outputs]
    texts += [value for o in outputs for key, value in o.get('data', {}).items() if 'text' in key]
    return '\n'.join(texts)


def seconds(notebook: NotebookNode) -> float:
    """The time that the execution of the code cells took."""
    total = 0.0
    for cell in code_cells(notebook):
        first, last = (_time(cell, key) for key in ('iopub.execute_input', 'shell.execute_reply'))
        total += (last - first).total_seconds()
    return total


def _time(cell: NotebookNode, event: str) -> datetime:
    text = cell.metadata['execution'][event]
    return datetime.fromisoformat(text.replace('Z', '+00:00'))  # which Python 3.10 does not read


def code_hash(notebook: NotebookNode) -> str:
    """sha256 of the code cells."""
    text = '\n'.join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(text.encode()).hexdigest()


def problems(notebook: NotebookNode) -> list[str]:
    """Why a notebook should not be committed; a sentence for each problem."""
    cells, found = code_cells(notebook), []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append('the code cells were not executed once each, from first to last')
    if notebook.metadata.get(_HASH) != code_hash(notebook):
        found.append('the code is not the code that was executed')
    outputs = [output for cell in cells for output in cell.outputs]
    if any(output.output_type == 'error' for output in outputs):
        found.append('a cell raised an error')
    if not pictures(notebook):
        found.append('there are no pictures')
    if len(nbformat.writes(notebook)) > 1000 * KILOBYTES:
        found.append(f'the file is larger than {KILOBYTES} kB')
    if all(_is_done(cell) for cell in cells) and seconds(notebook) > 60 * MINUTES:
        found.append(f'the execution took more than {MINUTES} minutes')
    for path in str(ROOT), str(Path.home()), tempfile.gettempdir(), 'site-packages':
        if re.search(rf'{re.escape(path)}\b', printed(notebook)):
            found.append(f'an output names {path}, a path of one machine')
    found += _parameter_problems(cells[0].source)
    if any(cell.cell_type == 'code' for cell in notebook.cells[:1]):
        found.append('there is no text before the first code cell')
    return found


def _parameter_problems(source: str) -> list[str]:
    """Lines of the first code cell that are not `name = value  # comment`."""
    found = []
    for line in source.splitlines():
        try:
            (node,) = ast.parse(line).body
            fits = isinstance(node, ast.Assign) and '  # ' in line
        except (SyntaxError, ValueError):
            fits = False
        if not fits:
            found.append(f'first code cell: {line!r} is no parameter with a comment')
    return found


def store(name: str) -> None:
    """Execute a notebook with its own parameters and store the outputs in it.

    Raises:
        NotebookFailed: it does not run, or should not be committed.
    """
    with tempfile.TemporaryDirectory(prefix='notebooks_') as folder:
        notebook, _ = execute(name, Path(folder), timeout=60 * MINUTES)
        _shorten_paths(notebook, folder)
    notebook.metadata[_HASH] = code_hash(notebook)
    found = problems(notebook)
    nbformat.write(notebook, FOLDER / f'{name}.ipynb')
    size = len(nbformat.writes(notebook)) / 1000
    print(f'{name}.ipynb: {seconds(notebook):.0f} s, {size:.0f} kB', flush=True)
    if found:
        raise NotebookFailed(f'{name}.ipynb: {"; ".join(found)}')


def _shorten_paths(notebook: NotebookNode, folder: str) -> None:
    """Write `folder`, as the notebooks call it, for the temporary folder that one has made."""
    for cell in code_cells(notebook):
        text = re.sub(rf'{re.escape(folder)}(/mmattn_\w+)?', 'folder', json.dumps(cell.outputs))
        cell.outputs = nbformat.from_dict(json.loads(text))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='+', metavar='NAME', help='name of a notebook')
    for name in parser.parse_args().names:
        try:
            store(name)
        except NotebookFailed as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
