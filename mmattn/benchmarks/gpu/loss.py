"""Times of a decode head's loss, for reference: interpolation, cross-entropy and accuracy."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .bench import DTYPES, Bench
from .timing import launches, peak_bytes, time_calls

_FULL = ((8, 19, 64, 128), 8)  # (N, classes, H, W), factor of the interpolation
_SMALL = ((1, 5, 4, 6), 2)


def measure(bench: Bench) -> None:
    """Rows 'time' without a ratio, of all and of the three alone."""
    shape, factor = _SMALL if bench.small else _FULL
    size = [factor * side for side in shape[2:]]
    labels = torch.randint(shape[1], (shape[0], *size), device=bench.device)
    labels[:, 0] = 255  # pixels without a label
    for dtype in 'fp32', 'bf16':
        logits = torch.randn(shape, device=bench.device).to(DTYPES[dtype]).requires_grad_()
        large = F.interpolate(logits, size, mode='bilinear').detach().requires_grad_()

        def all_three(_: int, logits=logits) -> Tensor:
            up = F.interpolate(logits, size, mode='bilinear')
            accuracy(up, labels)
            return torch.autograd.grad(cross_entropy(up, labels), logits)[0]

        def interpolation(_: int, logits=logits, large=large) -> Tensor:
            up = F.interpolate(logits, size, mode='bilinear')
            return torch.autograd.grad(up, logits, large)[0]

        calls = dict(
            loss=all_three,
            interpolation=interpolation,
            cross_entropy=lambda _, x=large: torch.autograd.grad(cross_entropy(x, labels), x),
            accuracy=lambda _, x=large: accuracy(x, labels),
        )
        for name, call in calls.items():
            row = dict(block='decode head', dtype=dtype, shape=list(shape), measure=name)
            row |= dict(contender='restated', role='other', layout='nchw', compiled=False)
            row['call_ms'] = time_calls(bench, call)
            if not bench.small:
                row |= dict(peak_bytes=peak_bytes(bench, call)) | launches(bench, call)
            bench.row('time', **row)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all pixels, as mmseg's without `avg_non_ignore`."""
    return F.cross_entropy(logits, labels, reduction='none', ignore_index=255).mean()


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of the labelled pixels whose largest logit is that of their class, as mmseg's."""
    predicted = logits.topk(1, dim=1)[1].transpose(0, 1)
    correct = predicted.eq(labels[None])[:, labels != 255]
    return 100 * correct.sum() / (labels != 255).sum()
