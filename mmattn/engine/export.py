"""Trained networks as programs for other runtimes, compared with torch before they are used."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.datasets.files import read_image
from mmattn.errors import MmattnError, UsageError, WriteError
from mmattn.ops import deform_conv
from mmattn.zoo.index import resolve

from .predictor import Predictor
from .runner import check_writable

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
        left_out: what of the network is not in the program, and why; '' if all is.
    """

    path: Path
    inputs: list[str]
    outputs: list[str]
    differences: dict[tuple[int, int], float]
    left_out: str


class _Whole(nn.Module):
    """Pixels to what heads say: (N, 3, H, W) as read, BGR from 0 to 255, -> tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        preprocessor = model.data_preprocessor
        self.flip = bool(
            getattr(preprocessor, '_channel_conversion', False)
            or getattr(preprocessor, 'channel_conversion', False)
        )
        normal = getattr(preprocessor, '_enable_normalize', False)
        mean = preprocessor.mean if normal else torch.zeros(3, 1, 1)
        std = preprocessor.std if normal else torch.ones(3, 1, 1)
        self.register_buffer('mean', mean.detach().clone())
        self.register_buffer('std', std.detach().clone())

    def features(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.flip:
            image = image.flip(1)
        maps = self.model.backbone((image - self.mean) / self.std)
        return self.model.neck(maps) if getattr(self.model, 'neck', None) is not None else maps


class Segmentor(_Whole):
    """-> logits (N, classes, H, W)."""

    names = ('logits',)
    left_out = ''

    def forward(self, image: Tensor) -> Tensor:
        head = self.model.decode_head
        logits = head(self.features(image))
        return nn.functional.interpolate(
            logits, size=image.shape[2:], mode='bilinear', align_corners=head.align_corners
        )


class Detector(_Whole):
    """-> the maps of backbone and neck, and the scores and deltas of the first head, of each."""

    left_out = (
        'boxes, their selection and, of two-stage detectors, what follows the proposals: mmdet '
        'computes these with operators compiled by mmcv, which no exchange format has. mmdeploy '
        'exports whole detectors.'
    )

    def __init__(self, model: nn.Module, maps: int) -> None:
        super().__init__(model)
        self.head = getattr(model, 'rpn_head', None) or model.bbox_head
        kinds = ('feature', 'score', 'delta')
        self.names = tuple(f'{kind}{i}' for kind in kinds for i in range(maps))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.features(image)
        scores, deltas = self.head(maps)
        return (*maps, *scores, *deltas)


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

    The input is `image`, (N, 3, H, W) float32 as OpenCV reads it, BGR from 0 to 255; normalisation
    is part of the program. A segmentor gives `logits` (N, classes, H, W). A detector gives the maps
    of backbone and neck, and what its first head says of each: `feature0`..., `score0`..., and
    `delta0`....

    Args:
        config, checkpoint: the network and its weights, as `mmattn.zoo.load_model` takes them.
        kind: 'onnx' or 'torch'.
        out: the file; None for `<config>.onnx` or `.pt2`.
        images: that the program is compared with torch on; None for noise of two sizes.
        attention: blocks to add; by default those that the checkpoint was trained with.
        options: changes to the config, dotted keys; a dict or `key=value` strings.

    Raises:
        UsageError: a format or a network that cannot be exported; says which part.
        Differs: the program's outputs differ from the network's; the file is not written.
        WriteError: the file cannot be written.
    """
    if kind not in FORMATS:
        raise UsageError(f'--format {kind}: allowed are {", ".join(FORMATS)}.')
    out = Path(out or f'{Path(config).stem}{FORMATS[kind]}')
    if out.suffix != FORMATS[kind]:
        raise UsageError(f'--out {out}: the name of a {kind} file ends in {FORMATS[kind]}.')
    check_writable(out.parent, '--out')
    pictures = [_batch(read_image(path)) for path in images or []]
    predictor = Predictor.of(*resolve(config, checkpoint), options, attention, 'cpu')
    divisor = getattr(predictor.model.data_preprocessor, 'pad_size_divisor', 1)
    pictures = [_padded(x, divisor) for x in pictures] or [
        torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 255 for size in _SIZES
    ]
    with torch.no_grad():
        program = _program(predictor.model, pictures[0], config)
        stride = max(-(-pictures[0].shape[2] // m.shape[2]) for m in program.features(pictures[0]))
        for x in pictures:
            if min(x.shape[2:]) < 2 * stride:
                raise UsageError(
                    f'an image of {x.shape[3]}x{x.shape[2]} is too small to compare with: both '
                    f'sides of what the program takes are {2 * stride} and more.'
                )
        wanted = [_list(program(x)) for x in pictures]
        _gather_deformations(program)
        write = _onnx if kind == 'onnx' else _torch
        data, run = write(program, pictures[0], _shapes(divisor, stride), config)
        found = [_difference(y, run(x)) for x, y in zip(pictures, wanted, strict=True)]
    worst = next((d for d in sorted(found, reverse=True) if not d <= _TOLERANCE), None)
    if worst is not None:
        raise Differs(
            f'{config} as {kind} differs from torch by {worst:.1e} of the largest value, allowed '
            f'are {_TOLERANCE:.0e}; {out} was not written.'
        )
    try:
        data(out)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WriteError(f'cannot write {out}: {reason}. Choose another --out.') from error
    differences: dict[tuple[int, int], float] = {}
    for x, difference in zip(pictures, found, strict=True):
        size = x.shape[2], x.shape[3]
        differences[size] = max(difference, differences.get(size, 0.0))
    return Exported(out, ['image'], list(program.names), differences, program.left_out)


def _program(model: nn.Module, image: Tensor, config: str | Path) -> nn.Module:
    if hasattr(model, 'decode_head'):
        if isinstance(model.decode_head, nn.ModuleList):
            raise UsageError(f'{config}: cascades of decode heads are not exported.')
        return Segmentor(model).eval()
    if getattr(model, 'rpn_head', None) is None and not hasattr(model, 'bbox_head'):
        raise UsageError(f'{config}: {type(model).__name__} has no head that is known here.')
    return Detector(model, len(_Whole(model).features(image))).eval()


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
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


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
    for (height, width), difference in found.differences.items():
        lines.append(f'  {width}x{height}: greatest difference to torch {difference:.1e}')
    if found.left_out:
        lines.append(f'  not in it: {found.left_out}')
    return '\n'.join(lines)
