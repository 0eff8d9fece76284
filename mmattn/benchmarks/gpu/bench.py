"""What every part of the report gets: a device, a file for its rows, and checks of equality."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
# relative to the norm: in half precision a few roundings; in fp32 their sum over many channels
TOLERANCE = {
    torch.float32: 1e-5,
    torch.bfloat16: 3 * torch.finfo(torch.bfloat16).eps,
    torch.float16: 3 * torch.finfo(torch.float16).eps,
}


class Bench:
    """The device of a part and its results, rows of JSON that are written at once.

    Args:
        device: 'cpu', on which the parts run in small, or 'cuda:0', 'cuda:1', ...
        path: file that rows are appended to.
        seconds: time that the part has.
    """

    def __init__(self, device: str, path: Path, seconds: float = math.inf) -> None:
        self.device = torch.device(device)
        self.small = self.device.type == 'cpu'
        self._file = path.open('a', encoding='utf-8')
        if not self.small:
            torch.cuda.set_device(self.device)
        self._end = time.monotonic() + seconds
        torch.manual_seed(0)

    def __enter__(self) -> 'Bench':
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def row(self, kind: str, **values: Any) -> None:
        """Write a result; a number that is not finite becomes None."""
        self._file.write(json.dumps(_finite(dict(kind=kind, **values))) + '\n')
        self._file.flush()

    def has_time(self, seconds: float, what: str) -> bool:
        """Whether the part has so many seconds left; if not, a row says what is left out."""
        if time.monotonic() + seconds <= self._end:
            return True
        self.row('cut', what=what)
        return False

    def check(
        self,
        name: str,
        found: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor],
        limit: float | Mapping[str, float],
        plain: Mapping[str, Tensor] | None = None,
    ) -> bool:
        """Compare tensors by name; whether all `distance`s are within the limit.

        Args:
            name: name of the check.
            found, wanted: name -> tensor.
            limit: largest distance, one for all or by name.
            plain: results of the plain formula in the same dtype, whose distance is noted too.
        """
        errors = {key: distance(found[key], value) for key, value in wanted.items()}
        limits = dict.fromkeys(errors, limit) if isinstance(limit, int | float) else dict(limit)
        ok = all(errors[key] <= limits[key] for key in errors)
        row = dict(name=name, ok=ok, errors=errors, limits=limits)
        if plain is not None:
            row['plain'] = {key: distance(plain[key], value) for key, value in wanted.items()}
        self.row('check', **row)
        return ok

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Note an exception as a check of this name that failed, see `survive`."""
        try:
            yield
        except Exception as error:
            self.row('check', name=name, ok=False, error=self.survive(error))

    def survive(self, error: Exception) -> str:
        """The error in one line; raised again if the device is no longer usable in this process."""
        if _is_fatal(error):
            raise error
        self.synchronize()  # raises what is left of an illegal access
        return f'{type(error).__name__}: {error}'.partition('\n')[0]

    def synchronize(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def release(self) -> None:
        """Return unused memory to the device."""
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_fatal(error: Exception) -> bool:
    """Whether a device can no longer be used in this process, as after an illegal access."""
    if type(error).__name__ == 'OutOfMemoryError':
        return False
    return type(error).__name__ == 'AcceleratorError' or 'CUDA error' in str(error)


def distance(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|, of norms, in fp64; absolute where the norm is below 1.

    Infinite if the shapes differ or a difference is not a number.
    """
    if found.shape != wanted.shape:
        return math.inf
    device = found.device if found.device == wanted.device else 'cpu'
    found, wanted = (t.detach().to(device).double() for t in (found, wanted))
    error = float((found - wanted).norm() / wanted.norm().clamp(min=1))
    return error if error == error else math.inf


def perturb_constants(module: nn.Module) -> nn.Module:
    """Add noise to constant parameters and buffers, such as a gamma of 0, so that all take part."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point() and (value == value.flatten()[0]).all():
                noise = torch.randn_like(value)
                value.add_(0.1 * (noise if isinstance(value, nn.Parameter) else noise.abs()))
    return module
