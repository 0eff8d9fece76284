"""Batch norms of a trained network folded into the convolutions before them.

Differs from mmcv.cnn.fuse_conv_bn, which goes by the order of children: here norms are found by
what they read in a run. So a plugin or an activation in between is seen, a plugin after a norm
stays, and a convolution that several norms share is left as it is.
"""

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmattn.plugins.dry_run import fake_images, run_parts, unchanged
from mmattn.plugins.observed_maps import image_sizes

_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def fold_norms(network: nn.Module) -> tuple[int, int]:
    """Fold every batch norm into the convolution before it, where nothing else is in between.

    A norm is folded if it reads the output of one convolution, which nothing else reads, whenever
    either of them runs. It then returns its input; plugins after it run as before. Outputs are the
    same but for rounding.

    Args:
        network: changed in place; for evaluation only.

    Returns:
        numbers of folded and of all batch norms.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    pairs = _find_pairs(network)
    for conv, norm in pairs:
        _fold(conv, norm)
    return len(pairs), len(norms)


def _find_pairs(network: nn.Module) -> list[tuple[_ConvNd, _BatchNorm]]:
    """Convolutions and the norms that can be folded into them."""
    pairs: list[tuple[_ConvNd, _BatchNorm]] = []
    for size in image_sizes(network):
        reads = _Reads(network)
        with unchanged(network):
            network.eval()
            hooks = reads.observe()
            try:
                with torch.no_grad(), fake_images(network, size) as images, reads:
                    run_parts(network, images)
            except Exception:  # a user's network may do anything with fake tensors
                pairs = max(pairs, reads.pairs(), key=len)
                continue
            finally:
                for hook in hooks:
                    hook.remove()
        return reads.pairs()
    return pairs


class _Reads(TorchDispatchMode):
    """Finds out what reads the outputs of convolutions, and the weights of these and of norms.

    Args:
        network: the network that runs within.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.modules = [m for m in network.modules() if isinstance(m, _ConvNd | _BatchNorm)]
        self.owners: dict[int, nn.Module] = {}
        for module in self.modules:
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self.owners[id(tensor)] = module
        self.running: list[tuple[nn.Module, Any]] = []  # modules and their inputs, outermost first
        self.outputs: dict[int, tuple[Tensor, nn.Module]] = {}  # tensors kept, as ids are reused
        self.runs: Counter[nn.Module] = Counter()
        self.meetings: Counter[tuple[nn.Module, nn.Module]] = Counter()
        self.refused: set[nn.Module] = set()

    def observe(self) -> list:
        """Register hooks that tell which module runs; returns their handles."""
        hooks = []
        for module in self.modules:
            hooks.append(module.register_forward_pre_hook(self._enter))
            hooks.append(module.register_forward_hook(self._leave, prepend=True))
        return hooks

    def _enter(self, module: nn.Module, inputs: tuple) -> None:
        x = inputs[0] if inputs else None
        self.running.append((module, x))
        self.runs[module] += 1
        if isinstance(module, _BatchNorm) and id(x) in self.outputs:
            self.meetings[self.outputs[id(x)][1], module] += 1

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self.running.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        module, x = self.running[-1] if self.running else (None, None)
        for value in tree_flatten((args, kwargs))[0]:
            owner = self.owners.get(id(value))
            if owner is not None and owner is not module:
                self.refused.add(owner)
            made = id(value) in self.outputs
            if made and not (isinstance(module, _BatchNorm) and value is x):
                self.refused.add(self.outputs[id(value)][1])
        result = func(*args, **(kwargs or {}))
        is_conv = func is torch.ops.aten.convolution.default and isinstance(module, _ConvNd)
        if is_conv and args[1] is module._parameters.get('weight'):
            self.outputs[id(result)] = result, module
        return result

    def pairs(self) -> list[tuple[_ConvNd, _BatchNorm]]:
        return [
            (conv, norm)
            for (conv, norm), count in self.meetings.items()
            if count == self.runs[conv] == self.runs[norm]
            and self.refused.isdisjoint((conv, norm))
            and type(norm).forward in _FORWARDS
            and norm.running_mean is not None
            and not (conv.transposed and conv.groups > 1)
        ]


def _fold(conv: _ConvNd, norm: _BatchNorm) -> None:
    statistics = (norm.running_mean, norm.running_var), (norm.weight, norm.bias)
    mean, var, weight, bias = (_wide(x) for pair in statistics for x in pair)
    fuse = partial(fuse_conv_bn_weights, transpose=conv.transposed)
    kernel, offset = fuse(_wide(conv.weight), _wide(conv.bias), mean, var, norm.eps, weight, bias)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        if conv.bias is None:
            conv.bias = nn.Parameter(offset.to(conv.weight), requires_grad=False)
        else:
            conv.bias.copy_(offset)
    norm.forward = _identity


def _wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().to('cpu', torch.float64)


def _identity(x: Tensor) -> Tensor:
    return x
