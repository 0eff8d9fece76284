"""Authors' modules rebuilt as ours: from class name, constructor arguments and weights."""

from typing import Any

import torch
from torch import Tensor, nn

_REQUIRED = object()


def from_author(
    system: str,
    cls: str,
    ctor: dict[str, Any],
    state_dict: dict[str, Any],
    *,
    path: str = '',
    in_channels: int | None = None,
) -> nn.Module:
    """Rebuild an author's module as ours, with its weights.

    Args:
        system: 'se', 'scse', 'cmpese', 'sk', 'cbam', 'bam', 'sge', 'sanet', 'gc', 'snl', 'nl',
            'ccnet', 'ann', 'danet', 'ran', 'stn', 'dcnv1' or 'dcnv2'.
        cls: the author's class, such as 'SELayer'; a remark in brackets after it is ignored.
        ctor: the constructor arguments under the author's names; those left out have the author's
            defaults. `recurrence` of criss-cross attention, an argument of the call, stands here.
        state_dict: the author's weights, tensors or arrays.
        path: the file of the class in the author's repository, where two classes share a name.
        in_channels: channels of the input, for classes that never learn it.

    Returns:
        our module in eval mode, in the dtype of the weights. It computes what the author's module
        computes in eval mode, and in training where that has no dropout.

    Raises:
        ValueError: a system, class, argument or tensor that is unknown, missing or of a wrong
            shape; a class that ours deliberately does not follow, with the reason.
    """
    from .conversions import CLASSES, REFUSED

    if system not in CLASSES:
        raise ValueError(f'from_author: {system=}, allowed {", ".join(sorted(CLASSES))}')
    name = cls.split('(')[0].strip() if not cls.startswith('cSE(') else 'cSE(x)+sSE(x)'
    author = Author(system, name, dict(ctor), state_dict, path, in_channels)
    known = CLASSES[system]
    if name not in known:
        for start, reason in REFUSED.get(system, {}).items():
            if name.startswith(start):
                author.fail(reason)
        author.fail(f'unknown class, allowed {", ".join(known)}')
    module = known[name](author)
    author.finish(module)
    return module.eval()


class Author:
    """The author's side of one module: hands out arguments and tensors, and misses none."""

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
        self.theirs = {key: torch.as_tensor(value) for key, value in state_dict.items()}
        self.ours: dict[str, Tensor] = {}
        self.read: set[str] = set()

    def fail(self, message: str) -> None:
        raise ValueError(f'from_author: system {self.system!r}, class {self.cls}: {message}')

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """A constructor argument."""
        self.read.add(name)
        if name not in self.ctor and default is _REQUIRED:
            self.fail(f'argument {name} is missing')
        return self.ctor.get(name, default)

    def channels(self, name: str, default: Any = _REQUIRED) -> int:
        """The argument that has the channels of the input, held against `in_channels`."""
        value = self.get(name, default)
        if self.in_channels not in (None, value):
            self.fail(f'in_channels={self.in_channels}, but {name}={value}')
        return value

    def ignore(self, *names: str) -> None:
        """Arguments without effect on what is computed in eval mode."""
        self.read.update(names)

    def tensor(self, key: str) -> Tensor:
        if key not in self.theirs:
            self.fail(f'tensor {key} is missing; there are: {_some(self.theirs)}')
        return self.theirs[key]

    def rename(self, table: dict[str, str]) -> None:
        """Move tensors: an author's prefix, or whole key, to ours."""
        for theirs, ours in table.items():
            for key in [k for k in self.theirs if k == theirs or k.startswith(f'{theirs}.')]:
                self.ours[ours + key[len(theirs) :]] = self.theirs.pop(key)

    def keep(self, *prefixes: str) -> None:
        """Tensors that have the same key in ours; all of them without prefixes."""
        self.rename({name: name for name in prefixes or list(self.theirs)})

    def drop(self, *keys: str) -> None:
        """Tensors without effect on what is computed."""
        for key in keys:
            self.theirs.pop(key, None)

    def fold_bias(self, bias: str, norm: str) -> None:
        """The bias of a convolution before a batch norm, `bias` of theirs into `norm` of ours."""
        if bias in self.theirs:
            self.ours[f'{norm}.running_mean'] = self.ours[f'{norm}.running_mean'] - self.theirs.pop(
                bias
            )

    def finish(self, module: nn.Module) -> None:
        """Load what was collected, and fail on anything left over, missing or mis-shaped."""
        unknown = sorted(set(self.ctor) - self.read)
        if unknown:
            self.fail(
                f'unknown argument {", ".join(unknown)}, allowed {", ".join(sorted(self.read))}'
            )
        if self.theirs:
            self.fail(f'unknown tensors: {_some(self.theirs)}')
        expected = module.state_dict()
        missing = [key for key in expected if key not in self.ours]
        unknown = [key for key in self.ours if key not in expected]
        if missing or unknown:
            self.fail(
                f'the tensors do not fit {type(module).__name__} with these arguments: '
                f'missing {_some(missing)}; unknown {_some(unknown)}'
            )
        for key, value in expected.items():
            if self.ours[key].numel() == 1 and value.numel() == 1:  # a scalar of shape (1) or ()
                self.ours[key] = self.ours[key].reshape(value.shape)
            if self.ours[key].shape != value.shape:
                self.fail(
                    f'{key} would be {tuple(self.ours[key].shape)}, but '
                    f'{type(module).__name__} has {tuple(value.shape)}'
                )
        floats = {v.dtype for v in self.ours.values() if v.is_floating_point()}
        if floats:
            module.to(max(floats, key=lambda dtype: torch.finfo(dtype).bits))
        module.load_state_dict(self.ours)


def _some(keys: Any, shown: int = 6) -> str:
    keys = sorted(keys)
    more = f' and {len(keys) - shown} more' if len(keys) > shown else ''
    return ', '.join(keys[:shown]) + more if keys else 'none'
