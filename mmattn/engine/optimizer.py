"""Checks of the optimizer in a config."""

from torch import nn

from mmattn.log import warn
from mmattn.text import nearest


def warn_unused_custom_keys(optim_wrapper: dict, network: nn.Module) -> None:
    """Warn about `custom_keys` that match no parameter, common in copied recipes."""
    keys = (optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}
    names = [n if '.' in n else f'.{n}' for n, _ in network.named_parameters()]
    for key in keys:
        if not any(key in name for name in names):
            hint = nearest(key, {n.split('.')[0] for n in names})
            warn(
                f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} is in the name of no parameter.'
                f'{hint or f" They are named like {names[0]}."}'
            )
