"""Loading a model of the index with its published weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from mmattn.config.published_weights import resolve
from mmattn.engine.build import build_model

if TYPE_CHECKING:
    from torch import nn


def load_model(
    name: str | Path, weights: str | Path | None = None, device: str | None = None
) -> 'nn.Module':
    """A model with its weights, in eval mode, ready for `mmattn.inference.predictor.Predictor`.

    Args:
        name: of the index, or the path of a config.
        weights: a checkpoint; a folder of published files, of which the newest with this name
            counts, or else the newest of this model with attention that was added to it;
            `https://...`; `hf://owner/repository`, or with a file behind it. None for the
            published ones. The hash in the name of a published file is checked.
        device: 'cpu', 'cuda:0', ...; None for the best.

    Returns:
        the network; its `cfg` is the config.

    Raises:
        UsageError: no such name; nothing is published under it and no weights are named.
        CheckpointError: the weights cannot be had, are damaged, or do not fit.
    """
    config, checkpoint = resolve(name, weights)
    return build_model(config, checkpoint, device=device)[0]
