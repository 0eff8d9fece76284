"""Reading masks that are images: files, and those inside annotation files."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from mmattn.errors import DataError

from ..image_io import PILLOW_ERRORS, pillow_open
from ..image_limits import check_megapixels


def mask_pixels(source: Path | BytesIO, file: Path) -> np.ndarray:
    """A mask (H, W) of an image: where it is not black, or where it is opaque if it has alpha.

    Args:
        source: the image, as a file or in memory.
        file: file that it is in, for messages.

    Raises:
        DataError: it is too large.
        ValueError: it is damaged or no image.
    """
    try:
        opened = Image.open(source) if isinstance(source, BytesIO) else pillow_open(source)
        with opened as image:
            check_megapixels(f'mask in {file}', image.size[0] * image.size[1])
            if image.mode in ('RGBA', 'LA'):
                alpha = np.asarray(image.getchannel('A')) > 0
                if not alpha.all():  # opaque everywhere, it says nothing
                    return alpha
                image = image.convert('RGB')
            if image.mode == 'P':
                return np.asarray(image) > 0
            pixels = np.asarray(image)
    except PILLOW_ERRORS as error:
        raise ValueError('the mask is damaged or no image') from error
    except Image.DecompressionBombError as error:
        raise DataError(f'mask in {file} is too large: {error}') from error
    return (pixels > 0).any(-1) if pixels.ndim == 3 else pixels > 0
