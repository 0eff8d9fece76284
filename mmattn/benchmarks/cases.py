"""Benchmark cases: blocks at representative sizes, other workloads, target ratios."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmattn import blocks
from mmattn.blocks.base import registered_blocks
from mmattn.config.load import load_config
from mmattn.errors import UsageError
from mmattn.models import ANNHead
from mmattn.ops import dot_product_attention

from .baselines import BASELINES, Baseline
from .overhead import loss
from .roofline import Shapes
from .timing import CPU

Size = tuple[int, int, int, int]  # N, C, H, W
MEASURES = ('forward', 'step', 'saved', 'peak')
LAYOUTS = NCHW, NHWC = 'NCHW', 'NHWC'  # contiguous, channels_last
MODES = EAGER, COMPILED = 'eager', 'compiled'

_MASK_RCNN = 'mask_rcnn_r50_coco'
_IMAGE = (1, 3, 416, 672)  # half of 800x1333, padded to 32 as the pipeline does
_FUSION = (1, 2048, 97, 97)  # stage 5 at crop 769 and stride 8, as in ANN's head
_PAIRWISE = (1, 512, 97, 97)  # segmentation heads on Cityscapes, crop 769 and stride 8
_LARGE = (1, 512, 128, 256)  # a whole image of Cityscapes at stride 8
_GATE = (2, 512, 100, 100)  # about stage 3 of detectors: two images of 800x800 at stride 8
_OTHER = (2, 256, 64, 64)

# representative size of a block; all others are measured at _OTHER
_SIZES: dict[str, Size] = {
    'AFNB': _FUSION,
    **dict.fromkeys(('APNB', 'CAM', 'CrissCrossAttention', 'DualAttention', 'PAM'), _PAIRWISE),
    'NonLocal2d': _PAIRWISE,
    **dict.fromkeys(('BAM', 'CBAM', 'CMPESE', 'ContextBlock', 'SCSE', 'SE', 'SGE'), _GATE),
    **dict.fromkeys(('ShuffleAttention', 'SimplifiedNonLocal'), _GATE),
}
# modes that differ so much that each is a case
_VARIANTS = {
    'NonLocal2d': [
        dict(mode=mode)
        for mode in ('embedded_gaussian', 'gaussian', 'dot_product', 'concatenation')
    ],
    'CrissCrossAttention': [dict(recurrence=1), dict(recurrence=2)],
}


@dataclass(frozen=True)
class Target:
    """The lowest ratio of the best baseline to the best of ours, in time or bytes.

    Attributes:
        measure: one of `MEASURES`.
        ratio: the lowest ratio.
        layout: the layout that both sides are measured in; None for the best of each side.
        mode: the mode of the baselines; None for the better one. Ours is always the better.
    """

    measure: str
    ratio: float
    layout: str | None = None
    mode: str | None = None

    def __str__(self) -> str:
        where = (self.layout, self.mode and f'{self.mode} baselines')
        return ' '.join(filter(None, (self.measure, *where)))


# at the size of the case, on the CPU in fp32 with torch's number of threads and tuned malloc
TARGETS: dict[str, list[Target]] = {
    'AFNB': [Target('forward', 1.75)],
    'APNB': [Target('forward', 1.95)],
    'CAM': [Target('forward', 1.12)],
    'CMPESE': [Target('forward', 1.3)],
    'CrissCrossAttention 1': [
        Target('forward', 1.45, mode=EAGER),
        Target('forward', 1.15, mode=COMPILED),
        Target('saved', 1.9),
    ],
    'Mask R-CNN R50 + GC': [Target('step', 0.97)],
    'NonLocal2d dot_product core': [Target('forward', 10)],
    'NonLocal2d embedded_gaussian': [Target('saved', 9)],
    'NonLocal2d embedded_gaussian 128x256': [Target('saved', 30)],
    'PAM': [Target('saved', 9)],
    'PAM 128x256': [Target('saved', 30)],
    'SCSE': [Target('step', 2)],
}
_NOT_SLOWER = 0.97  # of every block, in every layout; the rest is noise


def _of_block(block: nn.Module, size: Size) -> Shapes:
    return block.input_shapes(size[0], *size[2:])


@dataclass(frozen=True)
class Case:
    """A block or another module, measured at one size against its baselines.

    Attributes:
        name: name that a pattern selects.
        size: (N, C, H, W).
        build: size -> our module. ValueError if the size does not fit.
        shapes: our module, size -> shapes of its inputs.
        measures: some of `MEASURES`.
        fixed_size: whether the case is about its size, so that --size does not apply.
        equivalent: whether the baselines compute the same; otherwise only costs are compared.
        needs_compiled_ops: whether it needs compiled operators of mmcv, which have no fp64, and
            GPU versions only if built for them; then equality is checked at its size alone.
        layouts: layouts of its maps that are measured.
        modes: modes that are measured.
    """

    name: str
    size: Size
    build: Callable[[Size], nn.Module] = field(repr=False)
    shapes: Callable[[nn.Module, Size], Shapes] = field(default=_of_block, repr=False)
    measures: tuple[str, ...] = MEASURES
    fixed_size: bool = False
    equivalent: bool = True
    needs_compiled_ops: bool = False
    layouts: tuple[str, ...] = LAYOUTS
    modes: tuple[str, ...] = MODES

    @property
    def block(self) -> str:
        """The class of the block, or the first word of the name."""
        return self.name.split()[0]

    @property
    def baselines(self) -> list[Baseline]:
        """The baselines whose packages are installed."""
        baselines = BASELINES.get(self.name) or BASELINES[self.block]
        return [baseline for baseline in baselines if baseline.installed]

    @property
    def targets(self) -> list[Target]:
        targets = list(TARGETS.get(self.name, ()))
        if self.block in registered_blocks() and not self.fixed_size:
            targets += [
                Target(measure, _NOT_SLOWER, layout)
                for measure in ('forward', 'step')
                for layout in self.layouts
            ]
        return targets


def list_cases() -> list[Case]:
    """All cases, small sizes before large ones, among them every block that has a baseline."""
    cases = []
    for name, cls in registered_blocks().items():
        if name in BASELINES and name != 'AFNB':
            size = _SIZES.get(name, _OTHER)
            for arguments in _VARIANTS.get(name, [{}]):
                variant = ' '.join(map(str, arguments.values()))
                cases.append(Case(f'{name} {variant}'.strip(), size, _builder(cls, **arguments)))
    softmax, pam = _builder(blocks.NonLocal2d), _builder(blocks.PAM)
    large = dict(fixed_size=True, measures=('saved',), layouts=(NCHW,), modes=(EAGER,))
    pairs = _builder(blocks.NonLocal2d, mode='concatenation')
    alone = dict(fixed_size=True, measures=('forward', 'step'), equivalent=False)
    cases += [
        Case('AFNB', _SIZES['AFNB'], _afnb, _two_maps),
        Case('ANNHead', _FUSION, ANNHeadOfMaps.build, _two_maps),
        Case(
            'NonLocal2d dot_product core',
            _PAIRWISE,
            lambda size: DotProductCore(),
            _qkv,
            layouts=(NCHW,),  # its inputs are no maps
        ),
        Case('NonLocal2d embedded_gaussian 128x256', _LARGE, softmax, **large),
        Case('PAM 128x256', _LARGE, pam, **large),
        Case('NonLocal2d concatenation 32x32', (1, 512, 32, 32), pairs, fixed_size=True),
        Case('NonLocal2d concatenation 128x256', _LARGE, pairs, **alone),
    ]
    cases.sort(key=lambda case: case.size)
    network = dict(
        measures=('step',),
        fixed_size=True,
        needs_compiled_ops=True,
        layouts=(NCHW,),
        modes=(EAGER,),
    )
    build = MaskRCNNStep.with_context
    cases.append(Case('Mask R-CNN R50 + GC', _IMAGE, build, lambda b, size: [], **network))
    return cases


def select_cases(
    pattern: str,
    sized: bool = False,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> list[Case]:
    """Cases whose name, or first word of it, matches a glob pattern.

    Args:
        pattern: glob pattern; case does not matter.
        sized: whether a size is given; leaves out cases of a fixed size.
        device, dtype: leaves out cases whose compiled operators do not support them.

    Raises:
        UsageError: there are none.
    """
    available = [
        case
        for case in list_cases()
        if not (sized and case.fixed_size)
        and (not case.needs_compiled_ops or _compiled_for(device, dtype))
    ]
    selected = [
        case
        for case in available
        if any(fnmatch(name.lower(), pattern.lower()) for name in (case.name, case.block))
    ]
    if not selected:
        names = ', '.join(case.name for case in available)
        with_size = ' with --size' if sized else ''
        raise UsageError(f'nothing{with_size} fits {pattern!r}. There are: {names}.')
    return selected


def _compiled_for(device: torch.device, dtype: torch.dtype) -> bool:
    from mmcv.ops import get_compiling_cuda_version

    built = device == CPU or get_compiling_cuda_version() != 'not available'
    return built and dtype == torch.float32


def perturb_constants(module: nn.Module) -> nn.Module:
    """Add noise to constant parameters and buffers, such as a gamma of 0, so that all take part."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point() and (value == value.flatten()[0]).all():
                noise = torch.randn_like(value)
                value.add_(0.1 * (noise if isinstance(value, nn.Parameter) else noise.abs()))
    return module


def _builder(cls: type[blocks.AttentionBlock], **arguments) -> Callable[[Size], nn.Module]:
    return lambda size: perturb_constants(cls.build(size[1], **arguments))


def _afnb(size: Size) -> nn.Module:
    high = size[1]
    return perturb_constants(blocks.AFNB(high // 2, high, max(high // 8, 1)))


def _two_maps(block: nn.Module, size: Size) -> Shapes:
    """Shapes of stages 4 and 5 of a dilated ResNet."""
    n, c, h, w = size
    return [(n, c // 2, h, w), (n, c, h, w)]


def _qkv(block: nn.Module, size: Size) -> Shapes:
    n, c, h, w = size
    return 3 * [(n, c // 2, h * w)]


class DotProductCore(nn.Module):
    """(N, C, P) queries, keys and values -> (N, C, P): `NonLocal2d` between its convolutions."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dot_product_attention(q, k, v)


class ANNHeadOfMaps(nn.Module):
    """ANN's decode head of a given class, with its maps as separate arguments."""

    def __init__(self, cls: type[nn.Module], arguments: dict) -> None:
        super().__init__()
        self.head, self.arguments = cls(**arguments), arguments

    @classmethod
    def build(cls, size: Size) -> 'ANNHeadOfMaps':
        c = size[1]
        arguments = dict(
            in_channels=[c // 2, c],
            in_index=[0, 1],
            channels=c // 4,
            project_channels=c // 8,
            num_classes=19,
            norm_cfg=dict(type='BN'),
            dropout_ratio=0,  # dropout is random
            loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),  # avoids a warning
        )
        return perturb_constants(cls(ANNHead, arguments))

    def forward(self, *maps: Tensor) -> Tensor:
        return self.head(maps)


class MaskRCNNStep(nn.Module):
    """A Mask R-CNN with an image: () -> the sum of its losses.

    Args:
        size: (N, C, H, W) of the image.
        attention: as in `--attention`, or None.
        stock: whether the network is MMDetection's and its blocks are MMCV's.
    """

    def __init__(self, size: Size, attention: str | None, stock: bool = False) -> None:
        super().__init__()
        init_default_scope('mmdet')
        cfg = load_config(_MASK_RCNN, {'model.backbone.init_cfg': None}, attention).model
        if stock:  # MMCV's name for the end of a residual branch is that of its last convolution
            (plugin,) = cfg.pop('plugins')
            block = dict(type='mmengine.ContextBlock', ratio=plugin.cfg.ratio)
            place = dict(cfg=block, stages=plugin.stages, position='after_conv3')
            cfg.type, cfg.backbone.plugins = 'MaskRCNN', [place]
        self.network = MODELS.build(cfg)
        self.register_buffer('image', torch.randn(size), persistent=False)

    @classmethod
    def with_context(cls, size: Size) -> 'MaskRCNNStep':
        """With global context in c3 to c5, all of whose parameters take part."""
        step = cls(size, 'gc')
        for module in step.modules():
            if isinstance(module, blocks.ContextBlock):
                perturb_constants(module)
        return step

    def without_attention(self) -> 'MaskRCNNStep':
        return self._twin(None)

    def of_mmdet(self) -> 'MaskRCNNStep':
        return self._twin('gc', stock=True)

    def _twin(self, attention: str | None, stock: bool = False) -> 'MaskRCNNStep':
        twin = type(self)(tuple(self.image.shape), attention, stock)
        twin.image = copy.deepcopy(self.image)
        return twin

    def forward(self) -> Tensor:
        return loss(self.network, self.image)
