"""Load a model of the index with its published weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from mmattn.config.published_weights import resolve
from mmattn.engine.network import build_model

if TYPE_CHECKING:
    from torch import nn


def load_model(
    name: str | Path, weights: str | Path | None = None, device: str | None = None
) -> 'nn.Module':
    """A model with its weights, in eval mode, ready for `mmattn.Predictor`.

    Args:
        name: name in the index, or path of a config.
        weights: checkpoint file; `https://...`; `hf://owner/repository` or
            `hf://owner/repository/file`; or a folder of published files, of which the newest with
            this name is taken, else the newest of this model with attention added to it. None for
            the published weights. The hash in the name of a published file is checked.
        device: 'cpu', 'cuda:0', ...; None for the best available.

    Returns:
        the network; its `cfg` is the config.

    Raises:
        UsageError: no such name; nothing is published under it and no weights are named.
        CheckpointError: the weights cannot be downloaded or read, are damaged, or do not fit.
    """
    config, checkpoint = resolve(name, weights)
    return build_model(config, checkpoint, device=device)[0]
