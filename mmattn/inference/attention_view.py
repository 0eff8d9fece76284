"""View the attention of a trained network on an image, as a page and pictures."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor

from mmattn.blocks import AttentionBlock
from mmattn.config.published_weights import resolve
from mmattn.datasets.loading import Loaded, check_file, to_display
from mmattn.errors import UsageError
from mmattn.files import check_writable
from mmattn.log import warn
from mmattn.visualization.comparison import save_picture
from mmattn.visualization.html_page import write_page
from mmattn.visualization.panels import BlockViews, Collector, map_view
from mmattn.visualization.recording import watching

from .grad_cam import grad_cam
from .predictor import Predictor


@dataclass
class AttentionView:
    """Result of `view_attention`.

    Attributes:
        page: HTML file.
        pictures: PNG files, one for each view.
        blocks: blocks with their views.
    """

    page: Path
    pictures: list[Path]
    blocks: list[BlockViews]


def view_attention(
    config: str | Path,
    checkpoint: str | Path | None,
    image: str | Path,
    *,
    out_dir: str | Path,
    query: tuple[float, float] = (0.5, 0.5),
    attention: str | None = None,
    options: dict | list[str] | None = None,
    device: str | None = None,
    cam: str | None = None,
    category: str | None = None,
) -> AttentionView:
    """Write `attention.html` and a PNG for every map of every attention block.

    Args:
        config, checkpoint: network and weights, as for `mmattn.load_model`.
        image: path of the image.
        out_dir: folder of the output.
        query: query position of pairwise blocks in the PNGs and initially in the page: row and
            column as fractions of the image.
        attention: blocks to add; by default those that the checkpoint was trained with.
        options: changes to the config, dotted keys; a dict or `key=value` strings.
        device: 'cpu', 'cuda:0', ...; None for the best available.
        cam: layer whose Grad-CAM is also shown, such as 'backbone.layer4'; None for no Grad-CAM.
        category: class of the Grad-CAM; None for the class with the highest score.

    Raises:
        UsageError: the network has no attention block and `cam` is None; `query` is not within 0
            to 1; no such class or layer.
        DataError: the image cannot be read.
        MmattnError: config or checkpoint cannot be loaded.
    """
    if not all(0 <= value < 1 for value in query):
        raise UsageError(f'--query {query[0]} {query[1]}: allowed are fractions from 0 to below 1.')
    check_file(image)
    out_dir = Path(out_dir)
    check_writable(out_dir, '--out-dir')
    predictor = Predictor.of(*resolve(config, checkpoint, attention), options, attention, device)
    if predictor.segments and predictor.model.test_cfg.get('mode') == 'slide':
        predictor.model.test_cfg['mode'] = 'whole'  # each window would have its own maps
    if category and category not in predictor.classes:
        raise UsageError(f'--category {category}: there are {", ".join(predictor.classes)}.')
    loaded = predictor.load(image)
    blocks, shown = attention_views(predictor, loaded, query, required=cam is None)
    if cam:
        blocks.append(_grad_cam_view(predictor, loaded, shown, cam, category))
    page = out_dir / 'attention.html'
    height, width = shown.shape[:2]
    weights = Path(checkpoint).name if checkpoint else 'published weights'
    about = f'{Path(config).stem}, {weights}'
    about += f', {Path(image).name} at {width} x {height} as the network saw it'
    write_page(
        page, blocks, shown, title=f'Attention in {Path(config).stem}', about=about, query=query
    )
    pictures = []
    for block in blocks:
        for view in block.views:
            name = re.sub(r'[^\w.]+', '_', f'{block.path or block.type} {view.name}')
            pictures.append(out_dir / f'{name}.png')
            save_picture(pictures[-1], view.picture)
    return AttentionView(page, pictures, blocks)


def attention_views(
    predictor: Predictor,
    image: np.ndarray | str | Path | Loaded,
    query: tuple[float, float] = (0.5, 0.5),
    required: bool = True,
) -> tuple[list[BlockViews], np.ndarray]:
    """Views of all attention blocks on an image, and the image as the network gets it, (H, W, 3).

    Raises:
        UsageError: attention is required, but the network has no block, or runs none.
    """
    model = predictor.model
    shown = _display_image(_network_input(predictor, image), predictor)
    has_attention = any(isinstance(module, AttentionBlock) for module in model.modules())
    if required and not has_attention:
        raise UsageError(
            'the network has no attention block to view. Name a config or checkpoint that has one, '
            'or add one with --attention.'
        )
    if not has_attention:
        return [], shown
    collector = Collector(query)
    with watching(model, collector):
        predictor(image)
    if required and not collector.records:
        raise UsageError('none of the attention blocks of the network ran on the image.')
    return collector.block_views(shown), shown


def _grad_cam_view(
    predictor: Predictor, image: Loaded, shown: np.ndarray, layer: str, category: str | None
) -> BlockViews:
    index = None if category is None else predictor.classes.index(category)
    x, boxes = _network_input(predictor, image)[None], None
    if hasattr(predictor.model, 'roi_head'):
        sample = predictor(image)
        instances = sample.pred_instances
        if not len(instances):
            raise UsageError('--grad-cam: nothing was detected, so no score can be explained.')
        boxes = instances.bboxes
        boxes = boxes * boxes.new_tensor(sample.scale_factor).repeat(2)
    values, index = grad_cam(predictor.model, x, layer, index, boxes)
    name = f'Grad-CAM of {predictor.classes[index]}'
    if not values.any():
        warn(
            f'--grad-cam {layer}: no position supports {predictor.classes[index]}, the map is 0 '
            'everywhere. In a pyramid the score may come from another level.'
        )
    return BlockViews(layer, 'Grad-CAM', [map_view(name, values, shown)])


def _network_input(predictor: Predictor, image: np.ndarray | str | Path | Loaded) -> Tensor:
    """The preprocessed image that the network gets, (C, H, W)."""
    data = pseudo_collate([predictor.prepare(image)])
    return predictor.model.data_preprocessor(data, False)['inputs'][0]


def _display_image(x: Tensor, predictor: Predictor) -> np.ndarray:
    """Preprocessed image (C, H, W) -> (H, W, 3) uint8 BGR."""
    preprocessor = predictor.model.data_preprocessor
    if getattr(preprocessor, '_enable_normalize', False):
        x = x * preprocessor.std.to(x) + preprocessor.mean.to(x)
    if len(x) == 3 and (
        getattr(preprocessor, '_channel_conversion', False)
        or getattr(preprocessor, 'channel_conversion', False)
    ):
        x = x.flip(0)
    if predictor.reader.image_format:  # values from 0 to 255, after rounding
        x = x.clamp(0, 255).round().to(torch.uint8)
    return to_display(x.permute(1, 2, 0).cpu().numpy(), predictor.reader.rgb)
