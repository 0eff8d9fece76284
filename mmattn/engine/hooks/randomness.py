"""The hook that saves and restores the random number generators of every process."""

import random

import numpy as np
import torch
from mmengine.dist import all_gather, broadcast, get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor

from mmattn.engine.resume.rng import derive_seed, get_rng_state, set_rng_state


class RandomnessHook(Hook):
    """Takes the states of the generators for a checkpoint, and puts them back when one is resumed.

    Attributes:
        pending: rows of a checkpoint, until the first step.
        gradients: those that wait in it, until then.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.pending: Tensor | None = None
        self.gradients: dict[str, Tensor] = {}
        self.started = False
        self._held: Tensor | None = None  # rows of before a validation

    def rng_states(self) -> Tensor:
        """(processes, bytes); to be called by all of them."""
        if self._held is not None:
            return self._held
        return torch.stack([row.cpu() for row in all_gather(get_rng_state())])

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self.pending = checkpoint.get('rng')
            self.gradients = checkpoint.get('gradients', {})

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.started:
            return
        self.started = True
        rank, world = get_dist_info()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name, value in model.named_parameters() if self.gradients else ():
            if name in self.gradients:
                rows = self.gradients[name]
                value.grad = rows[rank % len(rows)].to(value)
        self.gradients = {}
        if self.pending is not None:
            set_rng_state(self.pending[rank % len(self.pending)].clone())
        elif world > 1:  # else all would drop out the same
            seed = derive_seed(runner.data_seed, 'rank', rank)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        self.pending = None

    def after_train(self, runner) -> None:
        if self.pending is not None:  # the resumed run had come to its end
            set_rng_state(self.pending[get_dist_info()[0] % len(self.pending)].clone())

    def before_val(self, runner) -> None:
        """A validation draws nothing from the training, and sees rank 0's buffers: those saved."""
        for buffer in runner.model.buffers() if get_dist_info()[1] > 1 else ():
            broadcast(buffer)
        if self.pending is not None:  # of a resumed run that has not made a step
            self._held = self.pending
        else:
            self._held = self.rng_states()

    def after_val(self, runner) -> None:
        if self._held is not None and self._held is not self.pending:
            set_rng_state(self._held[get_dist_info()[0]].clone())
        self._held = None
