"""The hook that saves checkpoints; a file is removed only after the next one is verified."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from mmengine.hooks import CheckpointHook as EngineCheckpointHook
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmattn.checkpoint.manifest import remove_checkpoint, remove_leftovers
from mmattn.checkpoint.write import link_best
from mmattn.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(EngineCheckpointHook):
    """mmengine's hook, but a file is removed only after its successor is written and verified.

    `best.pth` is a link to the best checkpoint; with several metrics, by the first of them. While
    gradients accumulate, a save waits for the optimizer's step. Arguments are those of
    `mmengine.hooks.CheckpointHook`, which `adapt_checkpoint_hook` turns into this one. What a file
    holds is decided by the runner.
    """

    _save_due = False
    # metrics of the OpenMMLab packages that mmengine does not know; a higher value is better
    _default_greater_keys: ClassVar[list[str]] = [
        *EngineCheckpointHook._default_greater_keys,
        *('IoU', 'Dice', 'Fscore', 'Recall'),
    ]

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.file_backend = _DeferredRemoval(self.file_backend)
        for name in 'best_ckpt_path', 'best_ckpt_path_dict':
            best = getattr(self, name, None)
            if isinstance(best, dict):
                setattr(self, name, {k: self._in_out_dir(path) for k, path in best.items()})
            elif best:
                setattr(self, name, self._in_out_dir(best))
        if runner.rank == 0:
            remove_leftovers(self.out_dir)

    def _in_out_dir(self, path: str | None) -> str | None:
        """The path of a checkpoint in `out_dir`: a resumed run may have been moved."""
        return path and os.path.join(self.out_dir, os.path.basename(path))

    def after_train_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.by_epoch:
            return
        due = self.every_n_train_iters(runner, self.interval, self.save_begin)
        self._save_due |= due or (self.save_last and self.is_last_train_iter(runner))
        if self._save_due and runner.optim_wrapper.should_update():
            self._save_due = False
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._save_checkpoint(runner)

    def _save_checkpoint(self, runner: Runner) -> None:
        # classes derived from mmengine's hook may remove before they save
        with self.file_backend.deferring():
            super()._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = [self.filename_tmpl.format(self.keep_ckpt_ids.popleft())]
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = os.path.join(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
        )
        if runner.rank == 0:
            for name in outdated:
                remove_checkpoint(Path(self.out_dir) / name)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self.file_backend.deferring() as outdated:
            super()._save_best_checkpoint(runner, metrics)
            by_metric = getattr(self, 'best_ckpt_path_dict', None) or {}
            best = [getattr(self, 'best_ckpt_path', None), *by_metric.values()]
            best = [os.path.basename(path) for path in best if path]
            if best and runner.rank == 0:
                link_best(Path(self.out_dir) / best[0])
            outdated[:] = [path for path in outdated if os.path.basename(path) not in best]


def adapt_checkpoint_hook(hook: Hook) -> Hook:
    """Give mmengine's CheckpointHook, or a class derived from it, the behaviour of ours.

    Args:
        hook: any hook; one that saves nothing is returned as it is.
    """
    cls = type(hook)
    if cls is EngineCheckpointHook:
        hook.__class__ = CheckpointHook
    elif isinstance(hook, EngineCheckpointHook) and not isinstance(hook, CheckpointHook):
        attributes = dict(__module__=cls.__module__, __doc__=cls.__doc__)
        hook.__class__ = type(cls.__name__, (cls, CheckpointHook), attributes)
    return hook


class _DeferredRemoval:
    """A file backend that removes files at the end of a `deferring` block.

    Args:
        backend: the file backend; used for everything else.
    """

    def __init__(self, backend) -> None:
        self._backend, self._deferred = backend, None

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    @contextlib.contextmanager
    def deferring(self) -> Iterator[list[str]]:
        """Defer removals until the block has ended without an error.

        Yields:
            the deferred paths; those taken out of the list are kept.
        """
        self._deferred = paths = []
        try:
            yield paths
        finally:
            self._deferred = None
        for path in paths:
            remove_checkpoint(path)

    def remove(self, path: str) -> None:
        if self._deferred is None:
            remove_checkpoint(path)
        else:
            self._deferred.append(path)
