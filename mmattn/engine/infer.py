"""Running a trained network over images."""

from pathlib import Path

import cv2
import numpy as np

from mmattn.errors import DataError, UsageError
from mmattn.progress import track
from mmattn.visualization.comparison import overlay, save_picture

from .runner import build_model, check_writable, dataset_meta

_SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}


def infer(
    config: str | Path,
    checkpoint: str | Path,
    source: str | Path,
    *,
    out_dir: str | Path,
    attention: str | None = None,
    options: dict | list[str] | None = None,
) -> list[Path]:
    """Segment an image or all images of a folder.

    Per image: `labels/<name>.png` with the class index of each pixel, `overlay/<name>.png` with the
    class colours over the image.

    Args:
        config, checkpoint: the network and its weights.
        source: an image, or a folder that is searched for images.
        out_dir: where the two folders go.
        attention: blocks to add; by default those that the checkpoint was trained with.
        options: changes to the config, dotted keys; a dict or `key=value` strings.

    Returns:
        the overlays written.

    Raises:
        DataError: no image there; or, after all others are done, images that cannot be read.
        MmattnError: config or checkpoint, of the kind that fits.
    """
    from mmseg.apis import inference_model

    source, out_dir = Path(source), Path(out_dir)
    images = _images(source)
    check_writable(out_dir, '--out-dir')
    model, cfg = build_model(config, checkpoint, options, attention)
    if not hasattr(model, 'decode_head'):
        raise UsageError(f'{config} is no segmentor: tools/infer.py shows segmentation.')
    palette = dataset_meta(cfg)['palette']
    written, unreadable = [], []
    for path in track(images, total=len(images), title=f'infer -> {out_dir}'):
        image = cv2.imread(str(path))
        if image is None:
            unreadable.append(path)
            continue
        labels = inference_model(model, image).pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
        name = path.relative_to(source) if source.is_dir() else Path(path.name)
        name = name.with_suffix('.png')
        save_picture(out_dir / 'labels' / name, labels)
        save_picture(out_dir / 'overlay' / name, overlay(image, labels, palette))
        written.append(out_dir / 'overlay' / name)
    if unreadable:
        names = ', '.join(str(p) for p in unreadable[:5])
        raise DataError(
            f'{len(unreadable)} of {len(images)} images cannot be read: {names}. Replace or '
            'remove them; the others are done.'
        )
    return written


def _images(source: Path) -> list[Path]:
    if source.is_dir():
        images = sorted(p for p in source.rglob('*') if p.suffix.lower() in _SUFFIXES)
        if not images:
            raise DataError(f'no image in {source}: looked for {", ".join(sorted(_SUFFIXES))}.')
        return images
    if not source.is_file():
        raise DataError(f'image {source} does not exist.')
    return [source]
