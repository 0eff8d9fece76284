"""Channels and layout of the maps that modules return, observed in a dry run."""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .dry_run import fake_images, run_parts, unchanged

LAYOUTS = ('NCHW', 'NHWC')
# No height or width of a map can be taken for its channels: 352 * 352 / 224 is no multiple of a
# power of 2, so (H, W, C) and (C, H, W) never have this ratio in the same two places.
_SIZE = (224, 352)


class ObservedMap(NamedTuple):
    """What a module returns.

    Attributes:
        shape: (N, C, H, W) or (N, H, W, C); of any other tensor its own; () for no tensor.
        layout: 'NCHW', 'NHWC', '?' for a map whose shape fits both, or '' for what is no map.
        type: name of its class.
    """

    shape: tuple[int, ...]
    layout: str
    type: str

    def channels(self, layout: str) -> int:
        """C, if the map has this layout."""
        return self.shape[3 if layout == 'NHWC' else 1]


class ObservedMaps:
    """The maps that the modules of a network return; it runs when the first one is asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def get(self, path: str) -> ObservedMap | None:
        """What the module at a path returns.

        None if the network cannot run up to it with fake tensors, or if it runs several times and
        returns maps of different channels.
        """
        return self._by_module.get(id(self.model.get_submodule(path)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """path -> (C, H, W) of all maps that are known."""
        found = {}
        for path, module in self.model.named_modules():
            if (out := self._by_module.get(id(module))) and out.layout and path:
                sizes = out.shape[1:3] if out.layout == 'NHWC' else out.shape[2:]
                found[path] = (out.channels(out.layout), *sizes)
        return found

    @cached_property
    def _by_module(self) -> dict[int, ObservedMap | None]:
        found: dict[int, ObservedMap | None] = {}
        self._observed = list(self.model.modules())  # kept, so that no later module has their id
        for size in image_sizes(self.model):
            outputs, ended = _outputs(self.model, size)
            for module, values in outputs.items():
                found.setdefault(module, _summary(values, size))
            if ended:
                break
        return self._resolved(found)

    def _resolved(self, found: dict[int, ObservedMap | None]) -> dict[int, ObservedMap | None]:
        """Where a shape fits both layouts, take the one of other modules of the same class."""
        layouts: dict[type, set[str]] = {}
        for module in self.model.modules():
            if (out := found.get(id(module))) and out.layout in LAYOUTS:
                layouts.setdefault(_returning_class(module), set()).add(out.layout)
        for module in self.model.modules():
            known = layouts.get(_returning_class(module), ())
            if (out := found.get(id(module))) and out.layout == '?' and len(known) == 1:
                found[id(module)] = out._replace(layout=next(iter(known)))
        return found


def layout_of(shape: tuple[int, ...], size: tuple[int, int]) -> str:
    """'NCHW' or 'NHWC': which two axes have the ratio of height and width; '' if none, '?' if both.

    Args:
        shape: of the output.
        size: H and W of the image.
    """
    if len(shape) != 4:
        return ''
    height, width = size
    _, a, b, c = shape
    misfits = {'NCHW': abs(b * width - c * height), 'NHWC': abs(a * width - b * height)}
    best = min(LAYOUTS, key=misfits.__getitem__)
    if misfits[best] > (0 if height == width else max(size)):  # heights and widths are rounded
        return ''
    return '?' if misfits['NCHW'] == misfits['NHWC'] else best


def _returning_class(module: nn.Module) -> type:
    """Class of the module that makes the output: of a sequence, of its last one."""
    while isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        members = [m for m in module if not hasattr(m, 'plugin')]
        if not members:
            break
        module = members[-1]
    return type(module)


def image_sizes(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Sizes of images, H and W, that the network may take: many transformers take but one."""
    yield _SIZE
    configured = {}  # a dict, as it keeps the order of the modules
    for module in model.modules():
        config, cfg = getattr(module, 'config', None), getattr(module, 'default_cfg', None)
        size = getattr(module, 'img_size', None) or getattr(config, 'image_size', None)
        if size is None and isinstance(cfg, dict):
            size = cfg.get('input_size', ())[1:]
        size = (size, size) if isinstance(size, int) else size
        if isinstance(size, tuple | list) and [type(side) for side in size] == [int, int]:
            configured[tuple(size)] = True
    yield from list(configured)[:2]
    yield (224, 224)


def _outputs(model: nn.Module, size: tuple[int, int]) -> tuple[dict[int, list], bool]:
    """What each module returns in each of its runs, by `id`; and whether the network ran."""
    outputs: dict[int, list] = {}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else ()
        outputs.setdefault(id(module), []).append((shape, type(output).__name__))

    with unchanged(model):
        model.eval()
        hooks = [module.register_forward_hook(note) for module in model.modules()]
        try:
            with torch.no_grad(), fake_images(model, size) as images:
                run_parts(model, images)
        except Exception:  # a user's network may do anything with fake tensors
            return outputs, False
        finally:
            for hook in hooks:
                hook.remove()
    return outputs, True


def _summary(runs: list[tuple], size: tuple[int, int]) -> ObservedMap | None:
    found = {ObservedMap(shape, layout_of(shape, size), name) for shape, name in runs}
    first = found.pop()
    same = all(
        other.layout == first.layout
        and (not first.layout or other.channels(first.layout) == first.channels(first.layout))
        for other in found
    )
    return first if same else None
