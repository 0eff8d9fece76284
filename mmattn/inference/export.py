"""Export trained networks to ONNX and torch.export, verified against torch before writing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.config.published_weights import resolve
from mmattn.datasets.loading import Loaded, check_file
from mmattn.errors import DataError, MmattnError, UsageError, cannot_write
from mmattn.files import check_writable

from .export_formats import FORMATS, as_list, dynamic_shapes, export_onnx, export_torch
from .export_program import build_program, replace_deformable_convs
from .export_scope import (
    InferComparison,
    compare_with_infer,
    denormalise,
    noise_image,
    preprocess,
    steps_outside,
)
from .predictor import Predictor

_TOLERANCE = 1e-3  # relative to the largest value; fp32 sums in another order
_SIZES = ((320, 384), (352, 288))  # H and W of noise, if no images are given


class ExportMismatch(MmattnError):
    """An exported program computes something else than its network."""


@dataclass
class ExportResult:
    """An exported program and its differences to the network.

    Attributes:
        path: file of the program.
        inputs: names of the inputs.
        outputs: names of the outputs.
        differences: (H, W) -> largest difference of any output, relative to its largest value.
        left_out: parts of the network and steps of its config that are not in the program, with
            reasons; '' if there are none.
        input_format: description of the input.
        comparisons: for a segmentor, comparison with infer for each image.
    """

    path: Path
    inputs: list[str]
    outputs: list[str]
    differences: dict[tuple[int, int], float]
    left_out: str
    input_format: str = ''
    comparisons: list[InferComparison] = field(default_factory=list)


class _ExampleInput(NamedTuple):
    """An image on which program and network are compared.

    Attributes:
        image: input of the program, (1, C, H, W).
        loaded: image as loaded; None for noise that skips the pipeline.
        unchanged: whether `image` is the image as loaded, at most padded.
    """

    image: Tensor
    loaded: Loaded | None
    unchanged: bool


def export(
    config: str | Path,
    checkpoint: str | Path | None,
    kind: str,
    *,
    out: str | Path | None = None,
    images: list[str | Path] | None = None,
    attention: str | None = None,
    options: dict | list[str] | None = None,
) -> ExportResult:
    """Export a network to ONNX or torch.export, with dynamic N, H and W.

    The input is `image`, (N, C, H, W) float32 as loaded by the config, by default BGR from 0 to
    255; normalisation is part of the program. A segmentor returns `logits` (N, classes, H, W). A
    detector returns the maps of backbone and neck and the outputs of its first head for each:
    `feature0`..., `score0`..., `delta0`..., and `extra0`... of heads with more outputs.

    The program is compared with the network. A segmentor's is also compared with `infer`, which
    runs the whole config: for the image as loaded, and with the steps outside the program, such as
    sliding windows, applied around it.

    Args:
        config, checkpoint: network and weights, as for `mmattn.load_model`.
        kind: 'onnx' or 'torch'.
        out: file to write; None for `<config>.onnx` or `.pt2`.
        images: images on which outputs are compared; None for noise of two sizes.
        attention: blocks to add; by default those that the checkpoint was trained with.
        options: changes to the config, dotted keys; a dict or `key=value` strings.

    Raises:
        UsageError: the format or a part of the network cannot be exported.
        DataError: an image cannot be read.
        ExportMismatch: outputs differ from the network's, or from infer's though nothing is left
            out; the file is not written.
        WriteError: the file cannot be written.
    """
    if not hasattr(torch.export, 'Dim'):  # before 2.2
        raise UsageError(
            f'export needs exporters that torch {torch.__version__} lacks. Run it where torch 2.13 '
            'is installed, which reads checkpoints of trainings here.'
        )
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
    inputs = _example_inputs(predictor, images, divisor)
    with torch.no_grad():
        program = build_program(predictor.model, inputs[0].image, config)
        maps = program.features(inputs[0].image)
        stride = max(-(-inputs[0].image.shape[2] // m.shape[2]) for m in maps)
        for x, *_ in inputs:
            if min(x.shape[2:]) < 2 * stride:
                raise UsageError(
                    f'an image of {x.shape[3]}x{x.shape[2]} is too small to compare with: both '
                    f'sides of the input must be {2 * stride} and more.'
                )
        expected = [as_list(program(x)) for x, *_ in inputs]
        samples = [predictor.segments and x.loaded and predictor(x.loaded) for x in inputs]
        replace_deformable_convs(program)
        exporter = export_onnx if kind == 'onnx' else export_torch
        shapes = dynamic_shapes(divisor, stride)
        write, run = exporter(program, inputs[0].image, shapes, config)
        errors = [_difference(y, run(x.image)) for x, y in zip(inputs, expected, strict=True)]
        _check_differences(errors, f'{config} as {kind} differs from torch', out)
        missing = [*program.left_out, *steps_outside(predictor)]
        comparisons = [
            compare_with_infer(predictor, x.loaded, sample, x.image if x.unchanged else None, run)
            for x, sample in zip(inputs, samples, strict=True)
            if sample
        ]
    complete = [c.complete for c in comparisons if c.complete is not None]
    condition = ' with the steps outside it applied' if missing else ''
    _check_differences(
        complete, f'{config} as {kind}{condition} differs from what infer computes', out
    )
    if not missing:
        logits = [comparison.logits for comparison in comparisons]
        _check_differences(logits, f'{config} as {kind} differs from what infer computes', out)
    try:
        write(out)
    except OSError as error:
        raise cannot_write(out, error, 'Choose another --out.') from error
    differences: dict[tuple[int, int], float] = {}
    for x, error in zip(inputs, errors, strict=True):
        size = x.image.shape[2], x.image.shape[3]
        differences[size] = max(error, differences.get(size, 0.0))
    return ExportResult(
        path=out,
        inputs=['image'],
        outputs=list(program.names),
        differences=differences,
        left_out='; '.join(missing),
        input_format=_input_format(predictor),
        comparisons=comparisons,
    )


def _check_differences(differences: list[float], message: str, out: Path) -> None:
    worst = next((d for d in sorted(differences, reverse=True) if not d <= _TOLERANCE), None)
    if worst is not None:
        raise ExportMismatch(
            f'{message} by {worst:.1e} of the largest value, allowed are {_TOLERANCE:.0e}; {out} '
            'was not written.'
        )


def _example_inputs(predictor: Predictor, images: list | None, divisor: int) -> list[_ExampleInput]:
    """Images, or noise of two sizes, as inputs of the program.

    A segmentor's program gets the image as loaded; a detector's, which has no boxes, gets it after
    the transforms and padding of the config.
    """
    preprocessor, inputs = predictor.model.data_preprocessor, []
    for image in images or [noise_image(predictor, size) for size in _SIZES]:
        try:
            loaded = predictor.load(image)
            prepared = predictor.prepare(loaded)
        except DataError:
            if images:
                raise
            x = torch.as_tensor(image, dtype=torch.float32)  # the pipeline needs a file
            x = x[..., None] if x.dim() == 2 else x
            inputs.append(_ExampleInput(x.permute(2, 0, 1)[None], None, False))
            continue
        x = _to_batch(loaded.image)
        unchanged = predictor.segments and x.shape[1] == predictor.channels
        if not images and not predictor.segments:
            x = denormalise(preprocess(predictor, x[0]), preprocessor)
        elif not unchanged:
            x = denormalise(preprocess(predictor, prepared), preprocessor)
        inputs.append(_ExampleInput(_pad(x, divisor), loaded, unchanged))
    return inputs


def _input_format(predictor: Predictor) -> str:
    """Description of the input of a program."""
    name = type(predictor.reader.loader).__name__
    if predictor.reader.image_format == ('uint8', 3):
        order = f'BGR from 0 to 255, as {name} reads it'
    else:
        order = f'as {predictor.reader.descriptions[predictor.reader.first]} reads it'
    return f'(N, {predictor.channels}, H, W) float32, {order}'


def _to_batch(image: np.ndarray) -> Tensor:
    image = image[..., None] if image.ndim == 2 else image
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def _pad(x: Tensor, divisor: int) -> Tensor:
    """Pad both sides to multiples of the divisor."""
    bottom, right = (-side % divisor for side in x.shape[2:])
    return nn.functional.pad(x, (0, right, 0, bottom))


def _difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Largest difference of any output, relative to its largest value."""
    pairs = zip(expected, actual, strict=True)
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)


def describe(result: ExportResult) -> str:
    """Describe an exported program and its comparisons, in lines."""
    lines = [f'{result.path}: image -> {", ".join(result.outputs)}']
    if result.input_format:
        lines.append(f'  image: {result.input_format}')
    for (height, width), difference in result.differences.items():
        lines.append(f'  {width}x{height}: largest difference to torch {difference:.1e}')
    if result.left_out:
        lines.append(f'  not in it: {result.left_out}')
    for comparison in result.comparisons:
        height, width = comparison.size
        line = f'  {width}x{height}: difference to infer'
        if comparison.logits == comparison.logits:  # not nan
            percent = 100 * comparison.labels
            line += f' {comparison.logits:.1e} of the largest logit, {percent:.1f} % other labels'
        if result.left_out:
            complete = comparison.complete
            text = 'not compared' if complete is None else f'{complete:.1e}'
            line += f'; with the steps outside it applied: {text}'
        lines.append(line.replace('infer;', 'infer'))
    return '\n'.join(lines)
