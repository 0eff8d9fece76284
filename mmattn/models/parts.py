"""Backbone, neck and heads of a network: compiled, or with outputs in fp32.

What is between them, such as assigning targets, sampling and selecting boxes, is Python that
depends on values, and stays as it is.
"""

from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads.base_roi_head import BaseRoIHead
from torch import Tensor, nn

from mmattn.log import warn
from mmattn.torch_compat import COMPILE_APART, report_uncompiled

from .operators import adapt_operators

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, BaseRoIHead, BaseDetector)


def named_parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of each backbone, neck and head of a detector or segmentor.

    Args:
        network: parts are its children with parameters; of lists, RoI heads and detectors inside it
            theirs.
    """
    for name, child in network.named_children():
        if isinstance(child, _CONTAINERS):
            yield from ((f'{name}.{path}', part) for path, part in named_parts(child))
        elif next(child.parameters(), None) is not None and not hasattr(child, 'roi_layers'):
            yield name, child


def use_float_outputs(network: nn.Module) -> None:
    """Prepare a network for autocast to bfloat16.

    Outputs of heads become fp32: coordinates, losses and the choice of boxes need its precision.
    MMCV's compiled operators get fp32.
    """
    for path, part in named_parts(network):
        if 'head' in path:
            _forward_of(path, part).upcasts = True
    adapt_operators(network)


def compile_parts(network: nn.Module, options: dict) -> list[str]:
    """Let `torch.compile` compile each backbone, neck and head when it first runs.

    Keys of the state dict stay the same. Training and evaluation are compiled apart: in training
    for one size where the network pads every batch to one, otherwise for any; so what a resumed
    training runs does not depend on the sizes that came before. If a part cannot be compiled, a
    warning says so, and the network runs uncompiled, with the same results.

    Args:
        network: detector or segmentor; a copy of it is compiled by itself.
        options: arguments of `torch.compile`.

    Returns:
        paths of the parts.
    """
    preprocessor = getattr(network, 'data_preprocessor', None)
    compilation = Compilation(options, getattr(preprocessor, 'size', None) is not None)
    parts = dict(named_parts(network))
    for path, part in parts.items():
        _forward_of(path, part).compilation = compilation
    return list(parts)


class Compilation:
    """`torch.compile` for the parts of one network: they are compiled all or none.

    Args:
        options: arguments of `torch.compile`.
        one_size: images have one size in training.

    Attributes:
        failure: why a part could not be compiled; '' if all could so far.
    """

    def __init__(self, options: dict, one_size: bool) -> None:
        self.options, self.one_size = COMPILE_APART | options, one_size
        self.failure = ''

    def compile(self, forward, training: bool):
        """A compiled form of a function for training or evaluation."""
        options = dict(self.options)
        if training:
            options.setdefault('dynamic', not self.one_size)
        return torch.compile(forward, **options)


class PartForward:
    """The `forward` of a backbone, neck or head, as an attribute of it.

    Heads whose methods call `forward` directly run it, too.

    Args:
        path: path of the module in its network.
        module: the module.

    Attributes:
        upcasts: whether outputs in half precision become fp32.
        compilation: how the module is compiled; None if it is not.
    """

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module, self.forward = path, module, module.forward
        self.upcasts = False
        self.compilation: Compilation | None = None
        self._compiled: dict[bool, Any] = {}

    def __getstate__(self) -> dict:  # of a copy, whose compiled form would run this module
        return vars(self) | dict(_compiled={})

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if self.compilation is None or self.compilation.failure:
            outputs = self.forward(*inputs, **options)
        else:
            outputs = self._run_compiled(inputs, options)
        return _upcast(outputs) if self.upcasts else outputs

    def _run_compiled(self, inputs: tuple, options: dict) -> Any:
        compilation, training = self.compilation, self.module.training
        if training not in self._compiled:
            self._compiled[training] = compilation.compile(self.forward, training)
        with report_uncompiled() as failures:
            try:
                outputs = self._compiled[training](*inputs, **options)
            except torch._dynamo.exc.TorchDynamoException as error:
                failures.append(error)
                outputs = self.forward(*inputs, **options)
        if failures:
            compilation.failure = _reason(failures[0])
            self._compiled = {}
            warn(
                f'{self.path} ({type(self.module).__name__}) cannot be compiled: '
                f'{compilation.failure}. The network runs uncompiled.'
            )
        return outputs


def _forward_of(path: str, module: nn.Module) -> PartForward:
    if not isinstance(vars(module).get('forward'), PartForward):
        module.forward = PartForward(path, module)
    return module.forward


def _reason(error: Exception) -> str:
    """The first line of the error that a compiler raised."""
    inner = getattr(error, 'inner_exception', None) or error.__cause__ or error
    lines = str(inner).strip().splitlines() or ['no reason given']
    return f'{type(inner).__name__}: {lines[0].strip().rstrip(".")}'


def _upcast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, dict):
        return {key: _upcast(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_upcast(item) for item in value)
    return value
