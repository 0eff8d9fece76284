"""One self-contained page that shows where the attention of a network looks on an image."""

import json
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from mmattn.errors import WriteError

from .panels import _HEAT, _SIGNED, Seen, jpeg

_TEMPLATE = Path(__file__).with_name('html_page.html')


def write_page(
    path: str | Path,
    seen: list[Seen],
    image: np.ndarray,
    *,
    title: str,
    about: str,
    query: tuple[float, float] = (0.5, 0.5),
) -> None:
    """Write the page: HTML with all pictures and numbers inside, which needs no network.

    Args:
        path: of the file.
        seen: the blocks and their views.
        image: (H, W, 3) uint8 BGR that the network saw.
        title, about: the heading and the line below it.
        query: row and column as fractions, where the cross is at first.

    Raises:
        WriteError: it cannot be written.
    """
    blocks = [
        dict(
            path=block.path,
            type=block.type,
            views=[dict(view.data, name=view.name, kind=view.kind) for view in block.views],
        )
        for block in seen
    ]
    height, width = image.shape[:2]
    content = dict(
        title=title,
        about=about,
        query=list(query),
        width=width,
        height=height,
        image=jpeg(image),
        heat=_table(_HEAT),
        signed=_table(_SIGNED),
        blocks=blocks,
    )
    text = json.dumps(content, separators=(',', ':')).replace('<', '\\u003c')  # no end of script
    page = _TEMPLATE.read_text(encoding='utf-8').replace('__DATA__', text)
    try:
        Path(path).write_text(page, encoding='utf-8')
    except OSError as error:
        raise WriteError(
            f'cannot write {path}: {(error.strerror or str(error)).lower()}.'
        ) from error


def _table(name: str) -> list[list[int]]:
    """256 RGB colours."""
    return colormaps[name](np.arange(256), bytes=True)[:, :3].tolist()
