"""The network of a config, with the weights of a checkpoint."""

from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from mmattn.checkpoint.load import load_weights
from mmattn.checkpoint.plain_values import plain_items, tensors_to_lists
from mmattn.checkpoint.read import Checkpoint, open_checkpoint
from mmattn.config.data_set import describe_data_set
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import change_config, load_config_file, parse_options
from mmattn.datasets.build import build_dataset, metainfo_of
from mmattn.datasets.class_names import check_checkpoint_classes
from mmattn.log import warn
from mmattn.plugins import report

from .build import config_errors
from .distributed import is_main
from .model_wrappers import unwrap_ddp
from .run_config import (
    class_counts,
    prepare_config,
    recorded_attention,
    recorded_data_set,
    replace_sync_bn,
)


def build_model(
    config: str | Path | Config,
    checkpoint: str | Path | Checkpoint,
    options: dict | list[str] | None = None,
    attention: str | None = None,
    device: str | None = None,
) -> tuple[nn.Module, Config]:
    """The network of a config with the weights of a checkpoint, in eval mode.

    Args:
        config, options, attention: see `build_network`.
        checkpoint: path or address of a checkpoint, or an open one.
        device: 'cpu', 'cuda:0', ...; None for a GPU if there is one.

    Returns:
        network and config; the network has the config as `cfg`, too.

    Raises:
        UsageError, DataError: the config is wrong.
        CheckpointError: the checkpoint is refused, damaged, or does not fit.
    """
    checkpoint = open_checkpoint(checkpoint, training_state=False)
    meta = checkpoint.meta
    model, cfg = build_network(config, options, attention, checkpoint)
    load_weights(model, checkpoint.state_dict, checkpoint.path, meta.get('blocks'))
    heads = dict(class_counts(cfg.model, 'model'))
    check_checkpoint_classes(cfg, heads, meta, checkpoint.path, renames=True)
    model.cfg = cfg
    return model.to(device or get_device()).eval(), cfg


def build_network(
    config: str | Path | Config,
    options: dict | list[str] | None = None,
    attention: str | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
) -> tuple[nn.Module, Config]:
    """The network of a config, with weights that are not initialised.

    Args:
        config: path of a config file; or a config of `load_config_file`, which is changed.
        options: changes to the config; a dict of dotted keys, or `key=value` strings.
        attention: names of blocks to add.
        checkpoint: add the blocks that this checkpoint was trained with; it is not loaded.

    Raises:
        UsageError, DataError: the config is wrong.
        CheckpointError: the checkpoint is refused or damaged.
    """
    options = parse_options(options)
    opened = open_checkpoint(checkpoint, training_state=False) if checkpoint else None
    cfg = config if isinstance(config, Config) else load_config_file(config)
    data = recorded_data_set(None, opened)
    change_config(cfg, options, recorded_attention(attention, opened), data)
    prepare_config(cfg, options, renames=True)
    drop_pretrained(cfg.model)
    replace_sync_bn(cfg)
    with config_errors(cfg):
        return MODELS.build(cfg.model), cfg


def dataset_meta(cfg: Config) -> dict:
    """`metainfo` of the test data of a config (classes, palette, ...) as plain values."""
    metainfo = metainfo_of(build_dataset(next(dataset_leaves(cfg.test_dataloader['dataset']))))
    return tensors_to_lists(plain_items(metainfo, 'metainfo'))


def report_blocks(model: nn.Module, cfg: Config) -> None:
    """Log the attention blocks of the network, and warnings about the size of the images.

    Raises:
        UsageError: a block does not work at this size.
    """
    if not is_main():
        return
    with config_errors(cfg):
        blocks = report(unwrap_ddp(model), image_size(cfg))
    if blocks.rows:
        print_log(f'attention:\n{blocks.table()}', logger='current')
        for text in blocks.warnings:
            warn(text)


def report_data_set(cfg: Config) -> None:
    """Log what `--data` changed in the config."""
    if is_main():
        for line in describe_data_set(cfg):
            print_log(line, logger='current')


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of training images: the crop, or else the scale, padded."""
    size, divisor = (512, 512), cfg.model.get('data_preprocessor', {}).get('pad_size_divisor', 1)
    for step in next(dataset_leaves(cfg.train_dataloader['dataset'])).get('pipeline', []):
        if isinstance(step.get('scale'), list | tuple) and isinstance(step['scale'][0], int):
            size = step['scale'][::-1]
        size = step.get('crop_size', size)
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def drop_pretrained(cfg: dict) -> None:
    """Remove pretrained weights from a config, as those of a checkpoint will replace them."""
    for value in cfg.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, dict):
                drop_pretrained(item)
    if isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg'].get('type') == 'Pretrained':
        cfg['init_cfg'] = None
