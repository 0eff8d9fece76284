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
    """63 bits that depend on the parts alone, not on Python's hash of this process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), 'big') >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the three global generators of the CPU, and put them back behind it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


# ---- the generators of the network -------------------------------------------------------------
def get_rng_state() -> Tensor:
    """The state of all generators of this process as bytes, in a row."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    parts = [
        np.array([version, *words], np.int64),
        np.array([gauss is not None, gauss or 0], np.float64),
        keys.astype(np.int64),
        np.array([position, has_gauss], np.int64),
        np.array([cached], np.float64),
    ]
    rows = [torch.from_numpy(np.frombuffer(part.tobytes(), np.uint8).copy()) for part in parts]
    rows.append(torch.get_rng_state())
    if torch.cuda.is_available():
        rows.append(torch.cuda.get_rng_state())
    return torch.cat(rows)


def set_rng_state(row: Tensor) -> None:
    """Put back what `get_rng_state` gave."""
    data, at = row.cpu().numpy().tobytes(), 0

    def take(length: int, dtype) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(data, dtype, length, at)
        at += found.nbytes
        return found

    version, *words = take(626, np.int64).tolist()
    has, gauss = take(2, np.float64).tolist()
    random.setstate((version, tuple(words), gauss if has else None))
    keys = take(624, np.int64).astype(np.uint32)
    position, has_gauss = take(2, np.int64).tolist()
    np.random.set_state(('MT19937', keys, position, has_gauss, take(1, np.float64).item()))
    size = torch.get_rng_state().numel()
    # copies: a view into the row with an offset would crash torch
    torch.set_rng_state(torch.from_numpy(take(size, np.uint8).copy()))
    if torch.cuda.is_available() and at < len(data):
        torch.cuda.set_rng_state(torch.from_numpy(take(len(data) - at, np.uint8).copy()))


def accumulated_gradients(optim_wrapper: OptimWrapper, model: nn.Module) -> dict[str, Tensor]:
    """Those that accumulate for an optimizer's step to come, as at the end of an epoch.

    To be called by all processes.

    Returns:
        name of the parameter -> (processes, *its shape).
    """
    if optim_wrapper.should_update():
        return {}
    found = {}
    for name, value in model.named_parameters():
        if value.grad is None and (get_dist_info()[1] == 1 or not value.requires_grad):
            continue
        gradient = torch.zeros_like(value) if value.grad is None else value.grad
        found[name] = torch.stack([row.cpu() for row in all_gather(gradient)])
    return found
