"""An author's module during conversion: its arguments, its tensors, and what became of them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmattn.text import some

_REQUIRED = object()


class AuthorModule:
    """An author's module on its way to ours; every argument and tensor must be accounted for.

    Attributes:
        tensors: the author's tensors that are not converted yet.
        converted: tensors under our keys.
    """

    def __init__(
        self,
        system: str,
        cls: str,
        ctor: dict[str, Any],
        state_dict: dict[str, Any],
        path: str,
        in_channels: int | None,
    ) -> None:
        self.system, self.cls, self.ctor, self.path = system, cls, ctor, path
        self.in_channels = in_channels
        self.tensors = {key: torch.as_tensor(value) for key, value in state_dict.items()}
        self.converted: dict[str, Tensor] = {}
        self._known_arguments: set[str] = set()

    def fail(self, message: str) -> None:
        raise ValueError(f'from_author: system {self.system!r}, class {self.cls}: {message}')

    def argument(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value of a constructor argument."""
        self._known_arguments.add(name)
        if name not in self.ctor and default is _REQUIRED:
            self.fail(f'argument {name} is missing')
        return self.ctor.get(name, default)

    def channels(self, name: str, default: Any = _REQUIRED) -> int:
        """The argument that holds the input channels; it must equal `in_channels`, if given."""
        value = self.argument(name, default)
        if self.in_channels not in (None, value):
            self.fail(f'in_channels={self.in_channels}, but {name}={value}')
        return value

    def ignore_arguments(self, *names: str) -> None:
        """Accept arguments that do not change what is computed in eval mode."""
        self._known_arguments.update(names)

    def tensor(self, key: str) -> Tensor:
        if key not in self.tensors:
            self.fail(f'tensor {key} is missing; there are: {_names(self.tensors)}')
        return self.tensors[key]

    def rename(self, table: dict[str, str]) -> None:
        """Move tensors from the author's key or prefix to ours."""
        for theirs, ours in table.items():
            for key in [k for k in self.tensors if k == theirs or k.startswith(f'{theirs}.')]:
                self.converted[ours + key[len(theirs) :]] = self.tensors.pop(key)

    def keep(self, *prefixes: str) -> None:
        """Take over tensors whose key is the same in ours; without prefixes, all of them."""
        self.rename({name: name for name in prefixes or list(self.tensors)})

    def drop(self, *keys: str) -> None:
        """Discard tensors that do not change what is computed."""
        for key in keys:
            self.tensors.pop(key, None)

    def fold_bias(self, bias: str, norm: str) -> None:
        """Fold the bias of a convolution, an author's tensor, into our batch norm after it."""
        if bias in self.tensors:
            mean = f'{norm}.running_mean'
            self.converted[mean] = self.converted[mean] - self.tensors.pop(bias)

    def finish(self, module: nn.Module) -> None:
        """Load the converted tensors; fail on any left over, missing or mis-shaped."""
        unknown = sorted(set(self.ctor) - self._known_arguments)
        if unknown:
            allowed = ', '.join(sorted(self._known_arguments))
            self.fail(f'unknown argument {", ".join(unknown)}, allowed {allowed}')
        if self.tensors:
            self.fail(f'unknown tensors: {_names(self.tensors)}')
        expected = module.state_dict()
        missing = [key for key in expected if key not in self.converted]
        unknown = [key for key in self.converted if key not in expected]
        if missing or unknown:
            self.fail(
                f'the tensors do not fit {type(module).__name__} with these arguments: '
                f'missing {_names(missing)}; unknown {_names(unknown)}'
            )
        for key, value in expected.items():
            tensor = self.converted[key]
            if tensor.numel() == 1 and value.numel() == 1:  # a scalar of shape (1) or ()
                tensor = self.converted[key] = tensor.reshape(value.shape)
            if tensor.shape != value.shape:
                self.fail(
                    f'{key} would be {tuple(tensor.shape)}, but '
                    f'{type(module).__name__} has {tuple(value.shape)}'
                )
        floats = {v.dtype for v in self.converted.values() if v.is_floating_point()}
        if floats:
            module.to(max(floats, key=lambda dtype: torch.finfo(dtype).bits))
        module.load_state_dict(self.converted)


def _names(keys: Iterable[str]) -> str:
    return some(sorted(keys), 6) or 'none'
