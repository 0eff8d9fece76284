"""One self-contained HTML page with the attention maps of a network on an image."""

import json
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from mmattn.errors import cannot_write

from .panels import HEAT_COLOURS, SIGNED_COLOURS, BlockViews, jpeg

_TEMPLATE = Path(__file__).with_name('html_page.html')


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
    page = _TEMPLATE.read_text(encoding='utf-8').replace('__DATA__', text)
    try:
        Path(path).write_text(page, encoding='utf-8')
    except OSError as error:
        raise cannot_write(path, error) from error


def _table(name: str) -> list[list[int]]:
    """256 RGB colours of a matplotlib colour map."""
    return colormaps[name](np.arange(256), bytes=True)[:, :3].tolist()
