"""One self-contained HTML page with the attention maps of a network on an image."""

import json
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from .html_template import fill_template
from .panels import HEAT_COLOURS, SIGNED_COLOURS, BlockViews, jpeg


def write_page(
    path: str | Path,
    blocks: list[BlockViews],
    image: np.ndarray,
    *,
    title: str,
    about: str,
    query: tuple[float, float] = (0.5, 0.5),
) -> None:
    """Write the page: HTML with all pictures and numbers inside, which needs no server.

    Args:
        path: path of the HTML file.
        blocks: the blocks and their views.
        image: (H, W, 3) uint8 BGR that the network saw.
        title, about: the heading and the line below it.
        query: initial position of the cross, row and column as fractions.

    Raises:
        WriteError: the file cannot be written.
    """
    block_data = [
        dict(
            path=block.path,
            type=block.type,
            views=[dict(view.data, name=view.name, kind=view.kind) for view in block.views],
        )
        for block in blocks
    ]
    height, width = image.shape[:2]
    content = dict(
        title=title,
        about=about,
        query=list(query),
        width=width,
        height=height,
        image=jpeg(image),
        heat=_table(HEAT_COLOURS),
        signed=_table(SIGNED_COLOURS),
        blocks=block_data,
    )
    text = json.dumps(content, separators=(',', ':')).replace('<', '\\u003c')  # no </script>
    fill_template(path, 'html_page.html', 'Attention', DATA=text)


def _table(name: str) -> list[list[int]]:
    """256 RGB colours of a matplotlib colour map."""
    return colormaps[name](np.arange(256), bytes=True)[:, :3].tolist()
