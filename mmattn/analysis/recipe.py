"""What all runs of a comparison have in common: runs of another recipe are not mixed with them."""

import hashlib
from pathlib import Path

from mmattn.config.index import find_config
from mmattn.config.load import load_config, parse_options


def recipe_of(
    config: str | Path, options: list[str] | None, data: str | None = None
) -> dict[str, str]:
    """File name of a config, and sha256 of all values with `--data` and `--cfg-options` merged."""
    text = load_config(config, parse_options(options), data=data).pretty_text
    return dict(config=find_config(config).name, sha256=hashlib.sha256(text.encode()).hexdigest())
