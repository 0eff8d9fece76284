"""Trained networks as programs for other runtimes, compared with torch before they are used."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.config.published_weights import resolve
from mmattn.datasets.loading import Loaded, check_file
from mmattn.errors import DataError, MmattnError, UsageError, WriteError
from mmattn.files import check_writable
from mmattn.models.logits import predicted_logits
from mmattn.ops import deform_conv

from .export_scope import Comparison, as_read, compare_with_infer, left_out, noise, normalised
from .predictor import Predictor

FORMATS = {'onnx': '.onnx', 'torch': '.pt2'}
_TOLERANCE = 1e-3  # of the largest value; fp32 sums in another order
_SIZES = ((320, 384), (352, 288))  # H and W that are compared where no images are given


class Differs(MmattnError):
    """A program computes something else than the network it was made of."""


@dataclass
class Exported:
    """A program and how it compares.

    Attributes:
        path: the file.
        inputs, outputs: names.
        differences: (H, W) -> the greatest difference of any output, over its largest value.
        left_out: what of the network, and of what its config does, is not in the program, and why;
            '' if all is.
        input_format: what the program takes, in words.
        comparisons: of a segmentor, with what infer computes for each image.
    """

    path: Path
    inputs: list[str]
    outputs: list[str]
    differences: dict[tuple[int, int], float]
    left_out: str
    input_format: str = ''
    comparisons: list[Comparison] = field(default_factory=list)


class _Input(NamedTuple):
    """What a program is compared on.

    Attributes:
        image: (1, C, H, W) that the program takes.
        loaded: the image; None of noise that only the network takes.
        whole: whether `image` is the image as it is read.
    """

    image: Tensor
    loaded: Loaded | None
    whole: bool


class _Whole(nn.Module):
    """Pixels to what heads say: (N, C, H, W) as the config reads them -> tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        preprocessor = model.data_preprocessor
        self.flip = bool(
            getattr(preprocessor, '_channel_conversion', False)
            or getattr(preprocessor, 'channel_conversion', False)
        )
        normal = getattr(preprocessor, '_enable_normalize', False)
        mean = preprocessor.mean if normal else torch.zeros(1, 1, 1)
        std = preprocessor.std if normal else torch.ones(1, 1, 1)
        self.register_buffer('mean', mean.detach().clone())
        self.register_buffer('std', std.detach().clone())

    def normalised(self, image: Tensor) -> Tensor:
        image = image.flip(1) if self.flip and image.shape[1] == 3 else image
        return (image - self.mean) / self.std

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.backbone(self.normalised(image))
        return self.model.neck(maps) if getattr(self.model, 'neck', None) is not None else maps


class Segmentor(_Whole):
    """-> logits (N, classes, H, W)."""

    names = ('logits',)
    left_out = ()

    def forward(self, image: Tensor) -> Tensor:
        logits = predicted_logits(self.model, self.normalised(image))
        return nn.functional.interpolate(
            logits,
            size=image.shape[2:],
            mode='bilinear',
            align_corners=self.model.decode_head.align_corners,
        )


class Detector(_Whole):
    """-> the maps of backbone and neck, and the scores and deltas of the first head, of each."""

    left_out = (
        'boxes, their selection and, of two-stage detectors, what follows the proposals: mmdet '
        'computes these with operators compiled by mmcv, which no exchange format has. mmdeploy '
        'exports whole detectors',
    )

    def __init__(self, model: nn.Module, maps: int, parts: int, levels: int) -> None:
        super().__init__(model)
        self.head = getattr(model, 'rpn_head', None) or model.bbox_head
        kinds = [('feature', maps), ('score', levels), ('delta', levels)]
        kinds += [(f'extra{"" if i == 3 else f"{i - 2}_"}', levels) for i in range(3, parts + 1)]
        self.names = tuple(f'{kind}{i}' for kind, count in kinds for i in range(count))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.features(image)
        return (*maps, *(m for part in self.head(maps) for m in part))


def export(
    config: str | Path,
    checkpoint: str | Path | None,
    kind: str,
    *,
    out: str | Path | None = None,
    images: list[str | Path] | None = None,
    attention: str | None = None,
    options: dict | list[str] | None = None,
) -> Exported:
    """Write a network as ONNX or as a program of torch.export, with dynamic N, H and W.

    The input is `image`, (N, C, H, W) float32 as the config's loader gives it, by default BGR from
    0 to 255; normalisation is part of the program. A segmentor gives `logits` (N, classes, H, W). A
    detector gives the maps of backbone and neck, and what its first head says of each:
    `feature0`..., `score0`..., `delta0`..., and `extra0`... of heads that say more.

    The program is compared with the network and, of a segmentor, with what `infer` computes of the
    same image by the whole of the config: as the image is read, and with all that is not in the
    program, such as sliding windows, done outside of it.

    Args:
        config, checkpoint: the network and its weights, as `mmattn.load_model` takes them.
        kind: 'onnx' or 'torch'.
        out: the file; None for `<config>.onnx` or `.pt2`.
        images: that the program is compared on; None for noise of two sizes.
        attention: blocks to add; by default those that the checkpoint was trained with.
        options: changes to the config, dotted keys; a dict or `key=value` strings.

    Raises:
        UsageError: a format or a network that cannot be exported; says which part.
        DataError: an image cannot be read.
        Differs: the program's outputs differ from the network's, or from what the config computes
            though nothing is left out; the file is not written.
        WriteError: the file cannot be written.
    """
    if kind not in FORMATS:
        raise UsageError(f'--format {kind}: allowed are {", ".join(FORMATS)}.')
    out = Path(out or f'{Path(config).stem}{FORMATS[kind]}')
    if out.suffix != FORMATS[kind]:
        raise UsageError(f'--out {out}: the name of a {kind} file ends in {FORMATS[kind]}.')
    check_writable(out.parent, '--out')
    for path in images or []:
        check_file(path)
    predictor = Predictor.of(*resolve(config, checkpoint, attention), options, attention, 'cpu')
    divisor = getattr(predictor.model.data_preprocessor, 'pad_size_divisor', 1)
    inputs = _inputs(predictor, images, divisor)
    with torch.no_grad():
        program = _program(predictor.model, inputs[0].image, config)
        maps = program.features(inputs[0].image)
        stride = max(-(-inputs[0].image.shape[2] // m.shape[2]) for m in maps)
        for x, *_ in inputs:
            if min(x.shape[2:]) < 2 * stride:
                raise UsageError(
                    f'an image of {x.shape[3]}x{x.shape[2]} is too small to compare with: both '
                    f'sides of what the program takes are {2 * stride} and more.'
                )
        wanted = [_list(program(x)) for x, *_ in inputs]
        samples = [predictor.segments and one.loaded and predictor(one.loaded) for one in inputs]
        _gather_deformations(program)
        write = _onnx if kind == 'onnx' else _torch
        data, run = write(program, inputs[0].image, _shapes(divisor, stride), config)
        found = [_difference(y, run(one.image)) for one, y in zip(inputs, wanted, strict=True)]
        _refuse_differences(found, f'{config} as {kind} differs from torch', out)
        missing = [*program.left_out, *left_out(predictor)]
        compared = [
            compare_with_infer(predictor, one.loaded, sample, one.image if one.whole else None, run)
            for one, sample in zip(inputs, samples, strict=True)
            if sample
        ]
    done = [one.complete for one in compared if one.complete is not None]
    how = ', what is not in it done outside,' if missing else ''
    _refuse_differences(done, f'{config} as {kind}{how} differs from what infer computes', out)
    if not missing:
        alone = [one.logits for one in compared]
        _refuse_differences(alone, f'{config} as {kind} differs from what infer computes', out)
    try:
        data(out)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WriteError(f'cannot write {out}: {reason}. Choose another --out.') from error
    differences: dict[tuple[int, int], float] = {}
    for one, difference in zip(inputs, found, strict=True):
        size = one.image.shape[2], one.image.shape[3]
        differences[size] = max(difference, differences.get(size, 0.0))
    text = '; '.join(missing)
    return Exported(
        out, ['image'], list(program.names), differences, text, _input_format(predictor), compared
    )


def _refuse_differences(found: list[float], what: str, out: Path) -> None:
    worst = next((d for d in sorted(found, reverse=True) if not d <= _TOLERANCE), None)
    if worst is not None:
        raise Differs(
            f'{what} by {worst:.1e} of the largest value, allowed are {_TOLERANCE:.0e}; {out} was '
            'not written.'
        )


def _inputs(predictor: Predictor, images: list | None, divisor: int) -> list[_Input]:
    """Images, or noise of two sizes, as a program takes them.

    A segmentor's program is fed with the image as it is read; a detector's, whose boxes are not in
    it, with what the steps of the config and its padding make of it.
    """
    preprocessor, found = predictor.model.data_preprocessor, []
    for image in images or [noise(predictor, size) for size in _SIZES]:
        try:
            loaded = predictor.load(image)
            prepared = predictor.prepare(loaded)
        except DataError:
            if images:
                raise
            x = torch.as_tensor(image, dtype=torch.float32)  # steps that want a file
            x = x[..., None] if x.dim() == 2 else x
            found.append(_Input(x.permute(2, 0, 1)[None], None, False))
            continue
        x = _batch(loaded.image)
        whole = predictor.segments and x.shape[1] == predictor.channels
        if not images and not predictor.segments:
            x = as_read(normalised(predictor, x[0]), preprocessor)
        elif not whole:
            x = as_read(normalised(predictor, prepared), preprocessor)
        found.append(_Input(_padded(x, divisor), loaded, whole))
    return found


def _input_format(predictor: Predictor) -> str:
    """What a program takes, in words."""
    name = type(predictor.reader.loader).__name__
    if predictor.reader.image_format == ('uint8', 3):
        order = f'BGR from 0 to 255, as {name} reads it'
    else:
        order = f'as {predictor.reader.descriptions[predictor.reader.first]} reads it'
    return f'(N, {predictor.channels}, H, W) float32, {order}'


def _program(model: nn.Module, image: Tensor, config: str | Path) -> nn.Module:
    if hasattr(model, 'decode_head'):
        if isinstance(model.decode_head, nn.ModuleList):
            raise UsageError(
                f'{config}: cascades of decode heads, here '
                f'{", ".join(type(head).__name__ for head in model.decode_head)}, are not exported.'
            )
        return Segmentor(model).eval()
    head = getattr(model, 'rpn_head', None) or getattr(model, 'bbox_head', None)
    if head is None or not hasattr(model, 'backbone'):
        raise UsageError(f'{config}: {type(model).__name__} has no head that is known here.')
    maps = _Whole(model).features(image)
    try:
        outputs = head(maps)
        sound = all(isinstance(m, Tensor) and m.dim() == 4 for part in outputs for m in part)
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):
        sound = False
    if not sound or len(outputs) < 2 or {len(part) for part in outputs} != {len(outputs[0])}:
        raise UsageError(
            f'{config}: {type(head).__name__} does not give maps of scores and boxes for each map '
            'of the backbone, so it is not exported.'
        )
    return Detector(model, len(maps), len(outputs), len(outputs[0])).eval()


def _gather_deformations(program: nn.Module) -> None:
    """MMCV's deformable convolutions as gathering, for which no operator needs to be compiled."""
    for module in program.modules():
        if hasattr(module, 'conv_offset') and hasattr(module, 'deform_groups'):
            module.forward = partial(_deformed, module)


def _deformed(conv: nn.Module, x: Tensor) -> Tensor:
    found = conv.conv_offset(x)
    place = dict(stride=conv.stride[0], padding=conv.padding[0], dilation=conv.dilation[0])
    if not type(conv).__name__.startswith('Modulated'):
        return deform_conv(x, found, conv.weight, **place)
    *moves, mask = found.chunk(3, 1)
    return deform_conv(x, torch.cat(moves, 1), conv.weight, conv.bias, mask.sigmoid(), **place)


def _batch(image: np.ndarray) -> Tensor:
    image = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def _padded(x: Tensor, divisor: int) -> Tensor:
    """To sides that the detector pads to."""
    bottom, right = (-side % divisor for side in x.shape[2:])
    return nn.functional.pad(x, (0, right, 0, bottom))


def _shapes(divisor: int, stride: int) -> dict:
    """Dynamic N, H and W; sides are multiples of what the network pads to.

    From twice the stride of the coarsest map on: a map of one pixel is another case for exporters.
    """
    dim, least = torch.export.Dim, 2 * stride
    if divisor == 1:
        height, width = dim('height', min=least), dim('width', min=least)
    else:
        least = -(-least // divisor)
        height, width = divisor * dim('rows', min=least), divisor * dim('columns', min=least)
    return dict(image={0: dim('batch', min=1), 2: height, 3: width})


def _exported(program: nn.Module, example: Tensor, shapes: dict, config: str | Path):
    example = torch.cat([example, example])  # of two images: one would be taken for a constant
    try:
        with _quiet():
            return torch.export.export(program, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever a layer does that a graph cannot hold
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise UsageError(f'{config} cannot be exported: {reason}') from error


def _torch(program, example, shapes, config) -> tuple[Callable, Callable]:
    found = _exported(program, example, shapes, config)
    module = found.module()
    return lambda path: torch.export.save(found, path), lambda x: _list(module(x))


def _onnx(program, example, shapes, config) -> tuple[Callable, Callable]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            '--format onnx: onnx, onnxscript and onnxruntime are needed. Run: pip install onnx '
            'onnxscript onnxruntime'
        ) from error
    graph = _exported(program, example, shapes, config)
    with _quiet():
        made = torch.onnx.export(
            graph,
            dynamo=True,
            input_names=['image'],
            output_names=list(program.names),
            verbose=False,
        )
    data = made.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(y) for y in session.run(None, dict(image=x.numpy()))]

    return lambda path: path.write_bytes(data), run


def _list(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def _difference(wanted: list[Tensor], found: list[Tensor]) -> float:
    pairs = zip(wanted, found, strict=True)
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of what is their own business."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def describe(found: Exported) -> str:
    """What was written, in lines."""
    lines = [f'{found.path}: image -> {", ".join(found.outputs)}']
    if found.input_format:
        lines.append(f'  image: {found.input_format}')
    for (height, width), difference in found.differences.items():
        lines.append(f'  {width}x{height}: greatest difference to torch {difference:.1e}')
    if found.left_out:
        lines.append(f'  not in it: {found.left_out}')
    for one in found.comparisons:
        line = f'  {one.size[1]}x{one.size[0]}: difference to infer'
        if one.logits == one.logits:
            line += f' {one.logits:.1e} of the largest logit, {100 * one.labels:.1f} % other labels'
        if found.left_out:
            rest = 'not compared' if one.complete is None else f'{one.complete:.1e}'
            line += f'; with what is not in it done outside: {rest}'
        lines.append(line.replace('infer;', 'infer'))
    return '\n'.join(lines)
