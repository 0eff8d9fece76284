"""mmengine's runner with safe and atomic checkpoints, and trainings that resume bit-exactly."""

import contextlib
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mmengine
import torch
from mmengine.hooks import CheckpointHook as EngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as EngineRunner
from mmengine.runner.checkpoint import weights_to_cpu
from mmengine.utils import apply_to
from torch.utils.data import DataLoader

from mmattn.checkpoint.fingerprint import fingerprint_hash
from mmattn.checkpoint.load import block_forms, load_initial_weights, load_weights
from mmattn.checkpoint.manifest import (
    facts_of,
    list_checkpoints,
    remove_checkpoint,
    update_manifest,
)
from mmattn.checkpoint.plain_values import plain_items, to_plain
from mmattn.checkpoint.pretrained import report_pretrained
from mmattn.checkpoint.read import Checkpoint
from mmattn.checkpoint.write import write_checkpoint, write_pointer
from mmattn.config import safe_files
from mmattn.errors import CheckpointError, UsageError
from mmattn.log import shorten_console, warn
from mmattn.models.memory_format import contiguous_kernels
from mmattn.models.parts import use_float_outputs

from .distributed import read_after_download
from .execution import NetworkOptions, unsteady_kernels
from .history import Histories
from .hooks.checkpoint import adapt_checkpoint_hook
from .hooks.early_stopping import early_stopping_states, restore_early_stopping
from .hooks.guard import GuardHook
from .hooks.randomness import RandomnessHook
from .hooks.runtime_info import adapt_runtime_info_hook
from .model_wrappers import unwrap_model
from .nonfinite import NonFiniteDetector, raise_nonfinite
from .optimizer import warn_unused_custom_keys, with_fused_optimizer
from .rehearsal.rehearse import rehearse
from .resume.data import ResumableLoader, prepare_dataloader_cfg
from .resume.loops import LOOPS, EpochLoop
from .resume.rng import accumulated_gradients
from .run_config import added_parts
from .run_length import check_schedule, follow_plan, plan_of, states_of


class Runner(NetworkOptions, EngineRunner):
    """mmengine's runner, whose checkpoints are read safely, loaded with every mismatch reported and
    written atomically, and whose trainings resume bit-exactly (see `mmattn.checkpoint` and
    `mmattn.engine.resume`).

    Attributes:
        checkpoint: the open checkpoint that `load_checkpoint` takes if asked for its path; None
            when it is loaded, or has to be read.
        load_mode: how `load_checkpoint` loads weights: 'strict', 'plain' (plugins may be new) or
            'partial' (the tensors that fit).
        fingerprint: config values that affect the training, see `config_fingerprint`.
        guard: the hook that watches every step, see `GuardHook`.
        rehearsal: call `rehearse` after loading, before the first step.
        resumed_facts: the manifest of the resumed checkpoint.
        last_saved: iteration and file of the last resumable checkpoint; None before the first.
        nonfinite: what looks for numbers that are not finite; None without an optimizer.
    """

    checkpoint: Checkpoint | None = None
    load_mode = 'strict'
    rehearsal = False
    last_saved: tuple[int, Path] | None = None
    nonfinite: NonFiniteDetector | None = None

    def __init__(self, *args, **kwargs) -> None:
        safe_files.install()
        self.fingerprint: dict[str, str] = {}
        self.resumed_facts: dict = {}
        self.randomness_hook, self.guard = RandomnessHook(), GuardHook()
        super().__init__(*args, **kwargs)

    @property
    def has_train_loop(self) -> bool:
        """Whether the training loop is built, which a test does not do."""
        return isinstance(self._train_loop, BaseLoop)

    @property
    def data_seed(self) -> int:
        """The seed that all processes share."""
        per_rank = self._randomness_cfg.get('diff_rank_seed', False)
        return self.seed - (self.rank if per_rank else 0)

    @property
    def global_batch_size(self) -> int:
        """Images of one step in all processes."""
        loader = self.train_dataloader
        return (loader.batch_size or loader.batch_sampler.batch_size) * self.world_size

    def dump_config(self) -> None:
        """Write the config into the work dir, in a form that can start or resume the run."""
        cfg = self.cfg
        if cfg.get('resume'):  # holds for this start only
            self.cfg = copy.deepcopy(cfg)
            self.cfg.resume, self.cfg.load_from = False, None
        try:
            super().dump_config()
        finally:
            self.cfg = cfg

    def register_hooks(self, default_hooks=None, custom_hooks=None) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        self.register_hook(self.randomness_hook)
        self.register_hook(self.guard)

    def register_hook(self, hook: Hook | dict, priority=None) -> None:
        if isinstance(hook, dict):
            configured = hook.pop('priority', None)
            hook, priority = HOOKS.build(hook), configured if priority is None else priority
        if isinstance(hook, Hook):
            hook = adapt_runtime_info_hook(adapt_checkpoint_hook(hook))
        super().register_hook(hook, priority)

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
            warn(
                f'exactness of a resumed run not guaranteed because {kind} is not a loop of mmattn'
            )
            return super().build_train_loop(loop)
        cfg = self._train_dataloader
        per_rank = self._randomness_cfg.get('diff_rank_seed', False)
        batches = ResumableLoader(self.build_dataloader(cfg, self.seed, per_rank), self.data_seed)
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
            network = unwrap_model(self.model)
            warn_unused_custom_keys(optim_wrapper, network)
            optim_wrapper = with_fused_optimizer(optim_wrapper, next(network.parameters()).device)
        built = super().build_optim_wrapper(optim_wrapper)
        if isinstance(built, OptimWrapperDict):
            raise UsageError(
                f'optim_wrapper makes {len(built)} optimizers: numbers that are not finite are '
                'looked for in one. Use one, with groups of parameters by `paramwise_cfg`.'
            )
        if getattr(built, 'cast_dtype', None) is torch.bfloat16:
            use_float_outputs(unwrap_model(self.model))
        if built is not optim_wrapper and isinstance(built, OptimWrapper):
            self.nonfinite = NonFiniteDetector(built, partial(raise_nonfinite, self))
        return built

    def _build_param_scheduler(self, scheduler, optim_wrapper) -> list:
        schedulers = []
        for index, cfg in enumerate(scheduler if isinstance(scheduler, list) else [scheduler]):
            try:
                schedulers += super()._build_param_scheduler([cfg], optim_wrapper)
            except BUILD_ERRORS as error:
                loop = self.train_loop
                raise UsageError(
                    f'config key param_scheduler[{index}] ({cfg["type"]}): {error}. The run has '
                    f'{loop.max_epochs} epochs, {loop.max_iters} steps.'
                ) from error
        return schedulers

    def load_or_resume(self) -> None:
        super().load_or_resume()
        self.message_hub._log_scalars = Histories(self.message_hub.log_scalars)
        self.prepare_network()
        if self.rehearsal and self.has_train_loop:
            check_schedule(self)
        if self.rehearsal:
            rehearse(self)
        self.compile_network()

    def resume(self, filename: str, *args, **kwargs) -> None:
        plan = plan_of(self.param_schedulers) if isinstance(self.param_schedulers, list) else None
        super().resume(filename, *args, **kwargs)
        if plan:
            follow_plan(self, plan)
        self.resumed_facts = facts_of(filename)
        restore_early_stopping(self, self.resumed_facts.get('early_stopping', []))

    def mark_validated(self) -> None:
        """Record in the manifest of the last checkpoint that its validation has ended."""
        if self.rank == 0 and self.last_saved and self.last_saved[0] == self.iter:
            states = early_stopping_states(self.hooks)
            update_manifest(self.last_saved[1], validated=self.iter, early_stopping=states)

    def run_missed_validation(self) -> None:
        """Run the validation that was due when the resumed run was killed after a save."""
        loop, val = self.train_loop, self.val_loop
        facts = self.resumed_facts
        if val is None or not facts or facts.get('validated') == loop.iter:
            return
        if isinstance(loop, EpochLoop):
            current, last = loop.epoch, loop.max_epochs
            due = loop.iter == current * len(loop.dataloader)
        else:
            current, last, due = loop.iter, loop.max_iters, True
        due = due and (current % loop.val_interval == 0 or current == last)
        if due and current >= loop.val_begin:
            self.logger.info('the run stopped before its last validation ended: validating now')
            val.run()

    def save_now(self, step: int) -> Path:
        """Save the state after an iteration, unless it is saved; the next save removes the file."""
        if self.last_saved is None or self.last_saved[0] != step:
            hooks = [h for h in self.hooks if isinstance(h, EngineCheckpointHook)]
            folder = next((h.out_dir for h in hooks if h.out_dir), self.work_dir)
            meta = dict(epoch=self.epoch, iter=step, temporary=True)
            self.save_checkpoint(folder, f'iter_{step}.pth', meta=meta)
        return self.last_saved[1]

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
        """Save mmengine's content and the state of random generators; called by all processes.

        The content holds tensors and plain values alone. The pointer of the folder names the last
        checkpoint that can be resumed.
        """
        if self.nonfinite:
            self.nonfinite.flush()
        rng_states = self.randomness_hook.rng_states()
        gradients = {}
        if save_optimizer:
            gradients = accumulated_gradients(self.optim_wrapper, unwrap_model(self.model))
        meta = dict(meta or {})
        meta.setdefault('epoch', self.epoch + by_epoch)
        meta.setdefault('iter', self.iter + (not by_epoch))
        path = Path(out_dir) / filename
        if save_optimizer:
            self.last_saved = meta['iter'], path
        if self.rank:
            return
        facts = dict(
            iter=meta['iter'],
            epoch=meta['epoch'],
            **self.environment(),
            config=fingerprint_hash(self.fingerprint),
            resumable=save_optimizer,
            temporary=meta.pop('temporary', False),
            early_stopping=early_stopping_states(self.hooks),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self._content(meta, save_optimizer, save_param_scheduler)
        if save_optimizer:
            content['rng'] = rng_states
        if gradients:
            content['gradients'] = gradients
        self.call_hook('before_save_checkpoint', checkpoint=content)
        self.write_checkpoint(path, content, facts)
        if save_optimizer:
            write_pointer(path, Path(self.work_dir))
            for other, manifest in list_checkpoints(path.parent):
                if manifest.get('temporary') and other.name != filename:
                    remove_checkpoint(other)

    def _content(
        self,
        meta: dict,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        left_out: list[str] | None = None,
    ) -> dict:
        """The content of a checkpoint: `meta`, completed, weights, and the state of the training.

        Facts of the data set without a plain form are left out, and their keys added to `left_out`.
        So are the objects of mmengine's message hub: smoothing windows of the log
        (`HistoryBuffer`), which a resumed run does not use.
        """
        model = unwrap_model(self.model)
        meta.update(
            cfg=self.cfg.pretty_text,
            experiment_name=self.experiment_name,
            time=time.strftime('%Y%m%d_%H%M%S'),
            mmengine_version=mmengine.__version__,
            course=dict(self.fingerprint),
            command=getattr(self, 'train_command', ''),
            blocks=block_forms(model),
            **added_parts(self.cfg),
            **self.environment(),
        )
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            meta['dataset_meta'] = plain_items(
                self.train_dataloader.dataset.metainfo, 'meta.dataset_meta', left_out
            )
        hub = self.message_hub.state_dict()
        info = {k: v for k, v in hub['runtime_info'].items() if k != 'dataset_meta'}
        info = plain_items(_on_cpu(info), 'message_hub')
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
        """Refuse before the first step values that no checkpoint can hold; warn of keys left out.

        Raises:
            NotPlain: a hook adds such a value.
        """
        if self.rank or getattr(self, 'original', None):  # the original of a scratch runner warns
            return
        left_out: list[str] = []
        content = self._content(dict(epoch=self.epoch, iter=self.iter), left_out=left_out)
        # a hook may need what exists only after a step
        with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
            self.call_hook('before_save_checkpoint', checkpoint=content)
        to_plain(content)
        for key in left_out:
            warn(f'{key} is not in the checkpoints of this run: no text, number or list of them')

    def write_checkpoint(self, path: Path, content: dict, facts: dict) -> None:
        """Write a checkpoint with its manifest."""
        write_checkpoint(path, content, facts)

    def environment(self) -> dict:
        """Facts other than the config on which bit-exact resuming depends."""
        return dict(
            world=self.world_size,
            batch=self.global_batch_size // self.world_size,
            seed=self.data_seed,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
        )

    def load_checkpoint(self, filename: str, map_location: str | Callable = 'cpu', **_) -> dict:
        checkpoint = self._take_checkpoint(filename)
        if self._resume:
            self._check_resumable(checkpoint, filename)
            self._restore_dataset_meta(checkpoint.get('meta', {}))
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = unwrap_model(self.model)
        forms = checkpoint.get('meta', {}).get('blocks')
        weights, message = checkpoint['state_dict'], f'loaded {filename}'
        if self.load_mode == 'strict':
            load_weights(model, weights, filename, forms)
        else:
            partial = self.load_mode == 'partial'
            message = load_initial_weights(model, weights, filename, forms=forms, partial=partial)
        self._has_loaded = True
        self.logger.info(message)
        return checkpoint

    def _take_checkpoint(self, filename: str) -> dict:
        """The content of a checkpoint, of which `self.checkpoint` keeps no tensors."""
        opened, self.checkpoint = self.checkpoint, None
        if opened is None or str(opened.path) != filename:
            return read_after_download(filename)
        content = dict(opened.content, meta=dict(opened.meta))
        opened.release()
        return content

    def _restore_dataset_meta(self, meta: dict) -> None:
        """Undo the conversion of the data set's facts, which mmengine compares with its own."""
        metainfo = getattr(self.train_dataloader.dataset, 'metainfo', {})
        if meta.get('dataset_meta') == plain_items(metainfo, ''):
            meta['dataset_meta'] = metainfo

    def _check_resumable(self, checkpoint: dict, filename: str) -> None:
        meta = checkpoint.get('meta', {})
        if not {'iter', 'epoch'} <= set(meta) or 'message_hub' not in checkpoint:
            raise CheckpointError(
                f'checkpoint {filename} holds no state of a training to resume. Start from its '
                'weights with --init-from.'
            )
        meta.pop('config', None)  # mmengine would evaluate it as Python
        current = self.environment()
        reasons = [
            f'{k} {meta.get(k, "unknown")} -> {current[k]}'
            for k in ('threads', 'torch')
            if meta.get(k) != current[k]
        ]
        reasons += unsteady_kernels()
        reasons += [f'it holds no {k}' for k in ('optimizer', 'rng') if k not in checkpoint]
        if reasons:
            warn(f'exactness not guaranteed because {", ".join(reasons)}')
        meta['seed'] = self._randomness_cfg.get('seed')  # else mmengine seeds anew

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        shorten_console(logger)
        return logger

    def _init_model_weights(self) -> None:
        """Initialise as mmengine does, but read pretrained weights safely and report mismatches."""
        network, cfg = unwrap_model(self.model), self.cfg.get('model')
        reported = report_pretrained(network, read_after_download, cfg)
        with contiguous_kernels(network), reported:
            super()._init_model_weights()


BUILD_ERRORS = TypeError, KeyError, ValueError, AssertionError, AttributeError, ImportError


def _on_cpu(state: dict) -> dict:
    return apply_to(state, lambda x: hasattr(x, 'cpu'), lambda x: x.cpu())
