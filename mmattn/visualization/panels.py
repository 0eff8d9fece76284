"""Views of attention maps on one image: bars, heat maps, pairs of positions.

Every view has a picture, and data for the HTML page (`mmattn.visualization.html_page`).
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

HEAT_COLOURS, SIGNED_COLOURS = 'inferno', 'coolwarm'
_OPACITY = 0.65  # opacity of a heat map over the image
_BARS = (160, 640)  # height and width of a bar chart, in pixels
_CHANNELS = 8  # channels shown of a map that differs between channels
PAGE_BYTES = 9_000_000  # limit of queries and keys in a page, before base64


@dataclass
class View:
    """One attention map of one use of a block.

    Attributes:
        name: name of the map.
        kind: 'bars', 'map', 'matrix', 'outline' or 'pairs'.
        picture: (H, W, 3) uint8 BGR.
        data: plain values for the page.
    """

    name: str
    kind: str
    picture: np.ndarray
    data: dict[str, Any]


@dataclass
class BlockViews:
    """A block and its views, in the order of use."""

    path: str
    type: str
    views: list[View] = field(default_factory=list)


class Collector:
    """Collects the uses of attention in a forward pass, and makes views of them afterwards.

    Call `watching(model, collector)`. Only the first image of a batch is stored.

    Args:
        query: row and column as fractions, the position whose pairwise attention is drawn.
    """

    def __init__(self, query: tuple[float, float] = (0.5, 0.5)) -> None:
        self.query = query
        self.blocks: dict[str, AttentionBlock] = {}
        self.records: list[tuple[str, str, Tensor | Pairs]] = []  # path, name of the map, map

    def __call__(self, use: Use) -> None:
        self.blocks.setdefault(use.path, use.block)
        if isinstance(use.block, PairwiseBlock) and use.by is not None:
            pairs = use.block.pairs(*use.args)
            same, first = pairs.k is pairs.q, slice(pairs.heads or 1)
            q = pairs.q[first].detach().float().cpu().clone()
            k = q if same else pairs.k[first].detach().float().cpu().clone()
            record = pairs._replace(q=q, k=k)
        else:
            with torch.no_grad():
                result = use.result if use.by is None else use.by(None, *use.args)
            record = result[:1].detach().float().cpu().clone()
        self.records.append((use.path, use.name, record))

    def block_views(self, image: np.ndarray) -> list[BlockViews]:
        """The blocks with their views.

        Args:
            image: (H, W, 3) uint8 BGR, the input of the network, padding included.
        """
        blocks = {
            path: BlockViews(path, type(block).__name__) for path, block in self.blocks.items()
        }
        pairwise = [record for _, _, record in self.records if isinstance(record, Pairs)]
        budget = PAGE_BYTES // max(1, sum(record.heads or 1 for record in pairwise))
        groups: dict[tuple[str, str], list] = {}
        for path, name, record in self.records:
            groups.setdefault((path, name), []).append(record)
        for (path, name), uses in groups.items():
            if isinstance(uses[0], Pairs):
                blocks[path].views += _pairs(name, uses, image, self.query, budget)
                continue
            for number, value in enumerate(uses, 1):
                title = name if len(uses) == 1 else f'{name}, use {number} of {len(uses)}'
                blocks[path].views += _VIEWS[name](title, value[0].numpy(), image)
        return list(blocks.values())


def map_view(name: str, values: np.ndarray, image: np.ndarray) -> View:
    """A heat map of (H, W) numbers over an image."""
    return _map(name, values[None], image)[0]


def heat(values: np.ndarray, low: float, high: float, colours: str = HEAT_COLOURS) -> np.ndarray:
    """(H, W) numbers -> (H, W, 3) uint8 BGR; `low` and `high` are the ends of the colour map."""
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return colormaps[colours](scaled.clip(0, 1), bytes=True)[..., 2::-1].copy()


def over(image: np.ndarray, picture: np.ndarray, opacity: np.ndarray | None = None) -> np.ndarray:
    """Blend a small picture, enlarged, over an image; opacity (H, W) is that of its pixels."""
    if opacity is None:
        opacity = np.full(picture.shape[:2], _OPACITY)
    large, alpha = (
        cv2.resize(array, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        for array in (picture, opacity)
    )
    return (image * (1 - alpha[..., None]) + large * alpha[..., None]).round().astype(np.uint8)


def _bars(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(C) gates, one bar per channel."""
    values = values.reshape(-1)
    height, width = _BARS
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    bar_end = ((high - values) / (high - low) * (height - 1)).round().astype(int)
    zero = round(high / (high - low) * (height - 1))
    picture = np.full((height, width, 3), 255, np.uint8)
    for x in range(width):
        y = bar_end[x * len(values) // width]
        picture[min(y, zero) : max(y, zero) + 1, x] = (180, 114, 0)
    return [View(name, 'bars', picture, dict(values=_rounded(values)))]


def _branches(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(branches, C) weights that sum to 1."""
    return [_bars(f'{name} {i}', row, image)[0] for i, row in enumerate(values, 1)]


def _map(name: str, values: np.ndarray, image: np.ndarray, signed: bool = False) -> list[View]:
    """(1, H, W), one number per position."""
    values = values.reshape(values.shape[-2:])
    low, high = float(values.min()), float(values.max())
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    small = heat(values, low, high, SIGNED_COLOURS if signed else HEAT_COLOURS)
    data = dict(src=png(small), low=low, high=high, mean=float(values.mean()))
    return [View(name, 'map', over(image, small), data)]


def _logits(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    return _map(name, values, image, signed=True)


def _response(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(C, H, W) factors of any sign."""
    return _maps(name, values, image, signed=True)


def _rows(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(C, H) gates of the rows, drawn as horizontal stripes."""
    return _maps(name, values[:, :, None], image)


def _columns(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(C, W) gates of the columns, drawn as vertical stripes."""
    return _maps(name, values[:, None], image)


def _maps(name: str, values: np.ndarray, image: np.ndarray, signed: bool = False) -> list[View]:
    """(C, H, W): the mean over channels, and the channels with the largest deviation."""
    if len(values) == 1:
        return _map(name, values, image, signed)
    views = _map(f'{name}, mean of {len(values)} channels', values.mean(0), image, signed)
    deviation = values.reshape(len(values), -1).std(1)
    for channel in np.argsort(-deviation, kind='stable')[:_CHANNELS]:
        views += _map(f'{name}, channel {channel}', values[channel], image, signed)
    return views


def _selection(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(branches, H, W) gates of branches that need not sum to 1."""
    return [_map(f'{name} {i}', value, image)[0] for i, value in enumerate(values, 1)]


def _matrix(name: str, values: np.ndarray, image: np.ndarray) -> list[View]:
    """(C, C) weights between channels."""
    low, high = float(values.min()), float(values.max())
    picture = heat(values, low, high)
    return [View(name, 'matrix', picture, dict(src=png(picture), low=low, high=high))]


def _outline(name: str, theta: np.ndarray, image: np.ndarray) -> list[View]:
    """(2, 3) affine map: where the corners of the output are sampled in the input."""
    corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], float)
    points = (corners @ theta.T + 1) / 2  # fractions of width and height
    picture = image.copy()
    polygon = np.rint(points * image.shape[1::-1]).astype(np.int32)
    cv2.polylines(picture, [polygon], True, (0, 200, 255), 2, cv2.LINE_AA)
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
    'rows': _rows,
    'columns': _columns,
    'selection': _selection,
    'response': _response,
    'channel pairs': _matrix,
    'theta': _outline,
}


def _pairs(
    name: str, uses: list[Pairs], image: np.ndarray, query: tuple[float, float], budget: int
) -> list[View]:
    """One view for all rounds of a criss-cross block; of other blocks one per use and head."""
    composes = uses[0].rule == 'criss-cross' and len({use.q.shape for use in uses}) == 1
    titled = [(name, uses)] if composes else []
    for number, use in enumerate([] if composes else uses, 1):
        title = name if len(uses) == 1 else f'{name}, use {number} of {len(uses)}'
        for head, pairs in enumerate(use.each_head(), 1):
            of_head = '' if use.heads is None else f', head {head} of {use.heads}'
            titled.append((title + of_head, [pairs]))
    views = []
    for title, rounds in titled:
        strided = [thinned(pairs, budget) for pairs in rounds]
        step = strided[0][1]
        weights = composed([pairs for pairs, _ in strided], query)
        high, low = float(np.abs(weights).max()), float(weights.min())
        signed = dict(low=-high, colours=SIGNED_COLOURS) if low < 0 else dict(low=0.0)
        strength = np.sqrt(np.abs(weights) / high) if high else np.zeros_like(weights)
        picture = over(image, heat(weights, high=high, **signed), 0.2 + 0.7 * strength)
        position = round(query[1] * image.shape[1]), round(query[0] * image.shape[0])
        cv2.drawMarker(picture, position, (0, 255, 0), cv2.MARKER_CROSS, 24, 2, cv2.LINE_AA)
        data = dict(step=step, rule=rounds[0].rule, rounds=[_page_data(p) for p, _ in strided])
        views.append(View(title, 'pairs', picture, data))
    return views


def thinned(pairs: Pairs, budget: int) -> tuple[Pairs, int]:
    """Queries and keys at every n-th row and column, n the least that fits the budget; and n."""
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

    The values of a round are the outputs of the round before, so weights multiply and sum over the
    intermediate positions. Weights of pooled keys are spread evenly over the pixels of their bins.
    """
    height, width = rounds[0].q.shape[2:]
    index = int(query[0] * height) * width + int(query[1] * width)
    weights = rounds[-1].weights(torch.tensor([index]))[0]  # (1, h, w) or (1, S)
    for earlier in rounds[-2::-1]:
        intermediate = weights.flatten()
        queries = intermediate.nonzero()[:, 0]
        earlier_weights = earlier.weights(queries)[0].flatten(1)  # (Q, h w)
        weights = (intermediate[queries] @ earlier_weights).reshape(1, height, width)
    if rounds[-1].grids:
        return spread(weights[0].numpy(), rounds[-1].grids, (height, width))
    return weights[0].numpy()


def spread(weights: np.ndarray, grids: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """(S) weights of pooled keys -> (H, W), each spread evenly over the pixels of its bin."""
    height, width = size
    pixels, first = np.zeros(size), 0
    for n in grids:
        for index in range(n * n):
            row, column = divmod(index, n)
            y1, y2 = row * height // n, -(-(row + 1) * height // n)
            x1, x2 = column * width // n, -(-(column + 1) * width // n)
            pixels[y1:y2, x1:x2] += weights[first + index] / ((y2 - y1) * (x2 - x1))
        first += n * n
    return pixels


def _page_data(pairs: Pairs) -> dict[str, Any]:
    """Queries and keys for the page: position by position, in fp16, base64."""
    q, k = pairs.q[0].flatten(1), pairs.k[0].flatten(1)  # (E, P), (E, S)
    limits = torch.finfo(torch.float16)
    data = dict(
        size=list(pairs.q.shape[2:]),
        keys=list(pairs.grids or pairs.k.shape[2:]),
        pooled=bool(pairs.grids),
        channels=len(q),
        scale=float(pairs.scale),
        q=_encoded(q.mT.clamp(limits.min, limits.max).half().numpy().tobytes()),
    )
    if pairs.k is not pairs.q:
        data['k'] = _encoded(k.mT.clamp(limits.min, limits.max).half().numpy().tobytes())
    return data


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
