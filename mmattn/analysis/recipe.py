"""What all runs of a comparison have in common: runs of another recipe are not mixed with them."""

import hashlib
from pathlib import Path

from mmattn.config.index import find_config
from mmattn.config.load import load_config, parse_options


def recipe_of(config: str | Path, options: list[str] | None) -> dict[str, str]:
    """File name of a config, and sha256 of all its values with `--cfg-options` merged in."""
    text = load_config(config, parse_options(options)).pretty_text
    return dict(config=find_config(config).name, sha256=hashlib.sha256(text.encode()).hexdigest())
