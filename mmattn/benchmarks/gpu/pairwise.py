"""Attention over all pairs, PAM and NonLocal2d, against its formula and torch's attention."""

from mmattn.blocks import PAM, NonLocal2d

from . import restated, variants
from .bench import Bench
from .contenders import BASELINE, OTHER, Contender, compare, compiled, in_layouts, ours

_FULL = (  # dtype, (N, C, H, W), in the order of their worth
    ('bf16', (8, 512, 97, 97)),
    ('bf16', (1, 512, 97, 97)),
    ('fp32', (8, 512, 97, 97)),
    ('fp32', (1, 512, 97, 97)),
)
_SMALL = (('fp32', (1, 16, 4, 5)),)
_BLOCKS = {PAM: restated.pam, NonLocal2d: restated.non_local}


def measure(bench: Bench) -> None:
    """Ours and the formula in both formats, torch's attention called directly, and by slices."""
    for dtype, shape in _SMALL if bench.small else _FULL:
        for cls, make in _BLOCKS.items():
            contenders = [
                *in_layouts([ours(), Contender('restated', BASELINE, make(restated.softmax_core))]),
                Contender('torch attention', BASELINE, make(restated.fused_core)),
            ]
            if cls is PAM:  # its values are wider than kernels for one width take
                core = restated.sliced_core
                contenders.append(Contender('torch attention by 256', OTHER, make(core)))
                variant = variants.without_kernels
                contenders.append(ours('without kernels', OTHER, variant=variant))
            compare(bench, cls(shape[1]), dtype, shape, contenders)


def measure_compiled(bench: Bench) -> None:
    """Ours and the formula, both compiled, at the first case."""
    for dtype, shape in _SMALL if bench.small else _FULL[:1]:
        for cls, make in _BLOCKS.items():
            contenders = [ours(), Contender('restated', BASELINE, make(restated.softmax_core))]
            compare(bench, cls(shape[1]), dtype, shape, compiled(contenders))
