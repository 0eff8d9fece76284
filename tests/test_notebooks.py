"""The notebooks run, and what is stored in them is of one whole execution of their code.

`attention_in_torchvision` runs in tests/libraries, where torchvision is installed.
"""

import copy
import re
import tempfile
from pathlib import Path

import nbformat
import pytest

from tests.notebooks import (
    FOLDER,
    NotebookFailed,
    code_cells,
    execute,
    pictures,
    printed,
    problems,
    read,
    set_parameters,
)

NAMES = ('ablate_two_blocks', 'attention_in_torchvision', 'ccnet_on_street')


@pytest.fixture
def folder():
    """A temporary folder with a short path, as sockets of data workers are made in it."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def test_all_notebooks_are_tested():
    assert sorted(path.stem for path in FOLDER.glob('*.ipynb')) == list(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_what_is_stored_is_of_one_whole_execution(name):
    nbformat.validate(nbformat.read(FOLDER / f'{name}.ipynb', as_version=nbformat.NO_CONVERT))
    assert not problems(read(name)), 'run: make notebooks'


@pytest.mark.parametrize('name', NAMES)
def test_what_is_linked_is_there(name):
    texts = [cell.source for cell in read(name).cells if cell.cell_type == 'markdown']
    targets = re.findall(r'\]\((?!https?://)([^)#]+)', '\n'.join(texts))
    assert targets and all((FOLDER / target).is_file() for target in targets)


def change_code(notebook):
    code_cells(notebook)[-1].source += '\nprint(1)'


def drop_pictures(notebook):
    for cell in code_cells(notebook):
        cell.outputs = []


def add_path(notebook):
    output = nbformat.v4.new_output('stream', text=f'{FOLDER / "street"}: 4 scenes')
    code_cells(notebook)[1].outputs.append(output)


def add_temporary_path(notebook):
    output = nbformat.v4.new_output('stream', text=f'{tempfile.gettempdir()}/mmattn_ab12/street')
    code_cells(notebook)[1].outputs.append(output)


def run_a_cell_twice(notebook):
    code_cells(notebook)[-1].execution_count += 1


def add_error(notebook):
    code_cells(notebook)[1].outputs.append(nbformat.v4.new_output('error', ename='ValueError'))


@pytest.mark.parametrize(
    'damage, problem',
    [
        (change_code, 'the code is not the code that was executed'),
        (drop_pictures, 'there are no pictures'),
        (add_path, 'a path of one machine'),
        (add_temporary_path, 'a path of one machine'),
        (run_a_cell_twice, 'not executed once each'),
        (add_error, 'a cell raised an error'),
    ],
)
def test_what_should_not_be_committed_is_found(damage, problem):
    notebook = read('ablate_two_blocks')
    damage(notebook)
    (found,) = problems(notebook)
    assert problem in found


def test_a_parameter_that_is_not_there_is_refused():
    notebook = read('ablate_two_blocks')
    set_parameters(notebook, dict(seeds=2))
    assert '\nseeds = 2\n' in code_cells(notebook)[0].source
    with pytest.raises(KeyError, match='sets seed 0 times'):
        set_parameters(copy.deepcopy(notebook), dict(seed=2))


def test_a_cell_that_fails_or_takes_too_long_is_named(folder, monkeypatch):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell('seconds = 0  # to wait', id='parameters'),
            nbformat.v4.new_code_cell('import time\ntime.sleep(seconds)\n1 / seconds', id='wait'),
        ]
    )
    monkeypatch.setattr('tests.notebooks.read', lambda name: copy.deepcopy(notebook))
    with pytest.raises(NotebookFailed, match='odd.ipynb: (.|\n)*ZeroDivisionError'):
        execute('odd', folder)
    with pytest.raises(NotebookFailed, match=r'odd.ipynb: the cell wait took more than 1 s\.'):
        execute('odd', folder, dict(seconds=20), timeout=1)


@pytest.mark.slow
def test_ccnet_on_street(folder):
    notebook, found = execute(
        'ccnet_on_street',
        folder,
        dict(iterations=4, images=dict(train=4, val=2, test=2)),
        dict(
            scores='[metrics["mIoU"], untrained["mIoU"]]',
            sums='[float(weights.sum(1).sub(1).abs().max()) for weights in (first, second, both)]',
            seen='seen',
            step='int(open(work_dir / "last_checkpoint").read().split("iter_")[1].split(".")[0])',
        ),
    )
    assert all(0 <= score <= 100 for score in found['scores'])
    assert max(found['sums']) < 1e-4  # weights of a query sum to 1
    assert found['seen'] == dict(one=16 + 32 - 1, two=16 * 32)
    assert found['step'] == 4
    assert len(pictures(notebook)) == 7  # scenes, curves, classes, two predictions, maps, page
    assert 'mIoU: ' in printed(notebook)


FINISHED = """
import json

for name, value in dict(none=3.0, se=5.5).items():  # a finished run is not repeated
    path = folder / 'ablation' / name / 'seed1' / 'metrics' / 'last.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dict(metrics=dict(mIoU=value))))

"""


@pytest.mark.slow
def test_ablate_two_blocks(folder):
    notebook, found = execute(
        'ablate_two_blocks',
        folder,
        dict(iterations=10, images=dict(train=6, test=3), blocks=['se'], seeds=2),
        dict(
            values='{r.attention: r.values for r in results}',
            mean='float(differences["se"].mean())',
            difference='compared[0].difference.value',
            interval='compared[0].difference.interval',
        ),
        before=dict(run=FINISHED),
    )
    assert found['values']['none']['1'] == 3 and found['values']['se']['1'] == 5.5
    assert all(0 <= values['0'] <= 100 for values in found['values'].values())
    assert found['mean'] == pytest.approx(found['difference'])
    low, high = found['interval']
    assert low < found['mean'] < high
    assert len(pictures(notebook)) == 2  # differences, number of seeds
    text = printed(notebook)
    assert '| se | ' in text and 'se: no difference seen; an effect of ' in text
