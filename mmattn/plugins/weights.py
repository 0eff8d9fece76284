"""Weights of a convolution, for the block that replaces it."""

from typing import Any

from torch import Tensor, nn

from .plugin import named_plugins

# DCNv2 multiplies by sigmoid(0) = 0.5 at its start, so it computes what the plain convolution did
# with twice the weights: Deformable ConvNets v2, CVPR 2019, eq. 1.
_WEIGHT_FACTORS = {'ModulatedDeformConv2dPack': 2.0}


def adapt_state_dict(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the plain network under the keys of the network with replacements.

    Every loader does the same through a hook of the replacement; this returns the result without
    loading it.

    Args:
        model: a network that may have plugins with `replace`.
        state_dict: weights of the plain network; keys of modules that are not replaced are kept.

    Returns:
        a new dict, without the weights that a replacement cannot start from.
    """
    state_dict = dict(state_dict)
    for path, block in named_plugins(model):
        if block.plugin.replaces:
            convert_plain_weights(block, state_dict, f'{path}.')
            block_keys = {f'{path}.{key}' for key in block.state_dict()}
            if block_keys.isdisjoint(state_dict):
                state_dict = {k: v for k, v in state_dict.items() if not k.startswith(f'{path}.')}
    return state_dict


def convert_plain_weights(
    block: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Rename and scale, in place, the weights of the convolution that a block replaces.

    A `load_state_dict` pre-hook of the block. Weights of the block itself are left as they are.
    """
    keys = {key for key in state_dict if key.startswith(prefix)}
    if not keys <= {f'{prefix}{source}' for source, _, _ in block.plugin.weight_map}:
        return  # weights of the replacement itself
    values = {key: state_dict.pop(key) for key in keys}
    for source, target, factor in block.plugin.weight_map:
        if f'{prefix}{source}' in values:
            state_dict[f'{prefix}{target}'] = factor * values[f'{prefix}{source}']


def copy_plain_weights(
    block: nn.Module, convolution: nn.Module
) -> tuple[tuple[str, str, float], ...]:
    """Start a block from the weights of the convolution that it replaces.

    Returns:
        the `weight_map` of its `Plugin`.

    Raises:
        ValueError: a weight that the block does not have in this shape.
    """
    prefix = f'{block.plain}.' if hasattr(block, 'plain') else ''
    weight_factor = _WEIGHT_FACTORS.get(type(block).__name__, 1.0)
    weights = block.state_dict()
    weight_map = []
    for key, value in convolution.state_dict().items():
        target, factor = f'{prefix}{key}', weight_factor if key == 'weight' else 1.0
        if target not in weights or weights[target].shape != value.shape:
            raise ValueError(
                f'cannot start from {key} {tuple(value.shape)} of the convolution it replaces, '
                f'its own is {tuple(weights[target].shape) if target in weights else "none"}. '
                "Give it the same groups and bias, or init='paper'"
            )
        weights[target].copy_(factor * value)
        weight_map.append((key, target, factor))
    return tuple(weight_map)
