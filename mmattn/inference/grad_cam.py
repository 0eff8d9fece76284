"""Grad-CAM for detectors and segmentors: the positions of a layer that support a class.

Source: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017,
    arXiv 1610.02391, eq. 1-2, as the grad-cam package computes it.
"""

import contextlib
import difflib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from mmattn.errors import UsageError
from mmattn.models.logits import predicted_logits


class ClassScores(nn.Module):
    """One score per class: normalised image (N, C, H, W) -> (N, classes).

    Segmentor: mean logit of the class over the positions labelled with it, or over all if there
    are none. One-stage detector: highest logit anywhere. Two-stage detector: highest logit at the
    detected boxes.

    Args:
        model: network.
        boxes: (K, 4) x1, y1, x2, y2 in pixels of the network's input; two-stage detectors only.
    """

    def __init__(self, model: nn.Module, boxes: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.boxes = model, boxes

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self.model, 'decode_head'):
            logits = predicted_logits(self.model, x).flatten(2)  # (N, K, P)
            if logits.shape[1] == 1:  # two classes, one sigmoid output
                logits = torch.cat([-logits, logits], 1)
            classes = torch.arange(logits.shape[1], device=x.device)[:, None]
            labelled = logits.argmax(1, keepdim=True) == classes
            labelled = labelled | ~labelled.any(2, keepdim=True)
            return (logits * labelled).sum(2) / labelled.sum(2)
        maps = self.model.extract_feat(x)
        if hasattr(self.model, 'roi_head'):
            rois = torch.cat([self.boxes.new_zeros(len(self.boxes), 1), self.boxes], 1)
            heads = self.model.roi_head
            last = (heads.num_stages - 1,) if hasattr(heads, 'num_stages') else ()
            logits = heads._bbox_forward(*last, maps, rois)['cls_score']
            return logits[:, :-1].amax(0, keepdim=True)  # without background
        head = self.model.bbox_head
        levels = [t.unflatten(1, (-1, head.cls_out_channels)) for t in head(maps)[0]]
        return torch.stack([t.amax((1, 3, 4)) for t in levels]).amax(0)  # (N, anchors, K, h, w)


def grad_cam(
    model: nn.Module,
    x: Tensor,
    layer: str,
    category: int | None = None,
    boxes: Tensor | None = None,
) -> tuple[np.ndarray, int]:
    """The Grad-CAM map of a class at a layer.

    Args:
        model: detector or segmentor in eval mode.
        x: normalised image, (1, C, H, W).
        layer: path of a module that returns one map, such as 'backbone.layer4'.
        category: index of the class; None for the class with the highest score.
        boxes: detected boxes, see `ClassScores`.

    Returns:
        (H, W) from 0 to 1, and the index of the class.

    Raises:
        UsageError: the grad-cam package is not installed; no such layer; the layer does not run, or
            returns several maps.
    """
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        near = difflib.get_close_matches(layer, modules, n=3)
        hint = f'; nearest: {", ".join(near)}' if near else ''
        raise UsageError(f'--grad-cam {layer}: the network has no such module{hint}.')
    try:
        with _torchvision():
            from pytorch_grad_cam import GradCAM
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise UsageError(
            f'--grad-cam: the grad-cam package cannot be imported ({error}). Run: pip install '
            'grad-cam'
        ) from error
    scores = ClassScores(model, boxes)
    try:
        with torch.no_grad():
            best = int(scores(x).argmax())
    except (AttributeError, TypeError, IndexError, ValueError) as error:
        heads = (getattr(model, name, None) for name in ('decode_head', 'roi_head', 'bbox_head'))
        head = next((type(head).__name__ for head in heads if head is not None), 'no head')
        raise UsageError(
            f'--grad-cam: {type(model).__name__} with {head} gives no class scores that a map '
            'could explain.'
        ) from error
    category = best if category is None else category
    try:
        with GradCAM(model=scores, target_layers=[modules[layer]]) as cam:
            maps = cam(input_tensor=x, targets=[ClassifierOutputTarget(category)])
    except (AttributeError, TypeError, IndexError, ValueError) as error:
        raise UsageError(
            f'--grad-cam {layer}: this module gives no single map that the scores depend on. Name '
            'a stage, such as backbone.layer4.'
        ) from error
    return maps[0], category


@contextlib.contextmanager
def _torchvision() -> Iterator[None]:
    """Replace torchvision by stubs if it has no build for this torch.

    The grad-cam package imports names from it that are never used here.
    """
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError):
        names = '', '.ops', '.transforms', '.transforms.functional'
        modules = {f'torchvision{name}': ModuleType(f'torchvision{name}') for name in names}
        for name in 'Compose', 'Normalize', 'ToTensor':
            setattr(modules['torchvision.transforms'], name, None)
        modules['torchvision.transforms.functional'].resize = None
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                sys.modules.pop(name, None)
    else:
        yield
