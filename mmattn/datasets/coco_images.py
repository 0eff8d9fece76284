"""The images of a COCO file: present, complete, and of the size in the JSON."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from reprlib import repr as show
from urllib.parse import unquote

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmattn.errors import DataError, MmattnError
from mmattn.progress import track

from . import fix_commands, image_io, image_limits
from .image_io import Fault
from .loading_steps import LoadingSteps

_MAX_DECODED = 1000  # images that are decoded before a training


def check_files(images: list[dict], folder: Path, file: Path, loading: LoadingSteps) -> None:
    """Check the header and the end of every image.

    Raises:
        DataError: names the first that is missing or faulty, how many are, and what to do.
    """
    if loading.image is None:  # each is decoded
        images = [
            images[i]
            for i in np.linspace(0, len(images) - 1, min(len(images), _MAX_DECODED), dtype=int)
        ]
    work = partial(file_problem, folder=folder, loading=loading)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # reading frees the GIL
        results = pool.map(work, images)
        faults = [f for f in track(results, total=len(images), title=f'checking {folder}') if f]
    if faults:
        kind, text, _ = faults[0]
        more = f' ({len(faults)} of {len(images)} images are missing or faulty)'
        same = [fault for fault in faults if fault.kind == kind]
        raise DataError(f'{text}{more}. {remedy(kind, same, file, loading)}')


def remedy(kind: str, faults: Iterable[Fault], file: str | Path, loading: LoadingSteps) -> str:
    """What to do about faults of a kind.

    Args:
        kind: kind of the faults.
        faults: all of them.
        file: the COCO file.
        loading: how the config loads an image.
    """
    if kind == 'backslash':
        return f"Write '/' for each: {fix_commands.replace_backslashes_command(file)}"
    if kind == 'quoted':
        return f'Write the names as they are: {fix_commands.unquote_names_command(file)}'
    if kind == 'above':
        return 'The file names have the last folder of data_prefix.img already: leave it out there.'
    if kind == 'large':
        return image_limits.remedy_for_large(fault.megapixels for fault in faults)
    if kind == 'exif':
        return image_io.remedy_for_orientation(loading.image)
    return 'Get the files again or correct the JSON.'


def file_problem(image: dict, folder: Path, loading: LoadingSteps) -> Fault | None:
    """What is wrong with the file of an image; None if nothing is.

    Args:
        image: entry of the COCO file.
        folder: folder that its file name is relative to.
        loading: how the config loads an image.
    """
    ident, name = image['id'], image['file_name']
    path, home = os.path.join(folder, name), os.path.join(os.path.abspath(folder), '')
    what = f'image {ident}: {path}'
    orientation = 1
    try:
        if not os.path.abspath(path).startswith(
            home
        ):  # links may lead out of the folder, names not
            return Fault('leaves', f'file_name {show(name)} of image {ident} leaves {folder}')
        if not os.path.getsize(path):
            return Fault('empty', f'{what} is empty')
        image_limits.max_megapixels()  # sets Pillow's limit
        with Image.open(path) as opened:
            size, kind = opened.size, opened.format
            image_limits.check_pixel_count(size)
            if 'exif' in opened.info:
                orientation = opened.getexif().get(image_io.EXIF_ORIENTATION, 1)
        end = image_io.END_MARKERS.get(kind)
        if end and end not in image_io.read_tail(path):
            return Fault('cut', f'{what} is cut short: its end is missing')
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        slashed = path.replace('\\', '/')
        if '\\' in name and os.path.isfile(slashed):
            text = f'file_name {name!r} of image {ident} has backslashes, but {slashed} is there'
            return Fault('backslash', text)
        return _misnamed(name, folder) or Fault('missing', f'{what} is missing')
    except UnidentifiedImageError:
        shape = _shape(loading, path)
        if shape is None:
            with open(path, 'rb') as file:
                start = file.read(8)
            return Fault('damaged', f'{what} is damaged or no image: it starts with {start!r}')
        return _compare_size(image, what, shape[1::-1], '')
    except Image.DecompressionBombError as error:
        return image_io.large_fault(what, error)
    except (OSError, ValueError) as error:
        text = f'file_name {show(name)} of image {ident} cannot be read: {error.args[-1]}'
        return Fault('damaged', text)
    rotated = orientation in range(5, 9)  # width and height are swapped
    if loading.image:
        applied = rotated and loading.image.applies_exif
        after = ' after EXIF rotation' if applied else ' without EXIF rotation' if rotated else ''
        read = size[::-1] if applied else size
        if read == (image['width'], image['height']):
            return None
    else:
        read, after = size, ''
    shape = _shape(loading, path)  # the size that is really read
    fault = _compare_size(image, what, read if shape is None else shape[1::-1], after)
    if fault and rotated and loading.image and read[::-1] == (image['width'], image['height']):
        return Fault('exif', fault.text)
    return fault


def _misnamed(name: str, folder: Path) -> Fault | None:
    """The fault of a file that exists under another spelling of its name; None if none does."""
    other = os.path.join(folder, unquote(name))
    if unquote(name) != name and os.path.isfile(other):
        return Fault(
            'quoted', f'file_name {name!r} is quoted as in an address, but {other} is there'
        )
    above = os.path.join(os.path.dirname(os.path.abspath(folder)), name)
    if os.path.isfile(above):
        text = f'{os.path.join(folder, name)} is missing, but {above} is there'
        return Fault('above', text)
    return None


def _shape(loading: LoadingSteps, path: str) -> tuple[int, ...] | None:
    try:
        return loading.shape(path)
    except MmattnError:
        return None


def _compare_size(image: dict, what: str, size: tuple[int, ...], after: str) -> Fault | None:
    if size == (image['width'], image['height']):
        return None
    listed = f'{image["width"]}x{image["height"]}'
    return Fault('size', f'{what} is {size[0]}x{size[1]}{after}, the JSON says {listed}')
