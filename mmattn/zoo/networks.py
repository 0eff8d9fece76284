"""Detectors and segmentors as files to share: weights, config as data, and the way back."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import dump
from torch import nn

from mmattn.checkpoint.load import block_forms
from mmattn.checkpoint.plain_values import plain_items, tensors_to_lists
from mmattn.checkpoint.read import open_checkpoint
from mmattn.config.load import load_config, load_config_file
from mmattn.config.runner_keys import RUNNER_KEYS
from mmattn.config.scopes import use_scope
from mmattn.engine.network import build_model, dataset_meta
from mmattn.errors import CheckpointError, UsageError

from .card import Metrics, metrics_table, network_card, network_metadata, portable_config

NOT_DATA = ('_base_', 'custom_imports')  # keys of a config that would read or execute other files


def describe_network(
    network: nn.Module,
    config: str | Path | Config | None,
    metrics: dict[str, float] | None,
    license: str | None,
) -> tuple[dict, dict, Callable[[list[Path]], str]]:
    """What is saved with the weights of a network.

    Args:
        network: a detector or segmentor.
        config: its config; None for `network.cfg`, which `load_model` sets.
        metrics, license: as in `mmattn.save_pretrained`.

    Returns:
        the content of `config.json`, the metadata of the weights, and a function that writes the
        card of given files.

    Raises:
        UsageError: the config is unknown, or holds more than data.
    """
    cfg = getattr(network, 'cfg', None) if config is None else config
    if cfg is None:
        raise UsageError(
            f'save_pretrained: this {type(network).__name__} does not know its config. Name it: '
            'save_pretrained(network, folder, config=...), or load the network with '
            'mmattn.load_model.'
        )
    cfg = cfg if isinstance(cfg, Config) else load_config(cfg)
    use_scope(cfg)
    name = Path(cfg.filename).stem if cfg.filename else 'network'
    meta = model_meta(name, network, cfg, cfg.get('attention'), {})
    content = network_entry(name, cfg, meta)
    if content['config'] is None:
        raise UsageError(
            f'save_pretrained: the config {name} holds more than texts, numbers, lists and dicts, '
            'so config.json cannot hold it.'
        )
    measured = Metrics(metrics, metrics_table(metrics)) if metrics else Metrics()

    def write_card(paths: list[Path]) -> str:
        dataset = meta['dataset_meta']
        head = network_metadata(name, network, cfg, dataset, measured, license)
        return network_card(name, name, cfg, {}, dataset, measured, paths, head)

    return content, meta, write_card


def model_meta(
    name: str, network: nn.Module, cfg: Config, attention: dict | None, recorded: dict
) -> dict:
    """Facts that are saved in the header of weights, as plain values.

    Args:
        name: name of the config.
        network: the network.
        cfg: its config.
        attention: the attention that was added to the config, if any.
        recorded: facts that the training recorded.
    """
    merged = {**dataset_meta(cfg), **recorded.get('dataset_meta', {})}
    merged = tensors_to_lists(plain_items(merged, 'dataset_meta'))
    fields = {k: merged[k] for k in ('classes', 'palette', 'licence') if merged.get(k)}
    # tuples become lists: the same bytes every time
    meta = dict(config=name, dataset_meta=json.loads(json.dumps(fields)))
    if attention:
        meta['attention'] = attention
    if recorded.get('data_set'):
        meta['data_set'] = recorded['data_set']
    if forms := block_forms(network):
        meta['blocks'] = forms
    return meta


def network_entry(name: str, cfg: Config, meta: dict) -> dict:
    """The content of `config.json` of a network; its `config` is None if that is no plain data."""
    content = portable_config(cfg).to_dict()
    try:
        config = json.loads(dump(content, file_format='json'))
    except TypeError:
        config = None
    if config is not None:
        # without variables of the config's files, such as crop_size
        config = {key: value for key, value in config.items() if key in RUNNER_KEYS - {*NOT_DATA}}
    classes = meta['dataset_meta'].get('classes', [])
    return dict(kind='network', name=name, classes=classes, config=config)


def build_saved_network(content: dict, weights: Path, where: str, device: str | None) -> nn.Module:
    """The network of a `config.json` with its weights; the config is read as data.

    Args:
        content: of `config.json`.
        weights: file of the weights.
        where: folder or repository, for messages.
        device: 'cpu', 'cuda:0', ...; None for the best available.

    Raises:
        CheckpointError: the content is none that `save_pretrained` or `publish` wrote, or holds
            something to execute.
        UsageError: the config names a class that is not registered here.
    """
    name, config = content.get('name'), content.get('config')
    if not isinstance(name, str) or not re.fullmatch(r'[\w.-]+', name):
        raise CheckpointError(f'{where}: name is {name!r} in config.json, not that of a config.')
    if not isinstance(config, dict):
        raise CheckpointError(
            f'{where}: config.json has no config. If {name} is a name or file of a config here: '
            f'mmattn.load_model({name!r}, weights).'
        )
    if refused := [key for key in NOT_DATA if key in config]:
        raise CheckpointError(
            f'{where}: {refused[0]} in config.json is refused, as it could execute code. Ask its '
            'author for a folder that save_pretrained wrote.'
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'{name}.json')
        path.write_text(json.dumps(config), encoding='utf-8')
        cfg = load_config_file(path)
        # inside: messages about the config read its file
        return build_model(cfg, open_checkpoint(weights), device=device)[0]
