"""What the attention of a network looks like on one image: bars, heat maps, pairs of positions.

Every view has the data for a page (`mmattn.visualization.html_page`) and a picture.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from mmattn.blocks import AttentionBlock, PairwiseBlock
from mmattn.ops import Pairs

from .recording import Use

_HEAT, _SIGNED = 'inferno', 'coolwarm'
_OPACITY = 0.65  # of heat over the image
_BARS = (160, 640)  # height and width of a picture of bars
_CHANNELS = 8  # of maps that differ from channel to channel, those that differ most
BUDGET = 9_000_000  # bytes of queries and keys in a page, before base64


@dataclass
class View:
    """One map of one use.

    Attributes:
        name: of the map.
        kind: 'bars', 'map', 'matrix', 'outline' or 'pairs'.
        picture: (H, W, 3) uint8 BGR.
        data: for the page, of plain values.
    """

    name: str
    kind: str
    picture: np.ndarray
    data: dict[str, Any]


@dataclass
class Seen:
    """A block and its views, in the order of use."""

    path: str
    type: str
    views: list[View] = field(default_factory=list)


class Collector:
    """Takes what `watching` tells, small, and makes views of it when the network has run.

    Args:
        query: row and column as fractions, of the picture of what pairwise blocks see.
    """

    def __init__(self, query: tuple[float, float] = (0.5, 0.5)) -> None:
        self.query = query
        self.blocks: dict[str, AttentionBlock] = {}
        self.kept: list[tuple[str, str, Tensor | Pairs]] = []

    def __call__(self, use: Use) -> None:
        self.blocks.setdefault(use.path, use.block)
        if isinstance(use.block, PairwiseBlock) and use.by is not None:
            pairs = use.block.pairs(*use.args)
            same = pairs.k is pairs.q
            q = pairs.q[:1].detach().float().cpu().clone()
            k = q if same else pairs.k[:1].detach().float().cpu().clone()
            kept = pairs._replace(q=q, k=k)
        else:
            with torch.no_grad():
                found = use.result if use.by is None else use.by(None, *use.args)
            kept = found[:1].detach().float().cpu().clone()
        self.kept.append((use.path, use.name, kept))

    def seen(self, image: np.ndarray) -> list[Seen]:
        """The blocks with their views.

        Args:
            image: (H, W, 3) uint8 BGR that the network saw, padding included.
        """
        found = {path: Seen(path, type(block).__name__) for path, block in self.blocks.items()}
        pairwise = [kept for _, _, kept in self.kept if isinstance(kept, Pairs)]
        budget = BUDGET // max(1, len(pairwise))
        groups: dict[tuple[str, str], list] = {}
        for path, name, kept in self.kept:
            groups.setdefault((path, name), []).append(kept)
        for (path, name), uses in groups.items():
            if isinstance(uses[0], Pairs):
                found[path].views += _pairs(name, uses, image, self.query, budget)
                continue
            for number, value in enumerate(uses, 1):
                title = name if len(uses) == 1 else f'{name}, use {number} of {len(uses)}'
                found[path].views += _VIEWS[name](title, value[0].numpy(), image)
        return list(found.values())


def map_view(name: str, values: np.ndarray, image: np.ndarray) -> View:
    """(H, W) numbers as a heat map."""
    return _map(name, values[None], image)[0]


def heat(values: np.ndarray, low: float, high: float, colours: str = _HEAT) -> np.ndarray:
    """(H, W) numbers -> (H, W, 3) uint8 BGR, from `low` to `high`."""
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return colormaps[colours](scaled.clip(0, 1), bytes=True)[..., 2::-1].copy()


def over(image: np.ndarray, picture: np.ndarray, opacity: np.ndarray | None = None) -> np.ndarray:
    """A small picture enlarged over an image, with an opacity (H, W) for each of its pixels."""
    if opacity is None:
        opacity = np.full(picture.shape[:2], _OPACITY)
    large, share = (
        cv2.resize(one, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        for one in (picture, opacity)
    )
    return (image * (1 - share[..., None]) + large * share[..., None]).round().astype(np.uint8)


def _bars(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(C) gates, one bar a channel."""
    values = values.reshape(-1)
    height, width = _BARS
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    place = ((high - values) / (high - low) * (height - 1)).round().astype(int)
    zero = round(high / (high - low) * (height - 1))
    picture = np.full((height, width, 3), 255, np.uint8)
    for x in range(width):
        y = place[x * len(values) // width]
        picture[min(y, zero) : max(y, zero) + 1, x] = (180, 114, 0)
    return [View(name, 'bars', picture, dict(values=_rounded(values)))]


def _branches(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(branches, C) weights that sum to 1."""
    return [_bars(f'{name} {i}', row, image)[0] for i, row in enumerate(values, 1)]


def _map(name: str, values: np.ndarray, image: np.ndarray, signed: bool = False) -> list[View]:
    """(1, H, W) one number a position."""
    values = values.reshape(values.shape[-2:])
    low, high = float(values.min()), float(values.max())
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    small = heat(values, low, high, _SIGNED if signed else _HEAT)
    data = dict(src=png(small), low=low, high=high, mean=float(values.mean()))
    return [View(name, 'map', over(image, small), data)]


def _logits(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    return _map(name, values, image, signed=True)


def _maps(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(C, H, W): the mean over the channels, and the channels that differ most over the map."""
    if len(values) == 1:
        return _map(name, values, image)
    found = _map(f'{name}, mean of {len(values)} channels', values.mean(0), image)
    spread = values.reshape(len(values), -1).std(1)
    for channel in np.argsort(-spread, kind='stable')[:_CHANNELS]:
        found += _map(f'{name}, channel {channel}', values[channel], image)
    return found


def _matrix(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(C, C) weights of channels for channels."""
    low, high = float(values.min()), float(values.max())
    picture = heat(values, low, high)
    return [View(name, 'matrix', picture, dict(src=png(picture), low=low, high=high))]


def _outline(name: str, theta: np.ndarray, image: np.ndarray) -> list[View]:
    """(2, 3) affine map: where the output takes its corners from."""
    corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], float)
    points = (corners @ theta.T + 1) / 2  # fractions of width and height
    picture = image.copy()
    at = np.rint(points * image.shape[1::-1]).astype(np.int32)
    cv2.polylines(picture, [at], True, (0, 200, 255), 2, cv2.LINE_AA)
    data = dict(points=_rounded(points), theta=_rounded(theta))
    return [View(name, 'outline', picture, data)]


_VIEWS: dict[str, Callable[[str, np.ndarray, np.ndarray], list[View]]] = {
    'channel': _bars,
    'channel logits': _bars,
    'branches': _branches,
    'spatial': _maps,
    'spatial logits': _logits,
    'context': _map,
    'group': _maps,
    'mask': _maps,
    'channel pairs': _matrix,
    'theta': _outline,
}


def _pairs(
    name: str, uses: list[Pairs], image: np.ndarray, query: tuple[float, float], budget: int
) -> list[View]:
    """One view of all rounds of a criss-cross block, one view a use of any other."""
    rounds = uses[0].rule == 'criss-cross' and len({one.q.shape for one in uses}) == 1
    found = []
    for number, group in enumerate([uses] if rounds else [[one] for one in uses], 1):
        title = name if rounds or len(uses) == 1 else f'{name}, use {number} of {len(uses)}'
        steps = [thinned(one, budget) for one in group]
        step = steps[0][1]
        weights = composed([one for one, _ in steps], query)
        high, low = float(np.abs(weights).max()), float(weights.min())
        signed = dict(low=-high, colours=_SIGNED) if low < 0 else dict(low=0.0)
        strength = np.sqrt(np.abs(weights) / high) if high else np.zeros_like(weights)
        picture = over(image, heat(weights, high=high, **signed), 0.2 + 0.7 * strength)
        at = round(query[1] * image.shape[1]), round(query[0] * image.shape[0])
        cv2.drawMarker(picture, at, (0, 255, 0), cv2.MARKER_CROSS, 24, 2, cv2.LINE_AA)
        data = dict(step=step, rule=group[0].rule, rounds=[_numbers(one) for one, _ in steps])
        found.append(View(title, 'pairs', picture, data))
    return found


def thinned(pairs: Pairs, budget: int) -> tuple[Pairs, int]:
    """Queries and keys at every n-th row and column, n the least for which they fit; and n."""
    step = 1
    while True:
        q = pairs.q[..., ::step, ::step]
        k = q if pairs.k is pairs.q else pairs.k if pairs.grids else pairs.k[..., ::step, ::step]
        size = 2 * (q.numel() + (0 if k is q else k.numel()))  # as fp16
        if size <= budget or q.shape[2:].numel() == 1:
            return pairs._replace(q=q, k=k), step
        step += 1


def composed(rounds: list[Pairs], query: tuple[float, float]) -> np.ndarray:
    """The weights of all positions for a query after all rounds, (h, w).

    A round's output is what it sees of the round before, so weights multiply and add up over the
    positions between. Pooled keys are spread evenly over the positions that they stand for.
    """
    height, width = rounds[0].q.shape[2:]
    at = int(query[0] * height) * width + int(query[1] * width)
    found = rounds[-1].weights(torch.tensor([at]))[0]  # (1, h, w) or (1, S)
    for before in rounds[-2::-1]:
        between = found.flatten()
        queries = between.nonzero()[:, 0]
        each = before.weights(queries)[0].flatten(1)  # (Q, h w)
        found = (between[queries] @ each).reshape(1, height, width)
    if rounds[-1].grids:
        return spread(found[0].numpy(), rounds[-1].grids, (height, width))
    return found[0].numpy()


def spread(weights: np.ndarray, grids: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """(S) weights of pooled keys -> (H, W), each spread evenly over the pixels of its bin."""
    height, width = size
    found, first = np.zeros(size), 0
    for n in grids:
        for index in range(n * n):
            row, column = divmod(index, n)
            y1, y2 = row * height // n, -(-(row + 1) * height // n)
            x1, x2 = column * width // n, -(-(column + 1) * width // n)
            found[y1:y2, x1:x2] += weights[first + index] / ((y2 - y1) * (x2 - x1))
        first += n * n
    return found


def _numbers(pairs: Pairs) -> dict[str, Any]:
    """For the page: a position's numbers one after another, in fp16, the scale multiplied in."""
    q, k = pairs.q[0].flatten(1), pairs.k[0].flatten(1)  # (E, P), (E, S)
    same = pairs.k is pairs.q
    least = torch.finfo(torch.float16)
    found = dict(
        size=list(pairs.q.shape[2:]),
        keys=list(pairs.grids or pairs.k.shape[2:]),
        pooled=bool(pairs.grids),
        channels=len(q),
        scale=float(pairs.scale),
        q=_encoded(q.mT.clamp(least.min, least.max).half().numpy().tobytes()),
    )
    if not same:
        found['k'] = _encoded(k.mT.clamp(least.min, least.max).half().numpy().tobytes())
    return found


def png(picture: np.ndarray) -> str:
    """A picture as a data URI."""
    return 'data:image/png;base64,' + _encoded(cv2.imencode('.png', picture)[1].tobytes())


def jpeg(picture: np.ndarray) -> str:
    """A photograph as a data URI."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
    return 'data:image/jpeg;base64,' + _encoded(cv2.imencode('.jpg', picture, quality)[1].tobytes())


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _rounded(values: np.ndarray) -> list:
    return np.round(values.astype(float), 5).tolist()
