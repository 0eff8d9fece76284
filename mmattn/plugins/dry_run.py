"""Dry run with fake tensors: shapes, MACs and memory without computing."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn

from mmattn.torch_compat import fake_tensor_mode

from .flops import flop_counter
from .hooks import NotOneMap


class _NeedsValues(RuntimeError):
    """The output shape of a compiled operator depends on values."""


# Names of errors of a network that cannot run with shapes alone. One class is in a module that
# takes 0.4 s to import.
_NEEDS_VALUES = (
    'DataDependentOutputException',
    'DynamicOutputShapeException',
    'GuardOnDataDependentSymNode',
    'UnsupportedOperatorException',
    '_NeedsValues',
)
TESTING = (1000, 100)  # boxes per image that box heads and mask heads see in testing
_TRAINING = (512, 128)  # the same in training, by default


@dataclass
class ModuleStats:
    """Inputs and cost of one module, summed over its runs.

    Attributes:
        input_shapes: (N, C, H, W) of the input of each run; () for an input other than a tensor.
        macs: multiply-accumulates of convolutions and matrix products.
        saved_bytes: saved for backward, without weights; 0 unless training.
        largest_saved: bytes of the largest tensor among these.
    """

    input_shapes: list[tuple[int, ...]] = field(default_factory=list)
    macs: int = 0
    saved_bytes: int = 0
    largest_saved: int = 0


@dataclass
class DryRun:
    """Result of a dry run.

    Attributes:
        modules: path -> stats of the module.
        total: stats of the whole network.
        reason: why the network could not run to its end; '' if it could.
    """

    modules: dict[str, ModuleStats]
    total: ModuleStats
    reason: str = ''


def dry_run(
    model: nn.Module,
    modules: dict[str, nn.Module],
    size: tuple[int, int],
    *,
    batch: int = 1,
    training: bool = False,
) -> DryRun:
    """Run a network with tensors that have a shape and no values.

    Args:
        model: a detector of mmdet or torchvision, a segmentor of mmseg, or any network that takes
            images (N, C, H, W). It is not changed.
        modules: path -> module, for those with stats of their own.
        size: H and W of the images.
        batch: N.
        training: run with gradients, and with as many boxes in the heads as in training.

    Raises:
        ValueError: a module of `modules` cannot take its input, or its input is not one map.
    """
    stats = DryRun({path: ModuleStats() for path in modules}, ModuleStats())
    running: list[str] = []  # paths of the modules in whose forward the run is, outermost first
    flops_before: list[int] = []
    counter = flop_counter()
    counted: dict[int, Tensor] = {}  # storage -> a tensor, so that no storage is freed and reused

    def enter(path: str, module: nn.Module, inputs: tuple) -> None:
        running.append(path)
        stats.modules[path].input_shapes.append(tuple(inputs[0].shape) if _is_map(inputs) else ())
        flops_before.append(counter.get_total_flops())

    def leave(path: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        running.pop()
        stats.modules[path].macs += (counter.get_total_flops() - flops_before.pop()) // 2

    def pack(t: Tensor) -> None:
        storage = t.untyped_storage()
        if storage._cdata not in counted and not isinstance(t, nn.Parameter):
            counted[storage._cdata] = t
            nbytes = storage.nbytes()
            for item in (stats.total, *(stats.modules[path] for path in set(running))):
                item.saved_bytes += nbytes
                item.largest_saved = max(item.largest_saved, nbytes)

    with ExitStack() as stack:
        stack.enter_context(unchanged(model))
        for path, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(enter, path)).remove)
            stack.callback(module.register_forward_hook(partial(leave, path)).remove)
        if training:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t))
        else:
            stack.enter_context(torch.no_grad())
        image = stack.enter_context(fake_images(model, size, batch))
        for value in (*model.parameters(), *model.buffers()):
            fake_value = image.fake_mode.from_tensor(value)
            counted[fake_value.untyped_storage()._cdata] = fake_value
        stack.enter_context(counter)
        try:
            run_parts(model, image, _boxes(model) if training else TESTING)
        except NotOneMap as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # a user's network may do anything with fake tensors
            if running and type(error).__name__ not in _NEEDS_VALUES:
                path = running[-1]
                place = getattr(getattr(modules[path], 'plugin', None), 'place', '')
                shape = stats.modules[path].input_shapes[-1]
                raise ValueError(
                    f'{path} {place} gets a map {shape} that it cannot take: {error}'
                ) from error
            text = str(error).strip()
            stats.reason = text.splitlines()[0] if text else repr(error)
    stats.total.macs = counter.get_total_flops() // 2
    return stats


@contextmanager
def fake_images(model: nn.Module, size: tuple[int, int], batch: int = 1) -> Iterator[Tensor]:
    """Fake images (N, C, H, W) for a network, which runs with fake tensors within."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    shape = (batch, input_channels(model), *size)
    logger = logging.getLogger('torch._subclasses.fake_tensor')  # logs what it raises, too
    with (
        ExitStack() as stack,
        _plain_forwards(model),
        _disabled_operators(),
        _fake_mode(),
    ):
        stack.callback(setattr, logger, 'disabled', logger.disabled)
        logger.disabled = True
        yield torch.empty(shape, dtype=like.dtype, device=like.device)


def _fake_mode() -> AbstractContextManager:
    """Tensors without values; one value that is read from a tensor is a symbol.

    Heads of ultralytics fill tensors with strides, which they keep in a tensor.
    """
    shapes = import_module('torch.fx.experimental.symbolic_shapes')  # 0.4 s
    env = shapes.ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=False)
    return fake_tensor_mode(env)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore modes, `requires_grad` and all attributes of modules afterwards.

    Networks keep what they have computed, such as anchors; fake tensors must not be among them.
    """
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, values in attributes:
            vars(module).clear()
            vars(module).update(values)
        for module, values in buffers:
            module._buffers.clear()
            module._buffers.update(values)
        for parameter, requires_grad in grads:
            parameter.requires_grad = requires_grad


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes.

    The number of means in its preprocessor; else the input channels of the first convolution.
    """
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if mean is not None and mean.numel() > 1:
        return mean.numel()
    for module in getattr(model, 'backbone', model).modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if type(module).__name__ == 'Focus':  # YOLOX: four neighbouring pixels become channels
            return next(c for c in module.modules() if isinstance(c, nn.Conv2d)).in_channels // 4
    return 3


def run_parts(model: nn.Module, image: Tensor, boxes: tuple[int, int] = TESTING) -> None:
    """Run all parts of a detector or segmentor up to the raw outputs of its heads.

    Args:
        model: the network; one that is no detector or segmentor is called with the images.
        image: (N, C, H, W).
        boxes: numbers of boxes per image for box heads and for mask heads. They are all zero, as
            their positions do not change the cost.
    """
    if _is_torchvision_detector(model):
        _run_torchvision_detector(model, image, boxes)
        return
    if not hasattr(model, 'extract_feat'):
        model(image)
        return
    if hasattr(model, 'forward_transformer'):  # queries and keys need the size of each image
        from mmengine.structures import BaseDataElement

        sizes = dict(img_shape=image.shape[2:], batch_input_shape=image.shape[2:])
        model._forward(image, [BaseDataElement(metainfo=sizes) for _ in image])
        return
    maps = model.extract_feat(image)
    for name in 'rpn_head', 'bbox_head', 'decode_head', 'auxiliary_head':
        head = getattr(model, name, None)
        previous = ()  # in a cascade of decode heads, each also gets the output of the previous one
        for part in head if isinstance(head, nn.ModuleList) else [head] if head else []:
            output = part(maps, *previous)
            previous = (output,) if name == 'decode_head' else ()
    roi_head = getattr(model, 'roi_head', None)
    stages = range(roi_head.num_stages) if hasattr(roi_head, 'num_stages') else [None]
    for stage in stages if roi_head is not None else ():
        stage_args = () if stage is None else (stage,)
        if getattr(roi_head, 'with_bbox', False):
            roi_head._bbox_forward(*stage_args, maps, image.new_zeros(boxes[0] * len(image), 5))
        if getattr(roi_head, 'with_mask', False):
            roi_head._mask_forward(*stage_args, maps, image.new_zeros(boxes[1] * len(image), 5))


def _is_torchvision_detector(model: nn.Module) -> bool:
    parts = 'roi_heads', 'anchor_generator'
    whole = hasattr(model, 'backbone') and hasattr(model, 'transform')
    return whole and any(hasattr(model, part) for part in parts)


def _run_torchvision_detector(model: nn.Module, image: Tensor, boxes: tuple[int, int]) -> None:
    """Run backbone and heads, without the resizing before and the boxes in between."""
    maps = model.backbone(image)
    maps = list(maps.values()) if isinstance(maps, dict) else [maps]
    if not hasattr(model, 'roi_heads'):
        model.head(maps)
        return
    model.rpn.head(maps)
    heads = model.roi_heads
    for kind, number in ('box', boxes[0]), ('mask', boxes[1]), ('keypoint', boxes[1]):
        if (pool := getattr(heads, f'{kind}_roi_pool', None)) is not None:
            shape = (number * len(image), maps[0].shape[1], *pool.output_size)
            x = getattr(heads, f'{kind}_head')(maps[0].new_empty(shape))
            getattr(heads, f'{kind}_predictor')(x)


def _boxes(model: nn.Module) -> tuple[int, int]:
    """Boxes per image in training, for box heads and for mask heads of a two-stage detector."""
    cfg = getattr(getattr(model, 'roi_head', None), 'train_cfg', None)
    sampler = cfg.get('sampler') if cfg else None
    if not sampler:
        return _TRAINING
    return sampler['num'], round(sampler['num'] * sampler['pos_fraction'])


def _is_map(inputs: tuple) -> bool:
    return bool(inputs) and isinstance(inputs[0], Tensor)


@contextmanager
def _plain_forwards(model: nn.Module) -> Iterator[None]:
    """Replace modules of compiled operators, which need values, by forwards of the same cost."""
    replaced = []
    for module in model.modules():
        forward: Callable | None = None
        if hasattr(module, 'conv_offset') and hasattr(module, 'deform_groups'):
            forward = partial(_plain_convolution, module)
        elif hasattr(module, 'roi_layers') and hasattr(module, 'featmap_strides'):
            forward = partial(_empty_roi, module)
        if forward is not None:
            module.forward = forward
            replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


@contextmanager
def _disabled_operators() -> Iterator[None]:
    """Disable MMCV's compiled operators, which would access memory that fake tensors do not have.

    Most write into an output that was allocated before, whose shape is right without them. The
    others raise, as the shape that they return depends on values.
    """
    try:
        operators = import_module('mmcv._ext')
    except ImportError:  # built without them
        yield
        return
    originals = {name: value for name, value in vars(operators).items() if callable(value)}
    for name in originals:
        writes = name.endswith(('_forward', '_backward'))
        setattr(operators, name, _write_nothing if writes else partial(_refuse, name))
    try:
        yield
    finally:
        for name, value in originals.items():
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
    offsets = conv.conv_offset(x)
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    y = nn.functional.conv2d(x, conv.weight, getattr(conv, 'bias', None), *geometry)
    return y + 0 * (offsets * offsets).sum()  # saved for backward, as the operator saves them


def _empty_roi(extractor: nn.Module, maps: tuple[Tensor, ...], rois: Tensor, *_, **__) -> Tensor:
    size = extractor.roi_layers[0].output_size
    return maps[0].new_empty(len(rois), extractor.out_channels, *size)
