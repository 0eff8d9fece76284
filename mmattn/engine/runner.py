"""The main jobs as functions: train a config, test a checkpoint. The loop itself is mmengine's."""

import contextlib
import copy
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmengine
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import CheckpointHook as EngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as EngineRunner
from mmengine.runner.checkpoint import weights_to_cpu
from mmengine.utils import apply_to
from torch import nn
from torch.utils.data import DataLoader

from mmattn.checkpoint.download import fetch
from mmattn.checkpoint.fingerprint import digest
from mmattn.checkpoint.load import block_forms, load_weights, start_from
from mmattn.checkpoint.manifest import facts_of, manifests, note, remove
from mmattn.checkpoint.plain_values import plain, plain_part
from mmattn.checkpoint.pretrained import pretrained_reported
from mmattn.checkpoint.read import read_checkpoint
from mmattn.checkpoint.write import point_to, write_checkpoint
from mmattn.config import safe_files
from mmattn.config.runner_keys import check_modules
from mmattn.errors import CheckpointError, UsageError
from mmattn.log import warn
from mmattn.text import nearest

from .hooks.checkpoint import adapt_checkpoint_hook
from .hooks.guard import GuardHook
from .hooks.randomness import RandomnessHook
from .nonfinite import detect_nonfinite, raise_nonfinite
from .rehearsal.rehearse import rehearse
from .resume.data import ResumableLoader, prepare_dataloader_cfg
from .resume.loops import LOOPS, EpochLoop
from .resume.rng import accumulated_gradients
from .run_length import (
    check_schedule,
    follow_plan,
    plan_of,
    states_of,
)


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
        safe_files.install()
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
        super().register_hook(
            adapt_checkpoint_hook(hook) if isinstance(hook, Hook) else hook, priority
        )

    @staticmethod
    def build_dataloader(dataloader, seed=None, diff_rank_seed=False) -> DataLoader:
        if isinstance(dataloader, dict):
            dataloader = prepare_dataloader_cfg(dataloader, seed)
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
        batches = ResumableLoader(self.build_dataloader(cfg, self.seed, own), self.data_seed)
        if not batches.deterministic:
            warn(
                f'exactness of a resumed run not guaranteed because {batches.sampler_name} keeps '
                'a state of its own; use InfiniteSampler or DefaultSampler'
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
            detect_nonfinite(made, partial(raise_nonfinite, self))
        return made

    def _build_param_scheduler(self, scheduler, optim_wrapper) -> list:
        found = []
        for index, one in enumerate(scheduler if isinstance(scheduler, list) else [scheduler]):
            try:
                found += super()._build_param_scheduler([one], optim_wrapper)
            except BUILD_ERRORS as error:
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
        rows = self.randomness_hook.rng_states()
        gradients = {}
        if save_optimizer:
            gradients = accumulated_gradients(self.optim_wrapper, unwrapped(self.model))
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
        model = unwrapped(self.model)
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
        if self.rank or getattr(self, 'original', None):  # the original of a scratch runner warns
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
        model = unwrapped(self.model)
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
        with pretrained_reported(unwrapped(self.model), _read_first, self.cfg.get('model')):
            super()._init_model_weights()


def _read_first(address: str) -> dict:
    """Read a checkpoint; of several processes the first downloads it."""
    if '://' in str(address) and get_dist_info()[1] > 1:
        if get_dist_info()[0] == 0:
            fetch(address)
        torch.distributed.barrier()
    return read_checkpoint(address)


def _brief(record: logging.LogRecord) -> bool:
    """The screen is spared the pages that only the log file needs."""
    long = 'System environment', 'Config:', 'Hooks will be executed', 'paramwise_options'
    return not record.getMessage().lstrip('\n- ').startswith(long)


def _name_idle_keys(optim_wrapper: dict, model: nn.Module) -> None:
    """Say which custom keys meet no parameter, by a part of its name: recipes carry such along."""
    keys = (optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    names = [n if '.' in n else f'.{n}' for n, _ in unwrapped(model).named_parameters()]
    for key in keys:
        if not any(key in name for name in names):
            hint = nearest(key, {n.split('.')[0] for n in names})
            warn(
                f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} is in the name of no parameter.'
                f'{hint or f" They are named like {names[0]}."}'
            )


BUILD_ERRORS = TypeError, KeyError, ValueError, AssertionError, AttributeError, ImportError


def _on_cpu(state: dict) -> dict:
    return apply_to(state, lambda x: hasattr(x, 'cpu'), lambda x: x.cpu())


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, in what distributes it or averages over augmentations."""
    if is_model_wrapper(model):
        model = model.module
    return model.module if isinstance(model, BaseTTAModel) else model
