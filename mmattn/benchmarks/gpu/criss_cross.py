"""Criss-cross attention against the published formula: the block, forward and step."""

from mmattn.blocks import CrissCrossAttention
from mmattn.ops import criss_cross_triton

from . import variants
from .bench import Bench
from .contenders import BASELINE, OTHER, Contender, compare, compiled, in_layouts, ours
from .restated import criss_cross

_FULL = (  # dtype, (N, C, H, W), in the order of their worth
    ('bf16', (8, 512, 97, 97)),
    ('fp32', (8, 512, 97, 97)),
    ('bf16', (1, 512, 97, 97)),
    ('fp32', (1, 512, 97, 97)),
    ('bf16', (2, 512, 64, 128)),
    ('fp32', (2, 512, 64, 128)),
    ('bf16', (1, 512, 128, 256)),
    ('fp32', (1, 512, 128, 256)),
    ('bf16', (2, 512, 97, 97)),
    ('fp32', (2, 512, 97, 97)),
)
_SMALL = (('fp32', (1, 16, 4, 5)),)

_PLAIN = Contender('restated', BASELINE, criss_cross)


def measure(bench: Bench) -> None:
    """Ours, by kernels in each precision and by products, against the formula, in both formats."""
    for dtype, shape in _SMALL if bench.small else _FULL:
        contenders = [*in_layouts([ours(), _PLAIN]), *_forms(dtype)]
        compare(bench, CrissCrossAttention(shape[1]), dtype, shape, contenders)


def measure_compiled(bench: Bench) -> None:
    """Ours and the formula, both compiled, at the first cases."""
    for dtype, shape in _SMALL if bench.small else _FULL[:2]:
        contenders = compiled([ours(), *in_layouts([_PLAIN])])
        compare(bench, CrissCrossAttention(shape[1]), dtype, shape, contenders)


def _forms(dtype: str) -> list[Contender]:
    """Other forms of ours, and the formula with products of TF32, which is less exact."""
    forms = [
        ours(f'kernels{name}', OTHER, variant=context)
        for name, context in variants.precisions(dtype).items()
        if name.strip() not in ('', criss_cross_triton.FP32_PRECISION)
    ]
    forms.append(ours('products', OTHER, variant=variants.without_kernels))
    if dtype == 'fp32':
        forms.append(Contender('restated TF32', OTHER, criss_cross, variant=variants.with_tf32))
    return forms
