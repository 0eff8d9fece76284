"""How the network of a run is computed: memory format, compilation, precision, folded norms."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor
from torch import nn

from mmattn.config.runner_keys import check_modules, compile_options, why_not_compiled
from mmattn.errors import UsageError
from mmattn.log import warn
from mmattn.models.folded_norms import fold_norms
from mmattn.models.memory_format import use_channels_last
from mmattn.models.parts import compile_parts, use_float_outputs

from .labels import widen_labels
from .model_wrappers import unwrap_model

AMP_DTYPES = ('float16', 'bfloat16')


def use_flags(cfg: Config, *, channels_last: bool, compile: bool) -> None:
    """Set the config keys of `--channels-last` and `--compile`.

    Where nothing can be compiled, a warning says why, and the key is left out.
    """
    if channels_last:
        cfg.channels_last = True
    if not compile or compile_options(cfg) is not None:
        return
    if reason := why_not_compiled():
        warn(f'--compile: {reason}. The network runs uncompiled.')
    else:
        cfg.compile = True


def amp_dtype(amp: bool | str, device: str) -> str:
    """The dtype that `--amp` asks for, 'float16' or 'bfloat16'.

    Args:
        amp: one of these, or True for float16.
        device: type of the device.

    Raises:
        UsageError: there is no such dtype, or the device lacks it.
    """
    name = AMP_DTYPES[0] if amp is True else amp
    if name not in AMP_DTYPES:
        raise UsageError(f'--amp {amp}: allowed are {" and ".join(AMP_DTYPES)}.')
    if name == 'float16' and device != 'cuda':
        raise UsageError(
            '--amp float16 needs a GPU. Leave --amp out, or write --amp bfloat16; that is faster '
            'only on a CPU with instructions for it.'
        )
    if name == 'bfloat16' and not _has_bfloat16(device):
        raise UsageError(f'--amp bfloat16: there is none on this {device}. Leave --amp out.')
    return name


def _has_bfloat16(device: str) -> bool:
    return device == 'cpu' or (device == 'cuda' and torch.cuda.is_bf16_supported())


def prepare_inference(network: nn.Module, *, amp: bool | str, fuse_conv_bn: bool) -> None:
    """Fold norms into convolutions, and run `test_step` in mixed precision.

    Args:
        network: network with its weights, on its device; changed in place.
        amp: False, or as in `amp_dtype`.
        fuse_conv_bn: see `fold_norms`.

    Raises:
        UsageError: the device lacks the dtype.
    """
    if fuse_conv_bn:
        folded, norms = fold_norms(network)
        name, text = type(network).__name__, f'{folded} of {norms} batch norms are folded'
        if not norms:
            text = f'{name} has no batch norm'
        elif not folded:
            text = f'none of the {norms} batch norms of {name} directly follows a convolution'
        print_log(f'--fuse-conv-bn: {text}', logger='current')
    if amp:
        device = next(network.parameters()).device.type
        dtype = getattr(torch, amp_dtype(amp, device))
        use_float_outputs(network)
        network.test_step = functools.partial(_run_autocast, device, dtype, network.test_step)


def _run_autocast(device: str, dtype: torch.dtype, step: Callable, *inputs: Any) -> Any:
    with torch.autocast(device, dtype):
        return step(*inputs)


def prepare_network(
    network: nn.Module, cfg: Config, *, amp: bool | str, fuse_conv_bn: bool
) -> None:
    """Apply the config keys `channels_last` and `compile`, and `prepare_inference`."""
    prepare_inference(network, amp=amp, fuse_conv_bn=fuse_conv_bn)
    if cfg.get('channels_last'):
        use_channels_last(network)
    compile_network(network, cfg)


def compile_network(network: nn.Module, cfg: Config) -> None:
    """Compile the parts of a network as its config asks for, see `compile_parts`."""
    options = compile_options(cfg)
    if options is not None:
        parts = compile_parts(network, options)
        print_log(
            f'torch.compile compiles {", ".join(parts)} when each first runs', logger='current'
        )


def unsteady_kernels() -> list[str]:
    """Why two runs of the same step may differ on this device."""
    if torch.cuda.is_available() and torch.backends.cudnn.benchmark:
        return ['env_cfg.cudnn_benchmark lets cuDNN choose its algorithms by their time']
    return []


class NetworkOptions:
    """Mixin of a runner: `channels_last` and `compile` of its config, and options of a test.

    Attributes:
        amp, fuse_conv_bn: as in `prepare_inference`; for tests.
    """

    amp: bool | str = False
    fuse_conv_bn = False

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        check_modules(self.cfg, model)
        if self.cfg.get('channels_last'):
            use_channels_last(model)
        preprocessor = getattr(unwrap_model(model), 'data_preprocessor', None)
        if isinstance(preprocessor, BaseDataPreprocessor):
            preprocessor._non_blocking = True
            widen_labels(preprocessor)
        return super().wrap_model(model_wrapper_cfg, model)

    def prepare_network(self) -> None:
        """Apply the options of a test once its weights are loaded."""
        if self.fuse_conv_bn:
            for hook in [hook for hook in self.hooks if isinstance(hook, EMAHook)]:
                hook._swap_ema_parameters()  # it would swap weights that are folded for others
                self._hooks.remove(hook)
        prepare_inference(unwrap_model(self.model), amp=self.amp, fuse_conv_bn=self.fuse_conv_bn)

    def compile_network(self) -> None:
        compile_network(unwrap_model(self.model), self.cfg)

    def _maybe_compile(self, target: str) -> None:
        """mmengine would compile the whole step here: loss, hooks and optimizer, too."""
