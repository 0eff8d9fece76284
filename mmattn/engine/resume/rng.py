"""Random number generators and accumulated gradients: their state in a checkpoint, and back."""

import contextlib
import random
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
import torch
from mmengine.dist import all_gather, get_dist_info
from mmengine.optim import OptimWrapper
from torch import Tensor, nn


def derive_seed(*parts) -> int:
    """A seed of 63 bits that depends on `parts` alone, not on Python's hash seed."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), 'big') >> 1


@contextlib.contextmanager
def seeded(seed: int, gpu: bool = False) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch in the block; restore them after it.

    Args:
        seed: the seed.
        gpu: also seed and restore torch's generator of the current GPU, if there is one.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu_state = torch.cuda.get_rng_state() if gpu and torch.cuda.is_available() else None
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
    if gpu_state is not None:
        torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if gpu_state is not None:
            torch.cuda.set_rng_state(gpu_state)


def capture_rng_state() -> tuple:
    """State of all generators of this process, CPU and the current GPU, as they give it: fast."""
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpu


def get_rng_state(captured: tuple | None = None) -> Tensor:
    """State of all generators of this process, CPU and the current GPU, as a uint8 vector.

    Args:
        captured: state from `capture_rng_state`; None for the current one.
    """
    python, numpy, cpu, gpu = captured or capture_rng_state()
    version, words, gauss = python
    _, keys, position, has_gauss, cached = numpy
    arrays = [
        np.array([version, *words], np.int64),
        np.array([gauss is not None, gauss or 0], np.float64),
        keys.astype(np.int64),
        np.array([position, has_gauss], np.int64),
        np.array([cached], np.float64),
    ]
    parts = [torch.from_numpy(np.frombuffer(a.tobytes(), np.uint8).copy()) for a in arrays]
    return torch.cat([*parts, cpu] if gpu is None else [*parts, cpu, gpu])


def set_rng_state(state: Tensor) -> None:
    """Restore the generators to a state from `get_rng_state`."""
    data, offset = state.cpu().numpy().tobytes(), 0

    def take(length: int, dtype) -> np.ndarray:
        nonlocal offset
        values = np.frombuffer(data, dtype, length, offset)
        offset += values.nbytes
        return values

    version, *words = take(626, np.int64).tolist()
    has_gauss, gauss = take(2, np.float64).tolist()
    random.setstate((version, tuple(words), gauss if has_gauss else None))
    keys = take(624, np.int64).astype(np.uint32)
    position, has_gauss = take(2, np.int64).tolist()
    np.random.set_state(('MT19937', keys, position, has_gauss, take(1, np.float64).item()))
    size = torch.get_rng_state().numel()
    # copies: torch crashes on a view with an offset
    torch.set_rng_state(torch.from_numpy(take(size, np.uint8).copy()))
    if torch.cuda.is_available() and offset < len(data):
        torch.cuda.set_rng_state(torch.from_numpy(take(len(data) - offset, np.uint8).copy()))


def accumulated_gradients(optim_wrapper: OptimWrapper, model: nn.Module) -> dict[str, Tensor]:
    """Gradients that wait for the next optimizer step, when they accumulate over several batches.

    To be called by all processes.

    Args:
        optim_wrapper: knows whether the next optimizer step is due.
        model: the network, without a wrapper such as DDP.

    Returns:
        (processes, *shape) gradient of each parameter by name; empty right after a step.
    """
    if optim_wrapper.should_update():
        return {}
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None and (get_dist_info()[1] == 1 or not parameter.requires_grad):
            continue
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients[name] = torch.stack([g.cpu() for g in all_gather(gradient)])
    return gradients
