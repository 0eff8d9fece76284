"""The main jobs as functions: train a config, test a checkpoint. The loop itself is mmengine's."""

import contextlib
import copy
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_dist_info
from mmengine.hooks import CheckpointHook as EngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as EngineRunner
from mmengine.runner.checkpoint import weights_to_cpu
from mmengine.utils import apply_to
from torch import nn
from torch.utils.data import DataLoader

from mmattn.checkpoint.fingerprint import check_same, course_of, digest
from mmattn.checkpoint.plain_values import plain, plain_part, without_tensors
from mmattn.checkpoint.pretrained import pretrained_reported
from mmattn.checkpoint.read import (
    block_forms,
    fetch,
    load_weights,
    read_checkpoint,
    sha256,
    start_from,
)
from mmattn.checkpoint.write import (
    check_empty_of_weights,
    facts_of,
    find,
    manifests,
    note,
    point_to,
    remove,
    write_checkpoint,
)
from mmattn.config.load import (
    check_config,
    dataset_leaves,
    load_config,
    parse_options,
    replace_type,
)
from mmattn.config.options import command_line
from mmattn.config.runner_keys import check_modules
from mmattn.config.unused_keys import nearest
from mmattn.datasets.validation import build, check_classes, check_loaders
from mmattn.errors import CheckpointError, DataError, UsageError, WriteError
from mmattn.plugins import report
from mmattn.zoo.catalogue import registered_blocks
from mmattn.zoo.index import resolve

from .class_names import check_checkpoint_classes, check_same_classes
from .distributed import Ranks, meet
from .evaluators import fit_evaluator, folder_of, folders_written, prepare_evaluation, write_to
from .hooks.hooks import adopted
from .rehearsal.rehearse import rehearse
from .resume.data import (
    LOOPS,
    Batches,
    EpochLoop,
    RandomnessHook,
    loader_arguments,
    waiting_gradients,
)
from .run_length import (
    batch_size_of,
    check_batches,
    check_lengths,
    check_schedule,
    follow_plan,
    plan_of,
    states_of,
)
from .signals import GuardHook, Listener, explain, listening, out_of_memory, shortage, warn, watch

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


class Runner(EngineRunner):
    """mmengine's runner, with checkpoints read safely and loaded without silence, written so that
    they survive, and trainings that resume exactly (see `saving`, `exact`, `guard`).

    Attributes:
        start: how `load_checkpoint` takes weights: 'strict', 'plain' (plugins may be new) or
            'partial' (what fits).
        course: what decides the course of the training, see `course_of`.
        guard: watches every step, see `GuardHook`.
        rehearses: `rehearse` a training that is loaded, before its first step.
        resumed: what the manifest of the resumed checkpoint says.
        saved: iteration and file of the last checkpoint to resume from; None before the first.
    """

    start = 'strict'
    rehearses = False
    saved: tuple[int, Path] | None = None

    def __init__(self, *args, **kwargs) -> None:
        self.course: dict[str, str] = {}
        self.resumed: dict = {}
        self.randomness_hook, self.guard = RandomnessHook(), GuardHook()
        super().__init__(*args, **kwargs)

    @property
    def trains(self) -> bool:
        """Whether its training loop is built; a test leaves that of its config alone."""
        return isinstance(self._train_loop, BaseLoop)

    @property
    def data_seed(self) -> int:
        """The seed that all processes share."""
        own = self._randomness_cfg.get('diff_rank_seed', False)
        return self.seed - (self.rank if own else 0)

    @property
    def global_batch(self) -> int:
        loader = self.train_dataloader
        return (loader.batch_size or loader.batch_sampler.batch_size) * self.world_size

    def dump_config(self) -> None:
        """Write the config as it runs into the work dir, to begin or to resume the run with."""
        cfg = self.cfg
        if cfg.get('resume'):  # of this start alone
            self.cfg = copy.deepcopy(cfg)
            self.cfg.resume, self.cfg.load_from = False, None
        try:
            super().dump_config()
        finally:
            self.cfg = cfg

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        check_modules(self.cfg, model)
        return super().wrap_model(model_wrapper_cfg, model)

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        self.register_hook(self.randomness_hook)
        self.register_hook(self.guard)

    def register_hook(self, hook: Hook | dict, priority=None) -> None:
        if isinstance(hook, dict):
            own = hook.pop('priority', None)
            hook, priority = HOOKS.build(hook), own if priority is None else priority
        super().register_hook(adopted(hook) if isinstance(hook, Hook) else hook, priority)

    @staticmethod
    def build_dataloader(dataloader, seed=None, diff_rank_seed=False) -> DataLoader:
        if isinstance(dataloader, dict):
            dataloader = loader_arguments(dataloader, seed)
        return EngineRunner.build_dataloader(dataloader, seed, diff_rank_seed)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        if isinstance(loop, BaseLoop):
            return loop
        kind = loop.get('type') or ('Epoch' if loop['by_epoch'] else 'Iter') + 'BasedTrainLoop'
        if kind.split('.')[-1] not in LOOPS:
            warn(f'exactness of a resumed run not guaranteed because {kind} is not a loop of ours')
            return super().build_train_loop(loop)
        cfg = self._train_dataloader
        own = self._randomness_cfg.get('diff_rank_seed', False)
        batches = Batches(self.build_dataloader(cfg, self.seed, own), self.data_seed)
        if not batches.exact:
            warn(
                f'exactness of a resumed run not guaranteed because {batches.kind} keeps a state '
                'of its own; use InfiniteSampler or DefaultSampler'
            )
        loop = {k: v for k, v in loop.items() if k not in ('type', 'by_epoch')}
        self._train_dataloader = batches.loader
        try:
            built = super().build_train_loop(dict(loop, type=LOOPS[kind.split('.')[-1]]))
        finally:
            self._train_dataloader = cfg
        built.batches = batches
        return built

    def build_optim_wrapper(self, optim_wrapper):
        if isinstance(optim_wrapper, dict):
            _name_idle_keys(optim_wrapper, self.model)
        made = super().build_optim_wrapper(optim_wrapper)
        if isinstance(made, OptimWrapperDict):
            raise UsageError(
                f'optim_wrapper makes {len(made)} optimizers: numbers that are not finite are '
                'looked for in one. Use one, with groups of parameters by `paramwise_cfg`.'
            )
        if made is not optim_wrapper and isinstance(made, OptimWrapper):
            watch(made, partial(explain, self))
        return made

    def _build_param_scheduler(self, scheduler, optim_wrapper) -> list:
        found = []
        for index, one in enumerate(scheduler if isinstance(scheduler, list) else [scheduler]):
            try:
                found += super()._build_param_scheduler([one], optim_wrapper)
            except _SAID as error:
                loop = self.train_loop
                raise UsageError(
                    f'config key param_scheduler[{index}] ({one["type"]}): {error}. The run has '
                    f'{loop.max_epochs} epochs, {loop.max_iters} steps.'
                ) from error
        return found

    def load_or_resume(self) -> None:
        super().load_or_resume()
        if not self.rehearses:
            return
        if self.trains:
            check_schedule(self)
        rehearse(self)

    def resume(self, filename: str, *args, **kwargs) -> None:
        plan = plan_of(self.param_schedulers) if isinstance(self.param_schedulers, list) else None
        super().resume(filename, *args, **kwargs)
        if plan:
            follow_plan(self, plan)
        self.resumed = facts_of(filename)

    def note_validated(self) -> None:
        """Have the manifest of the last checkpoint say that its validation has ended."""
        if self.rank == 0 and self.saved and self.saved[0] == self.iter:
            note(self.saved[1], validated=self.iter)

    def catch_up(self) -> None:
        """Validate if a resumed run was killed between a save and the validation behind it."""
        loop, val = self.train_loop, self.val_loop
        if val is None or not self.resumed or self.resumed.get('validated') == loop.iter:
            return
        if isinstance(loop, EpochLoop):
            at, most = loop.epoch, loop.max_epochs
            due = loop.iter == at * len(loop.dataloader)
        else:
            at, most, due = loop.iter, loop.max_iters, True
        if due and at >= loop.val_begin and (at % loop.val_interval == 0 or at == most):
            self.logger.info('the run stopped before its last validation ended: validating now')
            val.run()

    def save_now(self, step: int) -> Path:
        """Save what an iteration led to, unless it is saved; the next save removes it."""
        if self.saved is None or self.saved[0] != step:
            hooks = [h for h in self.hooks if isinstance(h, EngineCheckpointHook)]
            folder = next((h.out_dir for h in hooks if h.out_dir), self.work_dir)
            meta = dict(epoch=self.epoch, iter=step, temporary=True)
            self.save_checkpoint(folder, f'iter_{step}.pth', meta=meta)
        return self.saved[1]

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """mmengine's content, and the randomness, written by `saving`; all processes call it.

        It is plain, and says what attention the network has; the pointer of its folder names the
        last one that can be resumed.
        """
        rows = self.randomness_hook.rows()
        gradients = {}
        if save_optimizer:
            gradients = waiting_gradients(self.optim_wrapper, _network(self.model))
        meta = dict(meta or {})
        meta.setdefault('epoch', self.epoch + by_epoch)
        meta.setdefault('iter', self.iter + (not by_epoch))
        path = Path(out_dir) / filename
        if save_optimizer:
            self.saved = meta['iter'], path
        if self.rank:
            return
        facts = dict(
            iter=meta['iter'],
            epoch=meta['epoch'],
            **self.circumstances(),
            config=digest(self.course),
            resumable=save_optimizer,
            temporary=meta.pop('temporary', False),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self._content(meta, save_optimizer, save_param_scheduler)
        if save_optimizer:
            content['rng'] = rows
        if gradients:
            content['gradients'] = gradients
        self.call_hook('before_save_checkpoint', checkpoint=content)
        self.write_checkpoint(path, content, facts)
        if save_optimizer:
            point_to(path, Path(self.work_dir))
            for other, known in manifests(path.parent):
                if known.get('temporary') and other.name != filename:
                    remove(other)

    def _content(
        self,
        meta: dict,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        left: list[str] | None = None,
    ) -> dict:
        """What a checkpoint holds: `meta` completed, weights, and the state of the training.

        Facts of the data set without a plain form are left out, and their keys put into `left`.

        mmengine's message hub has objects, too: smoothing windows of the log (`HistoryBuffer`), of
        no use to a resumed run.
        """
        model = _network(self.model)
        meta.update(
            cfg=self.cfg.pretty_text,
            experiment_name=self.experiment_name,
            time=time.strftime('%Y%m%d_%H%M%S'),
            mmengine_version=mmengine.__version__,
            course=dict(self.course),
            command=getattr(self, 'train_command', ''),
            blocks=block_forms(model),
            **self.circumstances(),
        )
        if self.cfg.get('attention'):
            meta['attention'] = json.loads(json.dumps(self.cfg.attention))
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            meta['dataset_meta'] = plain_part(
                self.train_dataloader.dataset.metainfo, 'meta.dataset_meta', left
            )
        hub = self.message_hub.state_dict()
        info = {k: v for k, v in hub['runtime_info'].items() if k != 'dataset_meta'}
        info = plain_part(_on_cpu(info), 'message_hub')
        keys = {k: v for k, v in hub['resumed_keys'].items() if k in info}
        content = dict(
            meta=meta,
            state_dict=weights_to_cpu(model.state_dict()),
            message_hub=dict(log_scalars={}, runtime_info=info, resumed_keys=keys),
        )
        if save_optimizer:
            content['optimizer'] = _on_cpu(self.optim_wrapper.state_dict())
        if save_param_scheduler and self.param_schedulers is not None:
            content['param_schedulers'] = states_of(self.param_schedulers)
        return content

    def check_savable(self) -> None:
        """Refuse before the first step what no checkpoint could hold; say what will not be in it.

        Raises:
            NotPlain: a hook puts it there.
        """
        if self.rank or getattr(self, 'real', None):  # a stand-in has said nothing of its own
            return
        left: list[str] = []
        content = self._content(dict(epoch=self.epoch, iter=self.iter), left=left)
        # a hook may want what there is behind a step alone
        with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
            self.call_hook('before_save_checkpoint', checkpoint=content)
        plain(content)
        for key in left:
            warn(f'{key} is not in the checkpoints of this run: no text, number or list of them')

    def write_checkpoint(self, path: Path, content: dict, facts: dict) -> None:
        """Write a checkpoint with its manifest."""
        write_checkpoint(path, content, facts)

    def circumstances(self) -> dict:
        """What exactness depends on beside the config."""
        return dict(
            world=self.world_size,
            batch=self.global_batch // self.world_size,
            seed=self.data_seed,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
        )

    def load_checkpoint(self, filename: str, map_location: str | Callable = 'cpu', **_) -> dict:
        checkpoint = _read_first(filename)
        if self._resume:
            self._check_resumable(checkpoint, filename)
            self._same_facts(checkpoint.get('meta', {}))
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = _network(self.model)
        forms = checkpoint.get('meta', {}).get('blocks')
        weights, said = checkpoint['state_dict'], f'loaded {filename}'
        if self.start == 'strict':
            load_weights(model, weights, filename, forms)
        else:
            partial = self.start == 'partial'
            said = start_from(model, weights, filename, forms=forms, partial=partial)
        self._has_loaded = True
        self.logger.info(said)
        return checkpoint

    def _same_facts(self, meta: dict) -> None:
        """Have mmengine compare the data set's facts in the form that was saved."""
        own = getattr(self.train_dataloader.dataset, 'metainfo', {})
        if meta.get('dataset_meta') == plain_part(own, ''):
            meta['dataset_meta'] = own

    def _check_resumable(self, checkpoint: dict, filename: str) -> None:
        meta = checkpoint.get('meta', {})
        if not {'iter', 'epoch'} <= set(meta) or 'message_hub' not in checkpoint:
            raise CheckpointError(
                f'checkpoint {filename} holds no state of a training to resume. Start from its '
                'weights with --init-from.'
            )
        meta.pop('config', None)  # mmengine would evaluate it as Python
        now = self.circumstances()
        why = [
            f'{k} {meta.get(k, "unknown")} -> {now[k]}'
            for k in ('threads', 'torch')
            if meta.get(k) != now[k]
        ]
        why += [f'it holds no {k}' for k in ('optimizer', 'rng') if k not in checkpoint]
        if why:
            warn(f'exactness not guaranteed because {", ".join(why)}')
        meta['seed'] = self._randomness_cfg.get('seed')  # else mmengine seeds anew

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_brief)
        return logger

    def _init_model_weights(self) -> None:
        """Initialise as mmengine does, but read pretrained weights safely and say what fitted."""
        with pretrained_reported(_network(self.model), _read_first, self.cfg.get('model')):
            super()._init_model_weights()


def _read_first(address: str) -> dict:
    """Read a checkpoint; of several processes the first downloads it."""
    if '://' in str(address) and get_dist_info()[1] > 1:
        if get_dist_info()[0] == 0:
            fetch(address)
        torch.distributed.barrier()
    return read_checkpoint(address)


def train(
    config: str | Path,
    *,
    work_dir: str | Path | None = None,
    resume: str | None = None,
    init_from: str | None = None,
    attention: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    options: dict | list[str] | None = None,
    launcher: str = 'none',
    seed: int | None = None,
    validate: bool = True,
    allow_topology_change: bool = False,
    allow_config_change: bool = False,
    rehearsal: bool = True,
    skip_data_check: bool = False,
    hooks: Iterable[Hook] = (),
) -> Path:
    """Train a config.

    A run that is resumed gives bit for bit what it would have given without a stop, on as many
    processes and threads. SIGTERM, SIGUSR1 and Ctrl-C end it behind the step, with a checkpoint.

    Args:
        config: its path.
        work_dir: where logs and checkpoints go, default `work_dirs/<config name>`.
        resume: a checkpoint to go on from, 'latest' for the one in `work_dir`, 'auto' for the same
            or a fresh start if there is none.
        init_from: weights to start from, as far as they fit.
        attention: blocks to add, see `add_attention`; a resumed run has those it began with.
        amp: mixed precision, GPU only.
        auto_scale_lr: scale the learning rate by the batch size over the config's base batch size.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        seed: overrides the config's.
        validate: off skips validation during training.
        allow_topology_change: resume with another number of processes, inexactly.
        allow_config_change: resume with another config, inexactly.
        rehearsal: try a small step and the validation of an image first, see `rehearse`.
        skip_data_check: do not look at the files of the data first.
        hooks: beside those of the config.

    Returns:
        the work dir.

    Raises:
        MmattnError: of the kind that fits; what is wrong with config, data or checkpoint is
            raised before a file is written.
        Stopped: by a signal; a checkpoint is saved.
        Terminated: by a signal before the first step.
    """
    with listening() as listener:
        allowed = dict(topology=allow_topology_change, config=allow_config_change)
        checkpoint = None if resume in ('latest', 'auto') else resume
        with _together(launcher, config, options, attention, checkpoint, work_dir) as ranks:
            if ranks:
                listener.check_others = ranks.raise_if_over
            return _train(
                config, work_dir, resume, init_from, attention, amp, auto_scale_lr, options,
                launcher, seed, validate, allowed, rehearsal, skip_data_check, hooks, listener,
                ranks,
            )  # fmt: skip


def _train(
    config, work_dir, resume, init_from, attention, amp, auto_scale_lr, options, launcher, seed,
    validate, allowed: dict, rehearsal: bool, skip_data_check: bool, hooks: Iterable[Hook],
    listener: Listener, ranks: Ranks | None,
) -> Path:  # fmt: skip
    options = parse_options(options)
    if resume and init_from:
        raise UsageError('--resume and --init-from exclude each other: the first has all weights.')
    found = None
    if resume:
        folder = _folder(config, load_config(config, options, attention), work_dir)
        found = find(folder) if resume in ('latest', 'auto') else Path(resume)
        if found is None and resume == 'latest':
            raise CheckpointError(
                f'nothing to resume in {folder}: no valid checkpoint. Use --resume auto to start '
                'fresh.'
            )
        if found is None:
            check_empty_of_weights(folder)
            print_log(f'no checkpoint in {folder}, starting at 0')
    cfg = _prepare(config, options, launcher, work_dir, attention, found)
    if cfg.get('resume') and not resume and not init_from:  # as a config of the packages may say
        return _train(
            config, work_dir, cfg.get('load_from') or 'auto', init_from, attention, amp,
            auto_scale_lr, options, launcher, seed, validate, allowed, rehearsal, skip_data_check,
            hooks, listener, ranks,
        )  # fmt: skip
    check_lengths(cfg)
    batch = batch_size_of(cfg.train_dataloader)
    meta = read_checkpoint(found).get('meta', {}) if found else {}
    if seed is None:
        seed = meta.get('seed')
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
    if amp:
        _use_amp(cfg)
    validate = validate and cfg.get('val_cfg') is not None
    if not validate:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    work_dir = Path(cfg.work_dir)
    cfg.resume = bool(found)
    if found:
        cfg.load_from = str(found)
    if init_from:
        cfg.load_from = str(init_from)
    course = course_of(cfg)
    if found:
        why = check_same(meta, course, _world(cfg), batch, **allowed)
        if why:
            warn(f'exactness not guaranteed because {"; ".join(why)}')
        if not allowed['config']:
            check_checkpoint_classes(cfg, dict(_class_counts(cfg.model, 'model')), meta, found)
    check_writable(work_dir)
    for key, folder in folders_written(cfg, 'val') if validate else ():
        check_writable(folder, key)
    if _is_main():
        check_loaders(cfg, 'train', *(['val'] if validate else []), skip=skip_data_check)
    _scale_lr(cfg, auto_scale_lr)
    runner = _build(cfg, 'train_loop', 'val_loop') if validate else _build(cfg, 'train_loop')
    check_batches(runner)
    if validate:
        prepare_evaluation(runner, 'val')
    runner.course, runner.guard.listener, runner.rehearses = course, listener, rehearsal
    for hook in hooks:
        runner.register_hook(hook)
    if ranks:
        ranks.runner = runner
    if not cfg.resume:
        runner.start = 'partial' if init_from else 'plain'
    runner.train_command = _command(config, options, seed, amp, auto_scale_lr, attention, init_from)
    _say_blocks(runner.model, cfg)
    batches = getattr(runner.train_loop, 'batches', None)
    try:
        with _building(cfg, until=lambda: listener.started):
            _run(runner.train)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise shortage(runner, error) from error
        known = batches and batches.explained(error)
        if known:
            raise known from error
        raise
    finally:
        if batches:
            batches.close()
    return work_dir


def test(
    config: str | Path,
    checkpoint: str | Path | None,
    *,
    work_dir: str | Path | None = None,
    out: str | Path | None = None,
    show_dir: str | Path | None = None,
    attention: str | None = None,
    options: dict | list[str] | None = None,
    launcher: str = 'none',
    tta: bool = False,
    skip_data_check: bool = False,
    rehearsal: bool = True,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data of a config.

    Args:
        config: its path.
        checkpoint: a `.pth` or `.safetensors` file, or what `mmattn.zoo.load_model` takes; None
            evaluates the network as it starts.
        work_dir: where log and `metrics/<checkpoint>.json` go (with `tta`, `<checkpoint>_tta`),
            default `work_dirs/<config name>`.
        out: a `.pkl` to dump all predictions into, or a folder: for label maps as PNG (see
            `IoUMetric`), or `results.bbox.json` and `results.segm.json` in COCO's format.
        show_dir: a folder for pictures of image, truth and prediction side by side.
        attention: blocks to add; by default those that the checkpoint was trained with.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        tta: average a segmentor over the scales and flips of the config's `tta_pipeline`, or of
            `mmattn.models.seg_tta.tta_pipeline`, by its `tta_model`, or `mmattn.SegTTAModel`.
        skip_data_check: do not look at the files of the data first.
        rehearsal: try one image with its metrics and pictures first, see `rehearse`.

    Returns:
        the metrics, in percent; nan for a class that is absent, null in the JSON.

    Raises:
        MmattnError: of the kind that fits.
    """
    if checkpoint is not None:
        config, checkpoint = resolve(config, checkpoint, attention)
    with (
        listening(training=False) as listener,
        _together(
            launcher, config, options, attention, checkpoint, work_dir, training=False
        ) as ranks,
    ):
        if ranks:
            listener.check_others = ranks.raise_if_over
        return _test(
            config, checkpoint, work_dir, out, show_dir, attention, options, launcher, tta,
            skip_data_check, rehearsal,
        )  # fmt: skip


def _test(
    config, checkpoint, work_dir, out, show_dir, attention, options, launcher, tta,
    skip_data_check, rehearsal,
) -> dict[str, float]:  # fmt: skip
    options = parse_options(options)
    cfg = _prepare(config, options, launcher, work_dir, attention, checkpoint)
    work_dir = Path(cfg.work_dir)
    cfg.work_dir = str(work_dir / 'test')
    cfg.resume, cfg.load_from = False, str(checkpoint) if checkpoint else None
    if checkpoint:
        _drop_pretrained(cfg.model)
        heads = dict(_class_counts(cfg.model, 'model'))
        meta = read_checkpoint(checkpoint).get('meta', {})
        check_checkpoint_classes(cfg, heads, meta, checkpoint)
    if tta:
        _use_tta(cfg)
    if out:
        write_to(cfg, out)
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [h for h in hooks if h['type'] != 'mmattn.CurvesHook']
    if show_dir:
        cfg.custom_hooks.append(dict(type='mmattn.ComparisonHook', out_dir=str(show_dir)))
    check_writable(work_dir)
    if show_dir:
        check_writable(Path(show_dir), '--show-dir')
    if out:
        check_writable(folder_of(out), '--out')
    for key, folder in folders_written(cfg, 'test'):
        check_writable(folder, key)
    if _is_main():
        check_loaders(cfg, 'test', skip=skip_data_check)
    runner = _build(cfg, 'test_loop')
    prepare_evaluation(runner, 'test')
    runner.rehearses = rehearsal
    if not checkpoint:
        runner._init_model_weights()
    metrics = plain(_run(runner.test), 'metrics')  # of any evaluator: numbers of NumPy, too
    if _is_main() and checkpoint:
        record = dict(
            config=Path(config).name,
            checkpoint=Path(checkpoint).name,
            sha256=sha256(checkpoint),
            metrics={k: None if v != v else v for k, v in metrics.items()},  # JSON has no nan
            command=f'python tools/test.py {_relative(config)} {_relative(checkpoint)}'
            + (f' --attention {attention}' if attention else '')
            + (' --tta' if tta else '')
            + _flags(options),
            hardware=hardware(),
            torch=torch.__version__,
            date=time.strftime('%Y-%m-%d'),
        )
        path = work_dir / 'metrics' / f'{Path(checkpoint).stem}{"_tta" if tta else ""}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + '\n')
    return metrics


def build_model(
    config: str | Path,
    checkpoint: str | Path,
    options: dict | list[str] | None = None,
    attention: str | None = None,
    device: str | None = None,
) -> tuple[nn.Module, Config]:
    """The network of a config with the weights of a checkpoint, in eval mode.

    On a device, 'cpu' or 'cuda:0', or on the best.
    """
    model, cfg = build_network(config, options, attention, checkpoint)
    content = read_checkpoint(checkpoint)
    meta = content.get('meta', {})
    load_weights(model, content['state_dict'], checkpoint, meta.get('blocks'))
    heads = dict(_class_counts(cfg.model, 'model'))
    check_checkpoint_classes(cfg, heads, meta, checkpoint, renames=True)
    model.cfg = cfg
    return model.to(device or get_device()).eval(), cfg


def build_network(
    config: str | Path,
    options: dict | list[str] | None = None,
    attention: str | None = None,
    checkpoint: str | Path | None = None,
) -> tuple[nn.Module, Config]:
    """The network of a config, with weights that mean nothing yet.

    It has the blocks that the checkpoint, if any, was trained with.
    """
    from mmengine.registry import MODELS

    options = parse_options(options)
    cfg = _prepare(config, options, 'none', None, attention, checkpoint, renames=True)
    _drop_pretrained(cfg.model)
    _fit_norm(cfg)
    with _building(cfg):
        return MODELS.build(cfg.model), cfg


def dataset_meta(cfg: Config) -> dict:
    """Classes, palette and whatever else the test data of a config say about themselves."""
    found = build(next(dataset_leaves(cfg.test_dataloader['dataset']))).metainfo
    return without_tensors(plain_part(found, 'metainfo'))


def hardware() -> str:
    """What this run computes on, e.g. 'AMD EPYC, 2 cores, 2 threads'."""
    if torch.cuda.is_available():
        return f'{torch.cuda.device_count()} x {torch.cuda.get_device_name()}'
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((x.split(':', 1)[1].strip() for x in lines if x.startswith('model name')), name)
    return f'{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'


def _brief(record: logging.LogRecord) -> bool:
    """The screen is spared the pages that only the log file needs."""
    long = 'System environment', 'Config:', 'Hooks will be executed', 'paramwise_options'
    return not record.getMessage().lstrip('\n- ').startswith(long)


# ---- the steps ---------------------------------------------------------------------------------
@contextlib.contextmanager
def _together(
    launcher, config, options, attention, checkpoint, work_dir, *, training: bool = True
) -> Iterator[Ranks | None]:
    """The processes of a run, which leave a word on how it ends; None if there is but this one."""
    if launcher == 'none':
        yield None
        return
    part = '' if training else 'test'
    name = run_name(config, attention)  # until the config is read, if it can be
    ranks = Ranks(Path(work_dir or Path('work_dirs') / name) / part, training)
    with ranks.reported():
        cfg = load_config(config, parse_options(options), _attention(attention, checkpoint))
        ranks.folder = _folder(config, cfg, work_dir) / part
        ranks.join(launcher, cfg.get('env_cfg', {}).get('dist_cfg', {}))
        yield ranks


def _folder(config, cfg: Config, work_dir) -> Path:
    """Where a run writes."""
    names = cfg.attention['names'] if cfg.get('attention') else None
    return Path(work_dir or cfg.get('work_dir') or Path('work_dirs') / run_name(config, names))


def _prepare(
    config, options: dict, launcher: str, work_dir, attention=None, checkpoint=None, renames=False
) -> Config:
    """Read and check a config, with the blocks of a checkpoint, and fit it to this machine."""
    cfg = load_config(config, options, _attention(attention, checkpoint))
    check_config(cfg, {key.split('.')[0] for key in options})
    heads = dict(_class_counts(cfg.model, 'model'))
    for name in _LOADERS:
        if cfg.get(name):
            check_classes(cfg[name]['dataset'], heads, f'{name}.dataset')
    check_same_classes(cfg, heads, renames)
    for part in 'val', 'test':
        fit_evaluator(cfg, part)
    cfg.work_dir = str(_folder(config, cfg, work_dir))
    # mmengine keeps a logger and a visualizer per name and process, with the first one's folder
    cfg.experiment_name = f'{Path(config).stem}_{time.time_ns()}'
    if 'visualizer' in cfg:
        cfg.visualizer['name'] = cfg.experiment_name
    cfg.launcher = launcher
    cfg.setdefault('resume', False)
    cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))  # as mmengine has them
    _use_launcher(cfg, launcher)
    return cfg


def _attention(given: str | None, checkpoint: str | Path | None) -> str | dict | None:
    """What `--attention` says, or else what the checkpoint was trained with."""
    recorded = None
    if checkpoint:
        recorded = read_checkpoint(checkpoint).get('meta', {}).get('attention')
    if given and recorded and recorded['names'] != given:
        raise UsageError(
            f'--attention {given}: checkpoint {checkpoint} was trained with {recorded["names"]}. '
            'Leave --attention out.'
        )
    return recorded or given


def _class_counts(cfg: dict, where: str) -> Iterator[tuple[str, int]]:
    """Config key and value of every `num_classes` of the heads."""
    for name, part in cfg.items():
        if isinstance(part, dict):
            yield from _class_counts(part, f'{where}.{name}')
        elif isinstance(part, list | tuple):
            parts = {f'{name}[{i}]': one for i, one in enumerate(part) if isinstance(one, dict)}
            yield from _class_counts(parts, where)
        elif name == 'num_classes' and 'head' in where:
            yield f'{where}.{name}', part


def run_name(config: str | Path, attention: str | None) -> str:
    """What a run is called: the config's name, and the blocks added to it."""
    names = [] if attention in (None, 'none') else attention.split(',')
    return '_'.join([Path(config).stem, *names])


def _say_blocks(model: nn.Module, cfg: Config) -> None:
    """Log what blocks the network has; raises what they say against the size of the images."""
    if not _is_main():
        return
    with _building(cfg):
        found = report(model.module if is_model_wrapper(model) else model, image_size(cfg))
    if found.rows:
        lines, warnings = str(found).split('\nwarning: ', 1)[0], found.warnings
        print_log(f'attention:\n{lines}', logger='current')
        for text in warnings:
            print_log(text, logger='current', level=logging.WARNING)


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the images in training: the crop, or else the scale, padded."""
    size, divisor = (512, 512), cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    for step in next(dataset_leaves(cfg.train_dataloader['dataset'])).get('pipeline', []):
        if isinstance(step.get('scale'), list | tuple) and isinstance(step['scale'][0], int):
            size = step['scale'][::-1]
        size = step.get('crop_size', size)
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def _fit_norm(cfg: Config) -> int:
    """SyncBN wants several GPUs; elsewhere plain BN, of the same weights, takes its place."""
    if torch.cuda.is_available() and cfg.launcher != 'none':
        return 0
    cfg.pop('sync_bn', None)
    return sum(replace_type(cfg.model, name, 'BN') for name in ('SyncBN', 'MMSyncBN'))


def _use_launcher(cfg: Config, launcher: str) -> None:
    """mmengine's distributed start-up wants CUDA; the process group is ours, on CPUs by gloo."""
    if launcher == 'none':
        return
    meet(launcher, cfg.env_cfg.get('dist_cfg', {}))
    if torch.cuda.is_available():
        return
    cfg.env_cfg['dist_cfg'] = dict(backend='gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )


def _use_amp(cfg: Config) -> None:
    if not torch.cuda.is_available():
        raise UsageError('--amp needs a GPU: mixed precision is not faster on a CPU. Leave it out.')
    cfg.optim_wrapper['type'] = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _use_tta(cfg: Config) -> None:
    """Wrap the network in one that averages, and have each test image read in several ways."""
    if 'decode_head' not in cfg.model:
        raise UsageError(f'--tta averages maps of classes: {cfg.filename} is no segmentor.')
    from mmattn.models.seg_tta import tta_pipeline

    for leaf in dataset_leaves(cfg.test_dataloader['dataset']):
        try:
            leaf['pipeline'] = cfg.get('tta_pipeline') or tta_pipeline(leaf['pipeline'])
        except ValueError as error:
            raise UsageError(f'--tta: {error}.') from error
    cfg.model = dict(cfg.get('tta_model') or dict(type='mmattn.SegTTAModel'), module=cfg.model)


def _name_idle_keys(optim_wrapper: dict, model: nn.Module) -> None:
    """Say which custom keys meet no parameter, by a part of its name: recipes carry such along."""
    keys = (optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    names = [n if '.' in n else f'.{n}' for n, _ in _network(model).named_parameters()]
    for key in keys:
        if not any(key in name for name in names):
            hint = nearest(key, {n.split('.')[0] for n in names})
            warn(
                f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} is in the name of no parameter.'
                f'{hint or f" They are named like {names[0]}."}'
            )


def _scale_lr(cfg: Config, enable: bool) -> None:
    base = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    if enable and not base:
        raise UsageError(
            '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size. Set it.'
        )
    batch = batch_size_of(cfg.train_dataloader) * _world(cfg)
    if enable:
        cfg.auto_scale_lr['enable'] = True
    elif base and base != batch:
        print_log(
            f'the batch is {batch}, the learning rate of the config is for {base}: '
            'consider --auto-scale-lr',
            level=logging.WARNING,
        )


def _world(cfg: Config) -> int:
    """How many processes train."""
    counts = dict(pytorch='WORLD_SIZE', slurm='SLURM_NTASKS', mpi='OMPI_COMM_WORLD_SIZE')
    return int(os.environ.get(counts.get(cfg.launcher, ''), 1))


def check_writable(folder: Path, flag: str = '--work-dir') -> None:
    """Make a folder and see that it can be written to; `flag` is what chose it.

    Raises:
        WriteError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WriteError(
            f'cannot write to {folder}: {reason}. Choose another folder with {flag}.'
        ) from error


def check_empty(folder: Path) -> None:
    """Refuse what an earlier run left: it would be taken for this one's."""
    check_writable(folder, '--out-dir')
    if any(folder.iterdir()):
        raise UsageError(f'--out-dir {folder} is not empty. Choose a new folder, or empty it.')


def _build(cfg: Config, *loops: str) -> Runner:
    """A runner with what it otherwise builds on first use: the data of its loops, the optimizer."""
    count = _fit_norm(cfg)
    if count and _is_main():
        print_log(f'SyncBN needs several GPUs: BN in {count} places of the config instead')
    with _building(cfg):
        runner = Runner.from_cfg(cfg)
        for loop in loops:
            getattr(runner, loop)
        if 'train_loop' in loops:
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


_SAID = TypeError, KeyError, ValueError, AssertionError, AttributeError, ImportError
_NOT_SAID = torch.AcceleratorError, torch.distributed.DistError  # of a device, of other processes


@contextlib.contextmanager
def _building(cfg: Config, until: Callable[[], bool] = lambda: False):
    """What a class says against its arguments is the config's error, until something is true."""
    try:
        yield
    except (*_SAID, RuntimeError, FileNotFoundError) as error:
        if until() or out_of_memory(error) or isinstance(error, _NOT_SAID):
            raise
        whole = isinstance(error, OSError) or not error.args  # a KeyError would be in quotes
        text = str(error if whole else error.args[0]).strip() or type(error).__name__
        if text.startswith('Cannot infer the rule'):
            text += (
                " Write rule='greater', or 'less', next to the save_best or monitor that names it."
            )
        raise UsageError(f'config {cfg.filename} cannot be built: {text}') from error


def _run(job: Callable):
    """Run a loop; what a data worker or a block raised comes back as the user's error it is."""
    try:
        return job()
    except (AssertionError, AttributeError, ValueError, OSError, RuntimeError) as error:
        text = str(error)
        if 'failed to load image' in text or 'cannot identify image' in text:
            raise DataError(text.strip().splitlines()[-1].split(': ', 1)[-1]) from error
        if isinstance(error, ValueError) and text.split(': ')[0] in registered_blocks():
            raise UsageError(f'{text}.') from error  # such as a batch too small for its norm
        raise


def _on_cpu(state: dict) -> dict:
    return apply_to(state, lambda x: hasattr(x, 'cpu'), lambda x: x.cpu())


def _network(model: nn.Module) -> nn.Module:
    """The network itself, in what distributes it or averages over augmentations."""
    if is_model_wrapper(model):
        model = model.module
    return model.module if isinstance(model, BaseTTAModel) else model


def _drop_pretrained(cfg: dict) -> None:
    """Fetch no weights that a checkpoint is about to replace."""
    for value in cfg.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, dict):
                _drop_pretrained(item)
    if isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg'].get('type') == 'Pretrained':
        cfg['init_cfg'] = None


def _is_main() -> bool:
    return int(os.environ.get('RANK', 0)) == 0 and get_dist_info()[0] == 0


def _relative(path: str | Path) -> str:
    """A path as one would type it in the project's folder; never one of this machine."""
    path = Path(path)
    if path.is_absolute():
        here = Path.cwd()
        return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
    return str(path)


def _flags(options: dict) -> str:
    given = command_line(options, _relative)
    return f' --cfg-options {given}' if given else ''


def _command(config, options, seed, amp, auto_scale_lr, attention, init_from) -> str:
    command = f'python tools/train.py {_relative(config)}'
    command += f' --attention {attention}' if attention else ''
    command += f' --init-from {_relative(init_from)}' if init_from else ''
    command += f' --seed {seed}' if seed is not None else ''
    command += ' --amp' if amp else ''
    command += ' --auto-scale-lr' if auto_scale_lr else ''
    return command + _flags(options)
