"""The hook that saves and restores the random number generators of every process."""

import random

import numpy as np
import torch
from mmengine.dist import all_gather, broadcast, get_dist_info
from mmengine.hooks import Hook
from torch import Tensor

from mmattn.engine.model_wrappers import unwrap_ddp
from mmattn.engine.resume.rng import derive_seed, get_rng_state, set_rng_state


class RandomnessHook(Hook):
    """Provides the generators' states for a checkpoint, and restores them when one is resumed.

    Attributes:
        resumed_states: (processes, bytes) states of the resumed checkpoint, until the first step.
        resumed_gradients: accumulated gradients of the resumed checkpoint, until the first step.
        started: the first step of this process has begun.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.resumed_states: Tensor | None = None
        self.resumed_gradients: dict[str, Tensor] = {}
        self.started = False
        self._states_before_val: Tensor | None = None

    def rng_states(self) -> Tensor:
        """(processes, bytes) states of the generators; to be called by all processes.

        During a validation they are those from before it.
        """
        if self._states_before_val is not None:
            return self._states_before_val
        return torch.stack([state.cpu() for state in all_gather(get_rng_state())])

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self.resumed_states = checkpoint.get('rng')
            self.resumed_gradients = checkpoint.get('gradients', {})

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.started:
            return
        self.started = True
        rank, world = get_dist_info()
        model = unwrap_ddp(runner.model)
        for name, parameter in model.named_parameters() if self.resumed_gradients else ():
            if name in self.resumed_gradients:
                gradients = self.resumed_gradients[name]
                parameter.grad = gradients[rank % len(gradients)].to(parameter)
        self.resumed_gradients = {}
        if self.resumed_states is not None:
            self._restore_resumed(rank)
        elif world > 1:  # otherwise every rank would draw the same dropout masks
            seed = derive_seed(runner.data_seed, 'rank', rank)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
        self.resumed_states = None

    def after_train(self, runner) -> None:
        if self.resumed_states is not None:  # the resumed run was already complete
            self._restore_resumed(get_dist_info()[0])

    def _restore_resumed(self, rank: int) -> None:
        set_rng_state(self.resumed_states[rank % len(self.resumed_states)].clone())

    def before_val(self, runner) -> None:
        """Keep the states from before a validation, and give all ranks the buffers of rank 0.

        A validation may not change what the training draws, and has to see the buffers that a
        checkpoint holds.
        """
        for buffer in runner.model.buffers() if get_dist_info()[1] > 1 else ():
            broadcast(buffer)
        if self.resumed_states is not None:  # a resumed run before its first step
            self._states_before_val = self.resumed_states
        else:
            self._states_before_val = self.rng_states()

    def after_val(self, runner) -> None:
        states = self._states_before_val
        if states is not None and states is not self.resumed_states:
            set_rng_state(states[get_dist_info()[0]].clone())
        self._states_before_val = None
