"""One recipe with one attention block after another, several seeds each, and what came of it."""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from mmattn.config.load import load_config, parse_options
from mmattn.engine.hardware import hardware
from mmattn.errors import MmattnError, UsageError
from mmattn.files import check_writable

from .ablation_plot import plot_pareto
from .cost import latencies, measure_cost

PLAIN = 'none'
_LEVEL = 0.05  # of p, below which a difference is called one
_EVERY = 60  # seconds between lines about progress where there is no terminal
_METRICS = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU')  # the first that was measured counts


class RunsFailed(MmattnError):
    """Some runs of an ablation failed; the others are in the table."""


@dataclass(frozen=True)
class Run:
    """A training and its test.

    Attributes:
        attention: 'none', a block, or several with '+' between them.
        seed: of the training.
        folder: its work dir.
    """

    attention: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f'{self.attention}, seed {self.seed}'

    @property
    def log(self) -> Path:
        return self.folder / 'run.log'

    def metrics(self) -> dict[str, float] | None:
        """What its test measured; None if it has not ended."""
        for path in (self.folder / 'metrics').glob('*.json'):
            with contextlib.suppress(ValueError, KeyError):
                return json.loads(path.read_text(encoding='utf-8'))['metrics']
        return None

    def iteration(self) -> int:
        """How far it is, by its log."""
        files = sorted(self.folder.glob('*/vis_data/scalars.json'))
        if not files:
            return 0
        steps = re.findall(r'"step": (\d+)', files[-1].read_text(encoding='utf-8'))
        return max(map(int, steps), default=0)


@dataclass
class Result:
    """What one block gave.

    Attributes:
        attention: its name.
        values: of the metric, by seed.
        mean, std: over the seeds; std with n - 1, None of one.
        difference: the mean of the paired differences to 'none'; None of 'none' itself.
        p: two-sided, of the paired t-test on these; None where there are fewer than two pairs.
        corrected: p after Holm's correction for all the blocks that were tried.
        cost: `parameters`, `macs` and `ms` of the whole network for one image.
    """

    attention: str
    values: dict[int, float]
    mean: float
    std: float | None
    difference: float | None = None
    p: float | None = None
    corrected: float | None = None
    cost: dict[str, float] = field(default_factory=dict)


def ablate(
    config: str | Path,
    attention: list[str],
    seeds: int,
    *,
    out_dir: str | Path,
    jobs: int = 1,
    threads: int | None = None,
    metric: str | None = None,
    scheduler: str = 'local',
    scheduler_options: str = '',
    options: list[str] | None = None,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Train and test a config with each block and each seed, and compare with the plain network.

    A run that has ended is not repeated, one that was stopped goes on, so calling this again after
    an interruption, or with more blocks or seeds, does what is missing. The last checkpoint is
    tested: to choose among several by their test figures would be to choose by luck.

    Args:
        config: a detector or segmentor; blocks go where `--attention` of training puts them.
        attention: names; 'none' is always among them; 'se+gc' for both.
        seeds: 0 to seeds - 1, the same for all blocks.
        out_dir: a folder a run, `results.md`, `results.json`, `pareto.png`.
        jobs: runs at a time.
        threads: of each run on a CPU; None to share the cores.
        metric: of the test; None for mask AP, box AP or mIoU, whichever there is.
        scheduler: 'local'; 'slurm', by sbatch; 'ray', on the cluster that RAY_ADDRESS names.
        scheduler_options: of sbatch, such as '--partition=gpu --gres=gpu:1'; for ray 'num_gpus=1'.
        options: of the config, `key=value`.
        say: called with sentences about what is done.

    Returns:
        a result for each block with at least one ended run, 'none' first.

    Raises:
        UsageError: a name or number that is not allowed; the folder holds runs of another recipe.
        RunsFailed: after all others are done and written.
    """
    names = list(dict.fromkeys([PLAIN, *attention]))
    if seeds < 1 or jobs < 1:
        raise UsageError(f'--seeds {seeds} --jobs {jobs}: allowed are numbers from 1.')
    for name in names:
        load_config(config, parse_options(options), attention=name.replace('+', ','))
    out_dir = Path(out_dir)
    check_writable(out_dir, '--out-dir')
    _check_recipe(config, options, out_dir)
    # all blocks of a seed before the next seed, so that a table can be made early
    runs = [
        Run(name, seed, out_dir / name / f'seed{seed}') for seed in range(seeds) for name in names
    ]
    missing = [run for run in runs if run.metrics() is None]
    say(f'{len(runs)} runs, {len(runs) - len(missing)} of them done before')
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    start = _scheduler(scheduler, scheduler_options, threads)
    command = partial(_command, config, options or [])
    length = _iterations(load_config(config, parse_options(options)))
    # first: a block that does not fit its place is told before hours of the others
    say(f'costs of {", ".join(names)}: counted and timed')
    costs = _costs(config, names, options, out_dir)
    failed = _work(missing, command, start, jobs, length, say)
    results = compare(runs, metric, costs)
    _write(results, failed, config, options, out_dir, metric or _metric(runs))
    if failed:
        every = [f'{run}: {why}' for run, why in failed.items()]
        raise RunsFailed(f'{len(failed)} of {len(runs)} runs failed, the others are done:', every)
    return results


# ---- the runs ----------------------------------------------------------------------------------
def _command(config: str | Path, options: list[str], run: Run) -> str:
    """What a shell runs: the training, then the test of its last checkpoint."""
    root = Path(__file__).resolve().parents[2]
    flags = ['--attention', run.attention.replace('+', ',')] if run.attention != PLAIN else []
    changes = ['--cfg-options', *options] if options else []
    tools = next(t for t in (root / 'tools', root / 'mmattn' / '.mim' / 'tools') if t.is_dir())
    train, test = ([sys.executable, str(tools / f'{name}.py')] for name in ('train', 'test'))
    own = [str(config), *flags, '--work-dir', str(run.folder)]
    train += [*own, '--seed', str(run.seed), '--no-validate', '--resume', 'auto', *changes]
    test += [str(config), *flags, '--work-dir', str(run.folder), *changes]
    folder = shlex.quote(str(run.folder))
    last = f'{folder}/"$(basename "$(cat {folder}/last_checkpoint)")"'
    # the checkpoint stands behind the config
    tested = f'{shlex.join(test[:3])} {last} {shlex.join(test[3:])}'
    return f'{shlex.join(train)} && {tested}'


Start = Callable[[Run, str], 'subprocess.Popen']


def _scheduler(name: str, options: str, threads: int) -> Start:
    """A function that starts the command of a run and returns a process to wait for."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads))

    def local(run: Run, command: str) -> subprocess.Popen:
        return _started(run, ['bash', '-c', command], environment)

    def slurm(run: Run, command: str) -> subprocess.Popen:
        job = ['sbatch', '--wait', f'--job-name={run.attention}-{run.seed}']
        job += [f'--output={run.log}', '--open-mode=append', *shlex.split(options)]
        return _started(run, [*job, f'--wrap={command}'], dict(os.environ))

    def ray(run: Run, command: str) -> subprocess.Popen:
        resources = dict(pair.split('=', 1) for pair in shlex.split(options)) or dict(num_cpus=1)
        worker = [sys.executable, '-m', 'mmattn.analysis.ray_job', json.dumps(resources), command]
        return _started(run, worker, dict(os.environ))

    if name == 'slurm' and not shutil.which('sbatch'):
        raise UsageError('--scheduler slurm: sbatch is not on PATH. Run this where Slurm is.')
    if name == 'ray':
        try:
            import ray as _  # noqa: F401
        except ImportError as error:
            raise UsageError('--scheduler ray: ray is not installed: pip install ray.') from error
    return dict(local=local, slurm=slurm, ray=ray)[name]


def _started(run: Run, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.log.open('a') as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip


def _work(
    missing: list[Run],
    command: Callable[[Run], str],
    start: Start,
    jobs: int,
    length: int,
    say: Callable[[str], None],
) -> dict[Run, str]:
    """Run all, some at a time; why those failed that did."""
    waiting, running, failed = list(missing), {}, {}
    begun, said, done = time.monotonic(), time.monotonic(), 0
    before = {run: run.iteration() for run in missing}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = start(run, command(run))
                say(f'started {run}: {run.log}')
            time.sleep(0.2)
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                done += 1
                if process.returncode or run.metrics() is None:
                    failed[run] = _why(run, process.returncode)
                    say(f'failed {run}: {failed[run]}')
                else:
                    say(f'done {run}, {done} of {len(missing)}')
            if running and time.monotonic() - said > _EVERY:
                said = time.monotonic()
                made = {run: min(run.iteration(), length) for run in running}
                share = done + sum((made[run] - before[run]) / length for run in running)
                left = ''
                if share:
                    minutes = (said - begun) / share * (len(missing) - share) / 60
                    left = f', about {minutes:.0f} min left'
                at = '; '.join(f'{run} at {step} of {length}' for run, step in made.items())
                say(f'{done} of {len(missing)} runs{left}: {at}')
    finally:
        for process in running.values():  # interrupted
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 15)
    return failed


def _why(run: Run, code: int) -> str:
    lines = run.log.read_text(encoding='utf-8', errors='replace').splitlines()
    said = next((line for line in reversed(lines) if line.startswith('error: ')), '')
    return f'{said.removeprefix("error: ") or f"exit code {code}"} See {run.log}.'


def _iterations(cfg) -> int:
    loop = cfg.train_cfg
    return loop.get('max_iters') or loop.get('max_epochs') or 1


def _check_recipe(config: str | Path, options: list[str] | None, out_dir: Path) -> None:
    """Runs of one folder have one recipe."""
    text = load_config(config, parse_options(options)).pretty_text
    recipe = dict(config=Path(config).name, sha256=hashlib.sha256(text.encode()).hexdigest())
    path = out_dir / 'recipe.json'
    if not path.is_file():
        path.write_text(json.dumps(recipe), encoding='utf-8')
    elif json.loads(path.read_text(encoding='utf-8')) != recipe:
        raise UsageError(
            f'{out_dir} holds runs of another recipe: config or --cfg-options differ. Choose '
            'another --out-dir.'
        )


def _costs(
    config: str | Path, names: list[str], options: list[str] | None, out_dir: Path
) -> dict[str, dict]:
    """Of one image, by name; kept in a file. Times of all are measured in turn, so together."""
    path = out_dir / 'costs.json'
    known = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    if set(names) <= set(known):
        return known
    for name in names:
        if name not in known:
            found = measure_cost(
                config, attention=name.replace('+', ','), latency=False, options=options
            )
            row, size = found.rows[0], list(found.size)
            known[name] = dict(parameters=row.parameters, macs=row.macs, size=size)
    for name, ms in latencies(config, known, options=options).items():
        known[name]['ms'] = ms
    path.write_text(json.dumps(known, indent=1), encoding='utf-8')
    return known


# ---- what came of it ---------------------------------------------------------------------------
def compare(
    runs: list[Run], metric: str | None = None, costs: dict[str, dict] | None = None
) -> list[Result]:
    """Mean, spread and difference to 'none' of every block of which runs have ended; AP in %.

    Raises:
        UsageError: the metric was not measured.
    """
    measured = {run: found for run in runs if (found := run.metrics()) is not None}
    if not measured:
        return []
    metric = metric or _metric(runs)
    for found in measured.values():
        if metric not in found:
            raise UsageError(f'--metric {metric} was not measured; there are: {", ".join(found)}.')
    unit = 100 if metric.startswith('coco/') else 1  # mmdet's are fractions, mmseg's in %
    values: dict[str, dict[int, float]] = {}
    for run, found in measured.items():
        values.setdefault(run.attention, {})[run.seed] = unit * found[metric]
    results = [_result(name, found, values.get(PLAIN, {})) for name, found in values.items()]
    tested = sorted((r for r in results if r.p is not None), key=lambda r: r.p)
    most = 0.0
    for index, result in enumerate(tested):  # Holm: the smallest p counts times all, and so on
        most = max(most, min(1.0, result.p * (len(tested) - index)))
        result.corrected = most
    for result in results:
        result.cost = (costs or {}).get(result.attention, {})
    return sorted(results, key=lambda r: (r.attention != PLAIN, -r.mean))


def _result(name: str, values: dict[int, float], plain: dict[int, float]) -> Result:
    from scipy.stats import ttest_rel

    found = list(values.values())
    mean = sum(found) / len(found)
    std = (sum((v - mean) ** 2 for v in found) / (len(found) - 1)) ** 0.5 if found[1:] else None
    result = Result(name, values, mean, std)
    pairs = [(values[seed], plain[seed]) for seed in values if seed in plain]
    if name == PLAIN or not pairs:
        return result
    differences = [a - b for a, b in pairs]
    result.difference = sum(differences) / len(differences)
    if len(set(differences)) > 1:
        result.p = float(ttest_rel(*zip(*pairs, strict=True)).pvalue)
    return result


def _metric(runs: list[Run]) -> str:
    measured = next((found for run in runs if (found := run.metrics())), {})
    return next((name for name in _METRICS if name in measured), next(iter(measured), ''))


def sentence(results: list[Result], metric: str) -> str:
    """What follows from the table, and no more."""
    tried = [r for r in results if r.attention != PLAIN]
    pairs = min((len(r.values) for r in results), default=0)
    if not tried:
        return 'Nothing was compared.'
    if all(r.p is None for r in tried):
        return f'With {pairs} seed nothing can be said about chance.'
    better = [r for r in tried if (r.corrected or 1) < _LEVEL and r.difference > 0]
    worse = [r for r in tried if (r.corrected or 1) < _LEVEL and r.difference < 0]
    test = f'paired t-test over {pairs} seeds, Holm-corrected for {len(tried)} blocks, p < {_LEVEL}'
    parts = []
    for word, found in ('more', better), ('less', worse):
        if found:
            names = ', '.join(f'{r.attention} ({r.difference:+.2f})' for r in found)
            parts.append(f'{names} gives {word} {metric} than the plain network ({test}).')
    if not parts:
        return f'No block differs from the plain network in {metric} by more than chance ({test}).'
    return ' '.join(parts)


def table(results: list[Result], metric: str) -> Iterator[str]:
    """The results in Markdown."""
    yield (
        f'| attention | {metric}, mean ± std | seeds | difference | p | p, corrected | parameters '
        '| GMACs | ms |'
    )
    yield '|---|---:|---:|---:|---:|---:|---:|---:|---:|'
    for r in results:
        spread = '' if r.std is None else f' ± {r.std:.2f}'
        cells = [r.attention, f'{r.mean:.2f}{spread}', str(len(r.values))]
        cells.append('' if r.difference is None else f'{r.difference:+.2f}')
        cells += ['' if p is None else f'{p:.3f}' for p in (r.p, r.corrected)]
        if r.cost:
            cells += [f'{r.cost["parameters"]:,}', f'{r.cost["macs"] / 1e9:.2f}']
            cells.append(f'{r.cost["ms"]:.1f}' if r.cost.get('ms') else '')
        else:
            cells += ['', '', '']
        yield f'| {" | ".join(cells)} |'


def _write(results, failed, config, options, out_dir: Path, metric: str) -> None:
    if not results:
        return
    said = sentence(results, metric)
    about = f'{Path(config).stem}, the last checkpoint of each run, on {hardware()}.'
    if options:
        about += f' With `--cfg-options {" ".join(options)}`.'
    lost = [f'Failed: {run}: {why}' for run, why in failed.items()]
    text = '\n'.join(
        [f'# {Path(config).stem}', '', *table(results, metric), '', said, about, *lost]
    )
    (out_dir / 'results.md').write_text(text + '\n', encoding='utf-8')
    content = dict(
        config=Path(config).name, metric=metric, options=options or [], sentence=said,
        results=[asdict(r) for r in results], failed={str(run): why for run, why in failed.items()},
    )  # fmt: skip
    (out_dir / 'results.json').write_text(json.dumps(content, indent=1), encoding='utf-8')
    plot_pareto(results, metric, Path(config).stem, out_dir / 'pareto.png')
