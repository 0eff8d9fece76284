"""Ablation: what runs, what is compared, and what is said of it."""

import json
import os
import shlex
import signal
import stat
import threading
from statistics import stdev
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.stats import nct, t, ttest_1samp, ttest_ind, ttest_rel

from mmattn.analysis import ablation as module
from mmattn.analysis import ablation_run, schedulers
from mmattn.analysis.ablation import RunsFailed, ablate, ablate_configs
from mmattn.analysis.ablation_plot import pareto
from mmattn.analysis.ablation_results import (
    Ablation,
    compare_blocks,
    compare_configs,
    conclusion,
    read_ablation,
    report,
    results_table,
    summarise,
)
from mmattn.analysis.ablation_run import Run
from mmattn.analysis.ablation_statistics import (
    detectable_difference,
    paired_difference,
    welch_difference,
)
from mmattn.cli.ablate import main
from mmattn.errors import Terminated, UsageError
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
    assert '| se | 51.23 ± 0.97 | 48.82 to 53.65 | 3 | +1.07 | +0.55 to +1.58 |' in text
    assert '| 10 | 2.00 | 3.0 |' in text
    content = json.loads((tmp_path / 'results.json').read_text())
    assert content['metric'] == 'mIoU' and content['sentence'] in text
    assert content['results'][1]['values'] == {'0': 51.0, '1': 52.3, '2': 50.4}
    for name in 'pareto.png', 'differences.png':
        assert cv2.imread(str(tmp_path / name)).std() > 5


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
    blocks = [n for n in VALUES if n != 'none']
    for name in blocks:
        r, values = found[name], VALUES[name]
        paired, welch = (
            ttest_rel(values, VALUES['none']),
            ttest_ind(values, VALUES['none'], equal_var=False),
        )
        for ours, theirs in (r.paired, paired), (r.welch, welch):
            interval = theirs.confidence_interval(0.95)
            assert ours.p == pytest.approx(theirs.pvalue)
            assert ours.interval == pytest.approx((interval.low, interval.high))
            assert ours.value == pytest.approx(sum(values) / 4 - sum(VALUES['none']) / 4)
        interval = ttest_1samp(values, 0).confidence_interval(0.95)
        assert r.interval == pytest.approx((interval.low, interval.high))
        assert r.difference is r.paired and r.detectable == r.paired.detectable(3)
    p = {n: found[n].paired.p for n in blocks}
    low, middle, high = sorted(p, key=p.get)  # Holm
    assert found[low].corrected == pytest.approx(min(1, 3 * p[low]))
    assert found[middle].corrected == pytest.approx(min(1, max(3 * p[low], 2 * p[middle])))
    assert found[high].corrected == pytest.approx(min(1, max(2 * p[middle], p[high])))
    assert found['none'].difference is None
    assert found['none'].std == pytest.approx(stdev(VALUES['none']))
    said = conclusion(Ablation('fcn.py', 'mIoU', list(found.values())))
    assert (
        'se gives 1.02 points more mIoU than the plain network (95 % interval +0.72 to +1.33'
        in said
    )
    assert 'cbam gives 1.95 points less mIoU' in said
    effect = found['gc'].detectable
    assert f'gc: no difference seen; an effect of {effect:.2f} points or more would have' in said
    assert "(Paired t-test over 4 seeds, p < 0.05 after Holm's correction for 3 comparisons" in said


@pytest.mark.parametrize('comparisons', [1, 28])
def test_the_detectable_effect_is_seen_in_four_of_five_simulated_runs(comparisons):
    """The least effect is compared with trainings whose true difference is that effect."""
    seeds, spread, rng = 5, 0.7, np.random.default_rng(0)
    level = 0.05 / comparisons
    effect = detectable_difference(spread / seeds**0.5, seeds - 1, level)
    differences = rng.normal(effect, spread, (40_000, seeds))
    seen = ttest_1samp(differences, 0, axis=1).pvalue < level
    assert abs(seen.mean() - 0.8) < 0.01  # five standard errors
    # of two groups of 50, where Welch's degrees of freedom hardly vary
    error, df = (0.5**2 / 50 + 1.5**2 / 50) ** 0.5, 59.8
    effect = detectable_difference(error, df, level)
    a, b = rng.normal(effect, 0.5, (4000, 50)), rng.normal(0, 1.5, (4000, 50))
    seen = ttest_ind(a, b, axis=1, equal_var=False).pvalue < level
    assert abs(seen.mean() - 0.8) < 0.03


def test_with_two_seeds_and_many_blocks_the_effect_is_large_and_finite():
    """One degree of freedom: t is Cauchy's, whose tail the noncentral distribution must reach."""
    level = 0.05 / 28
    effect = detectable_difference(1.0, 1, level)
    critical = t.isf(level / 2, 1)
    # a Cauchy ratio (z + effect) / |w| beyond the critical value, where z hardly matters
    draws = np.abs(np.random.default_rng(0).normal(size=100_000))
    assert abs((draws < effect / critical).mean() - 0.8) < 0.01


@pytest.mark.parametrize('comparisons', [1, 2, 28])
@pytest.mark.parametrize('seeds', [2, 3, 5, 21])
def test_the_detectable_effect_is_found_for_any_number_of_seeds(seeds, comparisons):
    """Far tails of SciPy's noncentral t are nan for some arguments."""
    level, df = 0.05 / comparisons, seeds - 1
    effect = detectable_difference(1.0, df, level)
    assert nct.sf(t.isf(level / 2, df), df, effect) == pytest.approx(0.8, abs=1e-4)


def test_the_test_that_decides_is_chosen_and_pairs_need_a_common_seed():
    values = dict(none={0: 1.0, 1: 3.0, 2: 5.0}, se={1: 4.1, 2: 6.0}, gc={7: 9.0, 8: 9.5})
    found = {r.attention: r for r in compare_blocks(values, test='welch')}
    assert found['se'].paired.value == pytest.approx(1.05)
    assert found['se'].difference == welch_difference([4.1, 6.0], [1.0, 3.0, 5.0])
    assert found['gc'].paired is None and found['gc'].difference.value == pytest.approx(6.25)
    assert found['se'].corrected >= found['se'].welch.p
    found = {r.attention: r for r in compare_blocks(values)}
    assert found['gc'].difference is None and found['gc'].corrected is None


def test_values_without_spread_have_no_test():
    for difference in (
        paired_difference([1.1, 2.1], [0.1, 1.1]),
        welch_difference([1.0, 1.0], [0.0, 0.0]),
        paired_difference([1.0], [0.0]),
    ):
        assert difference.value == pytest.approx(1) and difference.p is difference.interval is None
        assert difference.detectable() is None
    values = dict(none={0: 0.1, 1: 1.1}, se={0: 1.1, 1: 2.1})
    said = conclusion(Ablation('a.py', 'mIoU', compare_blocks(values)))
    assert said == 'The values have no spread, so nothing can be said about chance.'


def test_no_difference_and_no_spread_are_said(tmp_path):
    runs = [Run(n, s, tmp_path / n / f'seed{s}') for n in ('none', 'gc') for s in range(4)]
    for run in runs:
        write(run, VALUES[run.attention][run.seed])
    said = conclusion(Ablation('fcn.py', 'mIoU', summarise(runs)))
    assert said.startswith('gc: no difference seen; an effect of 0.') and 'points' in said
    one = summarise([run for run in runs if run.seed == 0])
    said = conclusion(Ablation('fcn.py', 'mIoU', one))
    assert said == 'With 1 seed nothing can be said about chance.'
    assert '| gc | 50.10 |  | 1 | +0.10 |  |  |' in list(results_table(one, 'mIoU'))[3]
    with pytest.raises(UsageError, match='--metric PQ was not measured; there are: aAcc, mIoU'):
        summarise(runs, 'PQ')


# ---- tables from files ---------------------------------------------------------------------------
def test_the_table_is_made_again_from_the_file_bit_for_bit(quick, tmp_path, capsys):
    ablate(CONFIG, ['se', 'gc'], 4, out_dir=tmp_path, options=['train_cfg.max_iters=7'])
    text = (tmp_path / 'results.md').read_text()
    capsys.readouterr()
    assert main(['--table', str(tmp_path / 'results.json')]) == 0
    assert capsys.readouterr().out == text + '\n'
    assert 'With `--cfg-options train_cfg.max_iters=7`.' in text
    out = tmp_path / 'again'
    assert main(['--table', str(tmp_path / 'results.json'), '--out-dir', str(out)]) == 0
    for name in 'results.md', 'differences.png', 'pareto.png':
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()
    capsys.readouterr()
    assert main(['--table', str(tmp_path / 'results.json'), '--test', 'welch']) == 0
    assert "(Welch's t-test over 4 seeds" in capsys.readouterr().out


def test_a_table_over_configs_is_corrected_for_all_its_comparisons(tmp_path):
    other = {name: [value / 2 + 10 * (name == 'gc') for value in VALUES[name]] for name in VALUES}
    paths = []
    for name, values in ('a', VALUES), ('b', other):
        seeds = {block: dict(enumerate(row)) for block, row in values.items()}
        if name == 'b':
            del seeds['cbam']
        paths.append(tmp_path / f'{name}.json')
        results = compare_blocks(seeds)
        paths[-1].write_text(Ablation(f'{name}.py', 'mIoU', results).to_json())
    ablations = [read_ablation(path) for path in paths]
    alone = {r.attention: r.corrected for r in ablations[0].results}
    lines = report(ablations).splitlines()
    assert lines[0] == '| attention | a, mIoU | b, mIoU |'
    assert lines[2] == '| none | 50.17 ± 0.62 | 25.09 ± 0.31 |'
    rows = [line.split(' | ') for line in lines[3:6]]
    assert [row[0] for row in rows] == ['| gc', '| se', '| cbam']  # by the mean of the differences
    assert (
        rows[0][2].startswith('**+10.')
        and rows[2][2].strip() == '|'
        and rows[0][1].startswith('+0.02 (')
    )
    assert 'correction for 5 comparisons' in lines[-1] and lines[6].startswith('| would be seen |')
    p = sorted(r.difference.p for a in ablations for r in a.results if r.difference)
    low = next(r for a in ablations for r in a.results if r.difference and r.difference.p == p[0])
    assert low.corrected == pytest.approx(5 * p[0])
    assert all(r.corrected >= alone[r.attention] for r in ablations[0].results if r.difference)
    ablations = [read_ablation(path, test) for path, test in zip(paths, ('paired', 'welch'))]
    with pytest.raises(UsageError, match='different tests decide'):
        report(ablations)


def test_configs_are_compared_with_the_first(quick, tmp_path, capsys):
    configs = [CONFIG, *(CONFIG.with_name(f'{name}_r18_street.py') for name in ('ccnet', 'gcnet'))]
    arguments = ['--between-configs', '--seeds', '3', '--out-dir', str(tmp_path)]
    assert main([*map(str, configs), *arguments]) == 0
    out = capsys.readouterr().out
    text = (tmp_path / 'results.md').read_text()
    assert out.endswith(text + '\n')
    assert text.startswith('# 3 configs\n\n| config | mIoU, mean ± std |')
    rows = text.splitlines()[4:7]
    assert rows[0].startswith('| fcn_r18_street |')
    assert {row.split(' | ')[0] for row in rows[1:]} == {'| ccnet_r18_street', '| gcnet_r18_street'}
    paths = [str(tmp_path / config.stem / 'results.json') for config in configs]
    assert main(['--table', *paths, '--between-configs']) == 0
    assert capsys.readouterr().out == text + '\n'
    assert cv2.imread(str(tmp_path / 'differences.png')).std() > 5


def test_configs_with_values_of_different_kinds_are_not_compared():
    def ablation(name, values, **changes):
        rows = {name: dict(enumerate(row)) for name, row in values.items()}
        return Ablation(f'{name}.py', **dict(metric='mIoU', results=compare_blocks(rows)) | changes)

    first = ablation('a', VALUES)
    better = ablation('b', dict(none=[v + 2 + k / 10 for k, v in enumerate(VALUES['none'])]))
    compared = compare_configs([first, better])
    assert [r.attention for r in compared.results] == ['a', 'b']
    assert compared.results[1].difference.value == pytest.approx(2.15)
    assert 'b gives 2.15 points more mIoU than a (95 % interval' in conclusion(compared)
    with pytest.raises(
        UsageError, match='a and b cannot be compared: metric is mIoU in one and aAcc'
    ):
        compare_configs([first, ablation('b', VALUES, metric='aAcc')])
    with pytest.raises(UsageError, match='options is'):
        compare_configs([first, ablation('b', VALUES, options=['x=1'])])
    with pytest.raises(UsageError, match='b has no runs of the plain network'):
        compare_configs([first, ablation('b', dict(se=[1.0, 2.0]))])


@pytest.mark.parametrize(
    'content, reason',
    [
        (None, 'no such file'),
        ('[1', 'does not hold the results'),
        ('[]', 'does not hold'),
        ('{"results": []}', "'config' is missing"),
        ('{"results": [{"attention": "se", "values": {"a": 1}}]}', 'invalid literal'),
        ('{"results": [{"attention": "se", "values": {}}]}', 'a block has no values'),
    ],
)
def test_files_that_hold_no_results(tmp_path, capsys, content, reason):
    path = tmp_path / 'results.json'
    if content is not None:
        path.write_text(content)
    assert main(['--table', str(path)]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['a.py', '--table', 'b.json'],
        ['a.py'],
        ['a.py', 'b.py', '--between-configs', '--attention', 'se'],
    ],
)
def test_configs_or_results_are_named(arguments, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    assert '--attention' in capsys.readouterr().err


def test_several_configs_have_a_folder_each_and_all_run(quick, tmp_path, monkeypatch, capsys):
    fine = module.run_command

    def command(config, options, run):
        broken = 'ccnet' in str(config) and run.attention == 'se'
        return 'echo "error: no." >&2; exit 3' if broken else fine(config, options, run)

    monkeypatch.setattr(module, 'run_command', command)
    second = CONFIG.with_name('ccnet_r18_street.py')
    arguments = [str(second), str(CONFIG), '--attention', 'se', '--seeds', '2']
    assert main([*arguments, '--out-dir', str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert '2 of 4 runs failed' in said.err and 'ccnet_r18_street, mIoU | fcn_r18_' in said.out
    assert (tmp_path / CONFIG.stem / 'results.md').is_file()
    assert '| attention | ccnet_r18_street, mIoU |' in (tmp_path / 'results.md').read_text()
    with pytest.raises(UsageError, match='another recipe'):  # before anything runs
        folders = {CONFIG: tmp_path / 'new', second: tmp_path / CONFIG.stem}
        ablate_configs(folders, ['se'], 1, log=lambda text: None)
    assert not (tmp_path / 'new' / 'none').exists()


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


def test_sigterm_waits_until_trainings_have_saved(quick, tmp_path, monkeypatch):
    """The command is the real one; python is a script that saves and ends as a training does."""
    python = tmp_path / 'python'
    python.write_text(
        f'#!/bin/sh\ntrap "sleep 0.3; echo saved >> {tmp_path}/log; exit 75" TERM\n'
        f'echo "$1" >> {tmp_path}/log\nwhile :; do sleep 0.05; done\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(ablation_run, 'sys', SimpleNamespace(executable=str(python)))
    monkeypatch.setattr(module, 'run_command', ablation_run.run_command)
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Terminated, match='stopped by SIGTERM'):
        ablate(CONFIG, [], 2, out_dir=tmp_path / 'out', jobs=2, log=lambda text: None)
    lines = (tmp_path / 'log').read_text().splitlines()
    assert lines[2:] == ['saved', 'saved'] and all(line.endswith('train.py') for line in lines[:2])


def test_limits_are_said():
    costs = dict(se=dict(memory=3e9))
    text = module._limits(2, 1, 2, costs)
    assert text.startswith('2 at a time, threads of each: 1, cores: 2; memory for networks: 6.0 GB')
    assert '--jobs times --threads is above 2' in module._limits(2, 2, 2, {})
    assert 'lower --jobs' in module._limits(10**6, 1, 2, costs)


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
