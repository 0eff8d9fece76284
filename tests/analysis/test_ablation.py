"""Ablation: what runs, what is compared, and what is said of it."""

import json
import os
import shlex
import stat
from statistics import stdev

import cv2
import pytest
from scipy.stats import ttest_rel

from mmattn.analysis import ablation as module
from mmattn.analysis import schedulers
from mmattn.analysis.ablation import RunsFailed, ablate
from mmattn.analysis.ablation_plot import pareto
from mmattn.analysis.ablation_results import conclusion, results_table, summarise
from mmattn.analysis.ablation_run import Run
from mmattn.errors import UsageError
from tests.conftest import ROOT, tiny_options

CONFIG = ROOT / 'configs' / 'fcn_r18_street.py'
VALUES = {  # by block, of seeds 0 to 3
    'none': [50.0, 51.0, 49.5, 50.2],
    'se': [51.0, 52.3, 50.4, 51.1],
    'gc': [50.1, 50.8, 49.9, 50.0],
    'cbam': [48.0, 49.2, 47.3, 48.4],
}
COST = dict(parameters=10, macs=2e9, ms=3.0, size=[8, 8])


def write(run: Run, value: float) -> None:
    folder = run.folder / 'metrics'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'last.json').write_text(json.dumps(dict(metrics={'aAcc': 90.0, 'mIoU': value})))


@pytest.fixture
def quick(monkeypatch):
    """Runs that take no time: a shell command that writes the figure, and is counted."""

    def command(config, options, run):
        content = json.dumps(dict(metrics=dict(mIoU=VALUES[run.attention][run.seed])))
        folder = shlex.quote(str(run.folder))
        return (
            f'mkdir -p {folder}/metrics && echo once >> {folder}/count && echo threads '
            f'$OMP_NUM_THREADS && echo {shlex.quote(content)} > {folder}/metrics/last.json'
        )

    monkeypatch.setattr(module, 'run_command', command)
    monkeypatch.setattr(
        module, '_measure_costs', lambda config, names, *args: dict.fromkeys(names, COST)
    )


def counts(folder):
    files = {p.parent.relative_to(folder): p for p in folder.glob('*/*/count')}
    return {str(name): len(path.read_text().split()) for name, path in files.items()}


def test_runs_once_each_and_goes_on_with_what_is_missing(quick, tmp_path):
    said = []
    found = ablate(CONFIG, ['none', 'se'], 2, out_dir=tmp_path, log=said.append, threads=3)
    assert [r.attention for r in found] == ['none', 'se'] and said[
        0
    ] == '4 runs, 0 of them done before'
    assert 'threads 3' in (tmp_path / 'se' / 'seed1' / 'run.log').read_text()
    found = ablate(CONFIG, ['se', 'gc'], 3, out_dir=tmp_path, jobs=2, log=said.append)
    assert '9 runs, 4 of them done before' in said
    names = {f'{name}/seed{seed}': 1 for name in ('none', 'se', 'gc') for seed in range(3)}
    assert counts(tmp_path) == names
    text = (tmp_path / 'results.md').read_text()
    assert '| se | 51.23 ± 0.97 | 3 | +1.07 |' in text and '| 10 | 2.00 | 3.0 |' in text
    content = json.loads((tmp_path / 'results.json').read_text())
    assert content['metric'] == 'mIoU' and content['sentence'] in text
    assert content['results'][1]['values'] == {'0': 51.0, '1': 52.3, '2': 50.4}
    assert cv2.imread(str(tmp_path / 'pareto.png')).std() > 5


def test_ap_is_in_percent(tmp_path):
    """mmdet gives fractions, of which two digits would say nothing."""
    for seed, value in enumerate([0.367, 0.379]):
        run = Run('none', seed, tmp_path / f'seed{seed}')
        (run.folder / 'metrics').mkdir(parents=True)
        content = dict(metrics={'coco/bbox_mAP': value})
        (run.folder / 'metrics' / 'last.json').write_text(json.dumps(content))
    (found,) = summarise([Run('none', seed, tmp_path / f'seed{seed}') for seed in (0, 1)])
    assert found.values == pytest.approx({0: 36.7, 1: 37.9}) and found.mean == pytest.approx(37.3)


def test_a_block_that_does_not_fit_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_run_all', lambda *args: pytest.fail('something ran'))

    def costs(*args):
        raise UsageError('se does not fit')

    monkeypatch.setattr(module, '_measure_costs', costs)
    with pytest.raises(UsageError, match='se does not fit'):
        ablate(CONFIG, ['se'], 1, out_dir=tmp_path)


def test_costs_are_counted_once_and_timed_together(tmp_path, monkeypatch):
    options = [
        'train_dataloader.dataset.pipeline.3.crop_size=(64, 64)',
        'model.data_preprocessor.size=(64, 64)',
    ]
    first = module._measure_costs(CONFIG, ['none', 'se'], options, tmp_path)
    assert first['se']['parameters'] > first['none']['parameters'] and first['se']['ms'] > 0
    assert module._measure_costs(CONFIG, ['se'], options, tmp_path) == first
    timed = []
    monkeypatch.setattr(
        'mmattn.analysis.ablation.latencies', lambda _, names, **o: timed.append(list(names)) or {}
    )
    both = module._measure_costs(CONFIG, ['none', 'gc'], options, tmp_path)
    assert timed == [['none', 'se', 'gc']] and both['gc']['macs'] > 0  # those of before, too


def test_statistics_are_those_of_scipy(tmp_path):
    runs = [Run(n, s, tmp_path / n / f'seed{s}') for n in VALUES for s in range(4)]
    for run in runs:
        write(run, VALUES[run.attention][run.seed])
    found = {r.attention: r for r in summarise(runs, 'mIoU')}
    p = {n: ttest_rel(VALUES[n], VALUES['none']).pvalue for n in VALUES if n != 'none'}
    for name, value in p.items():
        assert found[name].p == pytest.approx(value)
        assert found[name].difference == pytest.approx(
            sum(VALUES[name]) / 4 - sum(VALUES['none']) / 4
        )
    low, middle, high = sorted(p, key=p.get)  # Holm
    assert found[low].corrected == pytest.approx(min(1, 3 * p[low]))
    assert found[middle].corrected == pytest.approx(min(1, max(3 * p[low], 2 * p[middle])))
    assert found[high].corrected == pytest.approx(min(1, max(2 * p[middle], p[high])))
    assert found['none'].p is None and found['none'].std == pytest.approx(stdev(VALUES['none']))
    said = conclusion(list(found.values()), 'mIoU')
    assert 'se (+1.02) gives more mIoU' in said and 'cbam (-1.95) gives less mIoU' in said
    assert 'gc' not in said and '4 seeds, Holm-corrected for 3 blocks' in said


def test_no_difference_and_no_spread_are_said(tmp_path):
    runs = [Run(n, s, tmp_path / n / f'seed{s}') for n in ('none', 'gc') for s in range(4)]
    for run in runs:
        write(run, VALUES[run.attention][run.seed])
    assert 'No block differs' in conclusion(summarise(runs), 'mIoU')
    one = summarise([run for run in runs if run.seed == 0])
    assert conclusion(one, 'mIoU') == 'With 1 seed nothing can be said about chance.'
    assert '| gc | 50.10 | 1 | +0.10 |  |  |' in list(results_table(one, 'mIoU'))[3]
    with pytest.raises(UsageError, match='--metric PQ was not measured; there are: aAcc, mIoU'):
        summarise(runs, 'PQ')


def test_a_run_that_fails_does_not_stop_the_others(quick, tmp_path, monkeypatch):
    fine = module.run_command

    def command(config, options, run):
        if run.attention == 'se':
            return 'echo "error: out of memory." >&2; exit 6'
        return fine(config, options, run)

    monkeypatch.setattr(module, 'run_command', command)
    with pytest.raises(RunsFailed, match=r'1 of 3 runs failed.*\nse, seed 0: out of memory\. See'):
        ablate(CONFIG, ['se', 'gc'], 1, out_dir=tmp_path, log=lambda text: None)
    text = (tmp_path / 'results.md').read_text()
    assert '| gc |' in text and 'Failed: se, seed 0: out of memory.' in text


def test_an_interruption_ends_the_runs(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'run_command', lambda *args: 'echo $$ > pid; sleep 60')
    started = []
    popen = schedulers.subprocess.Popen
    monkeypatch.setattr(
        schedulers.subprocess,
        'Popen',
        lambda *a, **k: started.append(popen(*a, **k)) or started[-1],
    )

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, 'sleep', interrupt)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ablate(CONFIG, ['se'], 1, out_dir=tmp_path / 'out', jobs=2, log=lambda text: None)
    monkeypatch.undo()
    assert len(started) == 2 and all(process.wait(5) == -15 for process in started)


def test_progress_names_what_runs_and_what_is_left(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_PROGRESS_SECONDS', 0.5)
    fine = module.run_command

    def slow(config, options, run):
        log = f'{run.folder}/2026/vis_data'
        return (
            f'mkdir -p {log}; echo \'{{"step": 75, "loss": 1}}\' > {log}/scalars.json; sleep 2; '
            + fine(config, options, run)
        )

    monkeypatch.setattr(module, 'run_command', slow)
    said = []
    ablate(CONFIG, ['none'], 1, out_dir=tmp_path, log=said.append)
    assert any('min left: none, seed 0 at 75 of ' in text for text in said)


def test_slurm_gets_the_command_with_its_options(quick, tmp_path, monkeypatch):
    fake = tmp_path / 'bin' / 'sbatch'
    fake.parent.mkdir()
    fake.write_text(
        '#!/usr/bin/env python3\n'
        'import subprocess, sys\n'
        f"open({str(tmp_path / 'asked')!r}, 'a').write(' '.join(sys.argv[1:-1]) + '\\n')\n"
        "sys.exit(subprocess.call(['bash', '-c', sys.argv[-1].removeprefix('--wrap=')]))\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv('PATH', f'{fake.parent}{os.pathsep}{os.environ["PATH"]}')
    ablate(
        CONFIG, ['se'], 1, out_dir=tmp_path / 'out', scheduler='slurm',
        scheduler_options='--partition=gpu --gres=gpu:1', log=lambda text: None,
    )  # fmt: skip
    asked = (tmp_path / 'asked').read_text().splitlines()
    assert len(asked) == 2 and '--wait --job-name=none-0' in asked[0]
    assert asked[0].endswith('--partition=gpu --gres=gpu:1')
    assert '| se |' in (tmp_path / 'out' / 'results.md').read_text()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(seeds=0), '--seeds 0'),
        (dict(jobs=0), '--jobs 0'),
        (dict(attention=['sea']), 'sea'),
        (dict(scheduler='slurm'), 'sbatch is not on PATH'),
    ],
)
def test_refused(quick, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(schedulers.shutil, 'which', lambda name: None)
    arguments = dict(attention=['se'], seeds=1) | arguments
    with pytest.raises(UsageError, match=message):
        ablate(CONFIG, out_dir=tmp_path, log=lambda text: None, **arguments)


def test_a_folder_holds_one_recipe(quick, tmp_path):
    ablate(CONFIG, ['se'], 1, out_dir=tmp_path, log=lambda text: None)
    with pytest.raises(UsageError, match='holds runs of another recipe'):
        ablate(CONFIG, ['se'], 1, out_dir=tmp_path, options=['train_cfg.max_iters=7'])


def test_the_front_is_what_none_beats():
    points = dict(a=(1, 5.0), b=(2, 4.0), c=(2, 6.0), d=(3, 6.0), e=(4, 7.0))
    assert pareto(points) == ['a', 'c', 'e']


def test_real_runs(street, tmp_path, monkeypatch):
    """A training and its test, as a user has them, beside one that was there."""
    write(Run('none', 0, tmp_path / 'none' / 'seed0'), 50.0)
    monkeypatch.setattr(
        module, '_measure_costs', lambda config, names, *args: dict.fromkeys(names, COST)
    )
    options = [f'{k}={v}' for k, v in (tiny_options(street) | {'train_cfg.max_iters': 2}).items()]
    found = ablate(CONFIG, ['se'], 1, out_dir=tmp_path, options=options, log=lambda text: None)
    assert [r.attention for r in found] == ['none', 'se']
    record = json.loads(next((tmp_path / 'se' / 'seed0' / 'metrics').glob('*.json')).read_text())
    assert record['checkpoint'] == 'iter_2.pth' and record['metrics']['mIoU'] == found[1].mean
