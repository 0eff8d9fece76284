"""Running a network without values: shapes, multiplications and memory at no cost of either."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from .flops import flop_counter
from .insert import NotOneMap


class _NeedsValues(RuntimeError):
    """What a compiled operator returns is not told by shapes."""


# What a network raises that cannot do with shapes alone.
_VALUES_NEEDED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
    _NeedsValues,
)
TESTING = (1000, 100)  # boxes per image that box heads and mask heads see in testing
_TRAINING = (512, 128)  # the same in training, where the config does not say


@dataclass
class Seen:
    """What one module got, and what that cost, all its runs together.

    Attributes:
        shapes: of its inputs, one for each run.
        macs: multiplications and additions in pairs, of convolutions and matrix products.
        kept: bytes that autograd keeps for the backward pass, without weights; in training alone.
        largest: of these, bytes of the largest tensor.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    macs: int = 0
    kept: int = 0
    largest: int = 0


@dataclass
class Trial:
    """What a run told.

    Attributes:
        seen: path -> what the module at it did.
        total: the whole network.
        reason: why the network could not be tried to its end; '' if it could.
    """

    seen: dict[str, Seen]
    total: Seen
    reason: str = ''


def try_network(
    model: nn.Module,
    modules: dict[str, nn.Module],
    size: tuple[int, int],
    *,
    batch: int = 1,
    training: bool = False,
) -> Trial:
    """Run a network with tensors that have a shape and no values.

    Args:
        model: a detector of mmdet, a segmentor of mmseg, or any network that takes images
            (N, C, H, W). Its modules are in the modes that they are in.
        modules: those that are told apart.
        size: H and W of the images.
        batch: N.
        training: with gradients, and with as many boxes in the heads as training has.

    Raises:
        ValueError: a module of `modules` cannot take the map that it gets, or does not get one map.
    """
    found = Trial({name: Seen() for name in modules}, Seen())
    inside: list[str] = []
    starts: list[int] = []
    counter = flop_counter()
    known: dict[int, Tensor] = {}  # storages seen; a tensor keeps each from being used again

    def enter(name: str, module: nn.Module, inputs: tuple) -> None:
        inside.append(name)
        found.seen[name].shapes.append(tuple(inputs[0].shape) if _is_map(inputs) else ())
        starts.append(counter.get_total_flops())

    def leave(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        inside.pop()
        found.seen[name].macs += (counter.get_total_flops() - starts.pop()) // 2

    def pack(t: Tensor) -> None:
        key = t.untyped_storage()._cdata
        if key not in known and not isinstance(t, nn.Parameter):
            known[key] = t
            size = t.untyped_storage().nbytes()
            for one in (found.total, *(found.seen[name] for name in set(inside))):
                one.kept += size
                one.largest = max(one.largest, size)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(enter, name)).remove)
            stack.callback(module.register_forward_hook(partial(leave, name)).remove)
        stack.enter_context(_stand_ins(model))
        stack.enter_context(_no_operators())
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        if training:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t))
        else:
            stack.enter_context(torch.no_grad())
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for value in (*model.parameters(), *model.buffers()):
            twin = fake.from_tensor(value)
            known[twin.untyped_storage()._cdata] = twin
        stack.enter_context(counter)
        channels = input_channels(model)
        image = torch.empty(batch, channels, *size, dtype=like.dtype, device=like.device)
        try:
            run_parts(model, image, _boxes(model) if training else TESTING)
        except NotOneMap as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # whatever a stranger's network does with tensors without values
            if inside and not isinstance(error, _VALUES_NEEDED):
                place = getattr(getattr(modules[inside[-1]], 'plugin', None), 'place', '')
                shape = found.seen[inside[-1]].shapes[-1]
                raise ValueError(
                    f'{inside[-1]} {place} gets a map {shape} that it cannot take: {error}'
                ) from error
            text = str(error).strip()
            found.reason = text.splitlines()[0] if text else repr(error)
    found.total.macs = counter.get_total_flops() // 2
    return found


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes.

    As many as its preprocessor has means for; else those of the first convolution.
    """
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if mean is not None and mean.numel() > 1:
        return mean.numel()
    for module in getattr(model, 'backbone', model).modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if type(module).__name__ == 'Focus':  # of YOLOX: each of four neighbours is a channel
            return next(c for c in module.modules() if isinstance(c, nn.Conv2d)).in_channels // 4
    return 3


def run_parts(model: nn.Module, image: Tensor, boxes: tuple[int, int] = TESTING) -> None:
    """All parts of a detector or segmentor, from images to what its heads say; others as they are.

    Args:
        model: the network.
        image: (N, C, H, W).
        boxes: per image that box heads and mask heads see; they lie anywhere, which costs the same.
    """
    if not hasattr(model, 'extract_feat'):
        model(image)
        return
    if hasattr(model, 'forward_transformer'):  # queries and keys need the size of each image
        from mmdet.structures import DetDataSample

        sides = dict(img_shape=image.shape[2:], batch_input_shape=image.shape[2:])
        model._forward(image, [DetDataSample(metainfo=sides) for _ in image])
        return
    maps = model.extract_feat(image)
    for name in 'rpn_head', 'bbox_head', 'decode_head', 'auxiliary_head':
        head = getattr(model, name, None)
        before = ()  # of decode heads in a row, each gets what the one before it said
        for part in head if isinstance(head, nn.ModuleList) else [head] if head else []:
            said = part(maps, *before)
            before = (said,) if name == 'decode_head' else ()
    heads = getattr(model, 'roi_head', None)
    stages = range(heads.num_stages) if hasattr(heads, 'num_stages') else [None]
    for stage in stages if heads is not None else ():
        first = () if stage is None else (stage,)
        if getattr(heads, 'with_bbox', False):
            heads._bbox_forward(*first, maps, image.new_zeros(boxes[0] * len(image), 5))
        if getattr(heads, 'with_mask', False):
            heads._mask_forward(*first, maps, image.new_zeros(boxes[1] * len(image), 5))


def _boxes(model: nn.Module) -> tuple[int, int]:
    """Per image that the heads of a two-stage detector see in training."""
    cfg = getattr(getattr(model, 'roi_head', None), 'train_cfg', None)
    sampler = cfg.get('sampler') if cfg else None
    if not sampler:
        return _TRAINING
    return sampler['num'], round(sampler['num'] * sampler['pos_fraction'])


def _is_map(inputs: tuple) -> bool:
    return bool(inputs) and isinstance(inputs[0], Tensor)


@contextmanager
def _stand_ins(model: nn.Module) -> Iterator[None]:
    """In place of compiled operators, which need values, functions of the same shapes and MACs."""
    replaced = []
    for module in model.modules():
        stand_in: Callable | None = None
        if hasattr(module, 'conv_offset') and hasattr(module, 'deform_groups'):
            stand_in = partial(_plain_convolution, module)
        elif hasattr(module, 'roi_layers') and hasattr(module, 'featmap_strides'):
            stand_in = partial(_extract, module)
        if stand_in is not None:
            module.forward = stand_in
            replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


@contextmanager
def _no_operators() -> Iterator[None]:
    """MMCV's compiled operators do nothing: they would work on memory that is not there.

    Most write into a tensor that was made before, so that its shape is as it should be. What the
    others would return, only values can tell.
    """
    try:
        operators = import_module('mmcv._ext')
    except ImportError:  # built without them
        yield
        return
    found = {name: value for name, value in vars(operators).items() if callable(value)}
    for name in found:
        writes = name.endswith(('_forward', '_backward'))
        setattr(operators, name, _write_nothing if writes else partial(_refuse, name))
    try:
        yield
    finally:
        for name, value in found.items():
            setattr(operators, name, value)


def _write_nothing(*_, **__) -> None:
    pass


def _refuse(name: str, *_, **__) -> None:
    raise _NeedsValues(f'{name} needs values')


def _plain_convolution(conv: nn.Module, x: Tensor) -> Tensor:
    if type(conv).__name__ == 'DeformConv2dPack' and any(
        side < kernel for side, kernel in zip(x.shape[2:], conv.kernel_size)
    ):
        raise ValueError(f'deformable convolution needs {conv.kernel_size} pixels or more')
    places = conv.conv_offset(x)
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    y = nn.functional.conv2d(x, conv.weight, getattr(conv, 'bias', None), *geometry)
    return y + 0 * (places * places).sum()  # so that they are kept, as the operator keeps them


def _extract(extractor: nn.Module, maps: tuple[Tensor, ...], rois: Tensor, *_, **__) -> Tensor:
    size = extractor.roi_layers[0].output_size
    return maps[0].new_empty(len(rois), extractor.out_channels, *size)
