"""Tuning: trainings with settings that Optuna chooses, of which the best is found.

Each trial is a training in a folder of its own. A process holds the lock of the trial that it runs;
the system releases it when the process ends, in whatever way. So a trial that is marked as running
and whose lock is free was interrupted, and the next process goes on with it.
"""

import contextlib
import fcntl
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch

from mmattn.compat import is_installed, missing_module_error
from mmattn.config.load import load_config, parse_options
from mmattn.engine.hooks.checkpoint import CheckpointHook
from mmattn.engine.run_config import run_name
from mmattn.engine.train import TrainOptions, train
from mmattn.errors import Exit, Stopped, Terminated, UsageError, explain
from mmattn.files import check_writable

from .ablation import RunsFailed
from .recipe import recipe_of
from .tuning_hook import STOPPED_EARLY, MetricMissing, TrialHook
from .tuning_results import TrialResult, best_command, ranked, result_of, write_results
from .tuning_space import Range, check_space, parse_space, split_values

if TYPE_CHECKING:
    from optuna import Study, Trial

_OF_TRIAL = (Exit.USAGE, Exit.NONFINITE, Exit.MEMORY)  # failures that the settings can cause
_SECONDS = 60  # that a process waits for another one to finish writing to SQLite
_LOCK, _TRIAL_LOCK = 'study.lock', 'trial.lock'


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Options of `tune`, and flags of `tools/tune.py`.

    Attributes:
        work_dir: folder for the study and its trials.
        trials: number of trials in all, those of earlier calls included.
        metric: name of the metric; None for `save_best` of the config, or else the first one.
        storage: URL of a data base for the study, see SQLAlchemy; None for `study.db`, of SQLite,
            in the work dir.
        seed: seed for the settings that are drawn.
        startup_trials: number of trials before others are stopped early.
        attention: blocks that all trials have.
        data: name of the data set of all trials instead of the config's, see `add_data_set`.
        cfg_options: changes to the config of all trials, `key=value`.
        rehearsal, skip_data_check: as in `TrainOptions`.
    """

    work_dir: str | Path
    trials: int = 20
    metric: str | None = None
    storage: str | None = None
    seed: int = 0
    startup_trials: int = 5
    attention: str | None = None
    data: str | None = None
    cfg_options: list[str] = field(default_factory=list)
    rehearsal: bool = True
    skip_data_check: bool = False


def tune(
    config: str | Path,
    space: list[str],
    options: TuneOptions,
    log: Callable[[str], None] = print,
) -> list[TrialResult]:
    """Train with the settings that Optuna chooses, until the study has its trials.

    Calling this again goes on with a study; several processes can share one.

    Args:
        config: config with a validation.
        space: config keys with their ranges, `KEY=RANGE`, see `parse_space`.
        options: see `TuneOptions`.
        log: called with a line of progress.

    Returns:
        all trials, best first.

    Raises:
        UsageError: a key, range or number is wrong; the study is of another recipe.
        RunsFailed: no trial is complete, and all are done.
        Stopped, Terminated: by a signal; the next call goes on with the trial.
        ImportError: Optuna is not installed.
    """
    if not is_installed('optuna'):
        raise missing_module_error('mmattn tune', 'optuna')
    if options.trials < 1 or options.startup_trials < 0:
        raise UsageError(
            f'--trials {options.trials} --startup-trials {options.startup_trials}: allowed are '
            'numbers from 1, and from 0.'
        )
    work_dir, ranges = Path(options.work_dir), parse_space(space)
    check_space(config, ranges, options.attention, options.cfg_options, options.data)
    cfg = load_config(config, parse_options(options.cfg_options), data=options.data)
    if not cfg.get('val_cfg'):
        raise UsageError(f'config {cfg.filename} has no val_cfg: trials are judged by validation.')
    metric, maximise = _objective(cfg, options.metric)
    check_writable(work_dir)
    recipe = recipe_of(config, options.cfg_options, options.data)
    recipe |= dict(space=sorted(space), metric=metric, attention=options.attention)
    with _lock(work_dir / _LOCK, wait=True):
        name = run_name(config, options.attention, options.data)
        study = _open_study(name, recipe, options, maximise)
    goal = 'more' if maximise else 'less'
    log(f'{metric or "the first metric of the validation"}: {goal} is better; {len(ranges)} keys')
    tuning = _Tuning(study, config, ranges, metric, maximise, options, log)
    try:
        while claimed := tuning.claim():
            trial, lock = claimed
            with lock:
                tuning.run(trial)
    finally:
        tuning.write()
    results = tuning.results()
    failed = [r for r in results if r.state == 'failed']
    if len(failed) == len(results):
        reasons = [f'trial_{r.number}: {r.reason}' for r in failed]
        raise RunsFailed(f'all {len(failed)} trials failed:', reasons)
    return results


def _objective(cfg: dict, metric: str | None) -> tuple[str | None, bool]:
    """Name of the metric, None for the first one of the validation; and whether more is better."""
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    best, rule = hook.get('save_best'), hook.get('rule')
    best, rule = (x[0] if isinstance(x, list | tuple) and x else x for x in (best, rule))
    if metric is None and best != 'auto':
        metric = best
    if rule is None or (metric != best and best != 'auto'):
        less = any(key in (metric or '').lower() for key in CheckpointHook._default_less_keys)
        rule = 'less' if less else 'greater'
    return metric, rule == 'greater'


def _open_study(name: str, recipe: dict, options: TuneOptions, maximise: bool) -> 'Study':
    """Make or open the study.

    Raises:
        UsageError: the data base cannot be opened, or holds a study of another recipe.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = options.storage or f'sqlite:///{(Path(options.work_dir) / "study.db").resolve()}'
    arguments = dict(connect_args=dict(timeout=_SECONDS)) if url.startswith('sqlite:') else {}
    try:
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(url, engine_kwargs=arguments),
            study_name=name,
            direction='maximize' if maximise else 'minimize',
            pruner=optuna.pruners.MedianPruner(n_startup_trials=options.startup_trials),
            load_if_exists=True,
        )
    except Exception as error:  # a driver raises anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f'--storage: the study cannot be opened: {lines[0]}') from error
    known = study.user_attrs.get('recipe')
    if known is None:
        study.set_user_attr('recipe', recipe)
    elif known != recipe:
        changed = ', '.join(key for key in recipe if known.get(key) != recipe[key])
        raise UsageError(
            f'{options.work_dir} holds trials of another recipe: it differs in {changed}. Choose '
            'another --work-dir or --storage.'
        )
    return study


@contextlib.contextmanager
def _lock(path: Path, wait: bool = False) -> Iterator[IO]:
    """Hold the lock of a file, which processes that this one forks do not share.

    Raises:
        OSError: another process holds it, and this one is not to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a') as file:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file


@dataclass
class _Tuning:
    """A study, and this process's part in it; the arguments are those of `tune`.

    Attributes:
        study: of Optuna.
        ranges: the space.
        metric: name of the metric; None for the first one of the validation.
        maximise: whether more of it is better.
    """

    study: 'Study'
    config: str | Path
    ranges: list[Range]
    metric: str | None
    maximise: bool
    options: TuneOptions
    log: Callable[[str], None]

    def folder(self, number: int) -> Path:
        """The work dir of a trial."""
        return Path(self.options.work_dir) / f'trial_{number}'

    def results(self) -> list[TrialResult]:
        """All trials of the study, best first."""
        trials = self.study.get_trials(deepcopy=False)
        return ranked([result_of(trial, self.maximise) for trial in trials], self.maximise)

    def claim(self) -> tuple['Trial', contextlib.ExitStack] | None:
        """A trial to run, interrupted or new, and its lock; None if none is left.

        The values drawn depend on the seed and on the number of the trial, not on interruptions.
        """
        from optuna.samplers import TPESampler
        from optuna.trial import Trial, TrialState

        study, seed = self.study, self.options.seed
        lock = _lock(Path(self.options.work_dir) / _LOCK, wait=True)
        with lock, contextlib.ExitStack() as stack:
            trials = study.get_trials(deepcopy=False)
            for frozen in trials:
                path = self.folder(frozen.number) / _TRIAL_LOCK
                if frozen.state != TrialState.RUNNING or not path.exists():
                    continue  # done, or running where this work dir is not
                with contextlib.suppress(BlockingIOError, PermissionError):
                    stack.enter_context(_lock(path))
                    study.sampler = TPESampler(seed=seed + frozen.number)
                    return Trial(study, frozen._trial_id), stack.pop_all()
            if len(trials) >= self.options.trials:
                return None
            study.sampler = TPESampler(seed=seed + len(trials))
            trial = study.ask()
            stack.enter_context(_lock(self.folder(trial.number) / _TRIAL_LOCK))
            self.values(trial)
            return trial, stack.pop_all()

    def values(self, trial: 'Trial') -> dict[str, str]:
        """Key -> value of a trial, as on a command line; drawn once."""
        return {item.key: item.suggest(trial) for item in self.ranges}

    def run(self, trial: 'Trial') -> None:
        """Train, or go on with an interrupted training, and record how it ended."""
        from optuna.trial import TrialState

        name = f'trial_{trial.number}'
        said = f'[{trial.number + 1}/{self.options.trials}] {name}'
        values = self.values(trial)
        self.log(f'{said}: {", ".join(f"{key}={text}" for key, text in values.items())}')
        hook, reason = TrialHook(trial, self.metric), ''
        try:
            if not trial.user_attrs.get(STOPPED_EARLY):
                train(self.config, self.training(trial.number, values, hook))
        except (Stopped, Terminated) as error:
            text = str(error.args[0]).partition(' Run again')[0]
            raise type(error)(f'{name}: {text} The same command goes on with it.') from error
        except Exception as error:
            known = explain(error)
            if isinstance(error, MetricMissing) or not known or known[0] not in _OF_TRIAL:
                raise
            reason = known[1]
        _release_memory()
        if hook.metric:
            self.study.set_user_attr('metric', hook.metric)
        metric = hook.metric or self.metric or 'metric'
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        result = result_of(frozen, self.maximise)
        if not reason and result.value is None:
            reason = f'no validation gave a finite {metric}.'
        if reason:
            trial.set_user_attr('reason', reason)
            self.study.tell(trial, state=TrialState.FAIL)
            self.log(f'{said} failed: {reason}')
        elif frozen.user_attrs.get(STOPPED_EARLY):
            self.study.tell(trial, state=TrialState.PRUNED)
            self.log(f'{said} stopped early: {metric} {result.value:.4g}')
        else:
            self.study.tell(trial, result.value)
            self.log(f'{said}: {metric} {result.value:.4g} at step {result.step}')

    def training(self, number: int, values: dict[str, str], hook: TrialHook) -> TrainOptions:
        """The options of the training of a trial."""
        changes, attention = split_values(values, self.options.attention)
        return TrainOptions(
            work_dir=self.folder(number),
            resume='auto',
            attention=attention,
            data=self.options.data,
            cfg_options=[*self.options.cfg_options, *changes],
            hooks=[hook],
            rehearsal=self.options.rehearsal,
            skip_data_check=self.options.skip_data_check,
        )

    def write(self) -> None:
        """Write table and picture into the work dir, and log the table; nothing without a trial."""
        results, options = self.results(), self.options
        if not any(r.value is not None or r.state == 'failed' for r in results):
            return
        command = ''
        if results[0].state == 'complete':
            command = best_command(
                results[0], self.config, options.attention, options.cfg_options, options.data
            )
        metric = self.metric or self.study.user_attrs.get('metric') or 'metric'
        title, folder = f'{Path(self.config).stem}, {len(results)} trials', Path(options.work_dir)
        with _lock(folder / _LOCK, wait=True):
            text = write_results(results, metric, self.maximise, title, command, folder)
        self.log(f'\n{text}')


def _release_memory() -> None:
    """Free what a trial leaves, also on the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
