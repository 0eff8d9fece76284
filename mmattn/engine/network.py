"""The network of a config, with the weights of a checkpoint."""

import logging
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import nn

from mmattn.checkpoint.load import load_weights
from mmattn.checkpoint.plain_values import plain_items, tensors_to_lists
from mmattn.checkpoint.read import read_checkpoint
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import parse_options
from mmattn.datasets.build import build_dataset
from mmattn.datasets.class_names import check_checkpoint_classes
from mmattn.plugins import report

from .build import config_errors
from .distributed import is_main
from .run_config import class_counts, prepare_config, replace_sync_bn


def build_model(
    config: str | Path,
    checkpoint: str | Path,
    options: dict | list[str] | None = None,
    attention: str | None = None,
    device: str | None = None,
) -> tuple[nn.Module, Config]:
    """The network of a config with the weights of a checkpoint, in eval mode.

    On a device, 'cpu' or 'cuda:0', or on the best.
    """
    model, cfg = build_network(config, options, attention, checkpoint)
    content = read_checkpoint(checkpoint)
    meta = content.get('meta', {})
    load_weights(model, content['state_dict'], checkpoint, meta.get('blocks'))
    heads = dict(class_counts(cfg.model, 'model'))
    check_checkpoint_classes(cfg, heads, meta, checkpoint, renames=True)
    model.cfg = cfg
    return model.to(device or get_device()).eval(), cfg


def build_network(
    config: str | Path,
    options: dict | list[str] | None = None,
    attention: str | None = None,
    checkpoint: str | Path | None = None,
) -> tuple[nn.Module, Config]:
    """The network of a config, with weights that mean nothing yet.

    It has the blocks that the checkpoint, if any, was trained with.
    """
    from mmengine.registry import MODELS

    options = parse_options(options)
    cfg = prepare_config(config, options, 'none', None, attention, checkpoint, renames=True)
    drop_pretrained(cfg.model)
    replace_sync_bn(cfg)
    with config_errors(cfg):
        return MODELS.build(cfg.model), cfg


def dataset_meta(cfg: Config) -> dict:
    """Classes, palette and whatever else the test data of a config say about themselves."""
    found = build_dataset(next(dataset_leaves(cfg.test_dataloader['dataset']))).metainfo
    return tensors_to_lists(plain_items(found, 'metainfo'))


def report_blocks(model: nn.Module, cfg: Config) -> None:
    """Log what blocks the network has; raises what they say against the size of the images."""
    if not is_main():
        return
    with config_errors(cfg):
        found = report(model.module if is_model_wrapper(model) else model, image_size(cfg))
    if found.rows:
        lines, warnings = str(found).split('\nwarning: ', 1)[0], found.warnings
        print_log(f'attention:\n{lines}', logger='current')
        for text in warnings:
            print_log(text, logger='current', level=logging.WARNING)


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the images in training: the crop, or else the scale, padded."""
    size, divisor = (512, 512), cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    for step in next(dataset_leaves(cfg.train_dataloader['dataset'])).get('pipeline', []):
        if isinstance(step.get('scale'), list | tuple) and isinstance(step['scale'][0], int):
            size = step['scale'][::-1]
        size = step.get('crop_size', size)
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def drop_pretrained(cfg: dict) -> None:
    """Fetch no weights that a checkpoint is about to replace."""
    for value in cfg.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, dict):
                drop_pretrained(item)
    if isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg'].get('type') == 'Pretrained':
        cfg['init_cfg'] = None
