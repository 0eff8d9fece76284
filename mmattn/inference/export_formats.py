"""Export a module with torch.export or as ONNX, with dynamic shapes."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mmattn.errors import UsageError

FORMATS = {'onnx': '.onnx', 'torch': '.pt2'}


def dynamic_shapes(divisor: int, stride: int) -> dict:
    """Dynamic N, H and W; sides are multiples of the padding divisor of the network.

    They start at twice the stride of the coarsest map: exporters specialise maps of one pixel.
    """
    dim, minimum = torch.export.Dim, 2 * stride
    if divisor == 1:
        height, width = dim('height', min=minimum), dim('width', min=minimum)
    else:
        minimum = -(-minimum // divisor)
        height = divisor * dim('rows', min=minimum)
        width = divisor * dim('columns', min=minimum)
    return dict(image={0: dim('batch', min=1), 2: height, 3: width})


def _export_graph(program: nn.Module, example: Tensor, shapes: dict, config: str | Path):
    example = torch.cat([example, example])  # a batch of one would be specialised
    try:
        with _quiet():
            return torch.export.export(program, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # anything that a layer cannot do in a graph
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise UsageError(f'{config} cannot be exported: {reason}') from error


def export_torch(program, example, shapes, config) -> tuple[Callable, Callable]:
    """Returns functions that write the program and run it."""
    exported = _export_graph(program, example, shapes, config)
    module = exported.module()
    return lambda path: torch.export.save(exported, path), lambda x: as_list(module(x))


def export_onnx(program, example, shapes, config) -> tuple[Callable, Callable]:
    """Returns functions that write the program and run it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            '--format onnx: onnx, onnxscript and onnxruntime are needed. Run: pip install onnx '
            'onnxscript onnxruntime'
        ) from error
    graph = _export_graph(program, example, shapes, config)
    with _quiet():
        onnx_program = torch.onnx.export(
            graph,
            dynamo=True,
            input_names=['image'],
            output_names=list(program.names),
            verbose=False,
        )
    data = onnx_program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=['CPUExecutionProvider'])

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(y) for y in session.run(None, dict(image=x.numpy()))]

    return lambda path: path.write_bytes(data), run


def as_list(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs of a program, one or several, as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of exporters about their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
