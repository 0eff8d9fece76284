"""Writing the cache of a data set, see `image_cache`."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import cv2
import mmcv
import numpy as np
from PIL import Image

from mmattn.errors import DataError, WriteError
from mmattn.files import check_writable, write_bytes_atomic, write_text_atomic
from mmattn.progress import track
from mmattn.text import some

from .image_cache import INDEX, Entry, Index, cache_folder, copy_fault, copy_path, parse_index
from .image_io import PILLOW_ERRORS
from .image_limits import check_pixel_count
from .lossless import decode, encode

# Folders of images and of label maps, with the endings of their files, that training reads.
SETS = {
    'cityscapes': dict(
        images=(('leftImg8bit/train', 'leftImg8bit/val'), '_leftImg8bit.png'),
        labels=(('gtFine/train', 'gtFine/val'), '_gtFine_labelTrainIds.png'),
    ),
    'camvid': dict(
        images=(('images/train', 'images/val', 'images/test'), '.jpg'),
        labels=(('labels/train', 'labels/val', 'labels/test'), '.png'),
    ),
    'ade20k': dict(
        images=(('images/training', 'images/validation'), '.jpg'),
        labels=(('annotations/training', 'annotations/validation'), '.png'),
    ),
    'coco': dict(images=(('train2017', 'val2017'), '.jpg')),
}
_SAMPLES = 4  # files of a kind that are encoded to estimate the size of the cache
_MARGIN = 1.1  # free space over the estimate
_SAVE_SECONDS = 20.0  # between two saves of the index: what a kill loses


def write_cache(
    name: str,
    root: str | Path,
    kind: str = 'bmp',
    *,
    command: str | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Copy the images of a data set, and label maps that are PNG, into its cache.

    Valid copies of an earlier run stay as they are, so that a run that was stopped goes on. Every
    copy is decoded and compared with its original; a file whose pixels no copy can have is left
    out and named.

    Args:
        name: 'cityscapes', 'camvid', 'ade20k' or 'coco'.
        root: folder of the prepared data set, as configs name it.
        kind: format of the copies, see `lossless.encode`; label maps as 'webp' become PNG.
        command: writes the cache again, for messages.
        log: called with the place and the size before anything is written, and at the end.

    Returns:
        the folder of the cache.

    Raises:
        DataError: the data set has no images.
        WriteError: the folder cannot be written to, or the disk has too little space.
    """
    root, folder = Path(root), cache_folder(root)
    files = _list_files(name, root)
    if not files:
        raise DataError(f'{name}: no image of it in {root}. Name the folder with --root.')
    check_writable(folder, '--out')
    entries = _valid_entries(root, folder, files)
    kept = {key for key, e in entries.items() if e.kind == _kind_of(kind, files[key])}
    todo = {key: is_label for key, is_label in files.items() if key not in kept}
    _check_space(root, folder, todo, len(files), kind, log)
    command = command or f'python tools/prepare_data.py {name} --cache {kind}'
    left_out = _write(root, folder, todo, entries, kind, command)
    if left_out:
        reasons = some([f'{root / key} {reason}' for key, reason in sorted(left_out.items())], 3)
        log(f'{folder}: {len(left_out)} files are left to their originals: {reasons}')
    size = sum(entry.copy_bytes for entry in entries.values())
    log(f'{folder}: {len(entries)} copies, {size} bytes')
    return folder


def _list_files(name: str, root: Path) -> dict[str, bool]:
    """Relative path -> whether it is a label map, of all files of a data set to be copied."""
    files = {}
    for part, (folders, ending) in SETS[name].items():
        for folder in folders:
            paths = [
                os.path.relpath(os.path.join(parent, file), root)
                for parent, _, names in os.walk(root / folder, followlinks=True)
                for file in names
                if file.endswith(ending)
            ]
            files.update(dict.fromkeys(sorted(paths), part == 'labels'))
    return files


def _valid_entries(root: Path, folder: Path, files: dict[str, bool]) -> dict[str, Entry]:
    """The valid rows of the index of a cache; copies of other rows are removed."""
    try:
        index = parse_index((folder / INDEX).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    entries = {}
    for key, entry in index.entries.items():
        path = copy_path(folder, key, entry.kind)
        if key in files and copy_fault(os.stat(root / key), entry, path) is None:
            entries[key] = entry
        else:
            Path(path).unlink(missing_ok=True)
    return entries


def _kind_of(kind: str, is_label: bool) -> str:
    return 'png' if is_label and kind == 'webp' else kind


def _check_space(
    root: Path, folder: Path, todo: dict[str, bool], count: int, kind: str, log: Callable
) -> None:
    """Say where and how much will be written; refuse if the disk has too little space."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        pixels = pool.map(_pixels, [root / key for key in todo])
        pixels = dict(zip(todo, track(pixels, total=len(todo), title=f'reading {root}')))
    needed = 0.0
    for is_label in False, True:
        keys = [key for key in todo if todo[key] is is_label and pixels[key]]
        chosen = np.linspace(0, len(keys) - 1, min(len(keys), _SAMPLES)).astype(int)
        samples = {keys[i]: _copy(root, None, kind, keys[i], is_label) for i in chosen}
        sizes = {key: entry for key, entry in samples.items() if isinstance(entry, Entry)}
        if sizes:
            ratio = sum(e.copy_bytes for e in sizes.values()) / sum(pixels[k] for k in sizes)
            needed += ratio * sum(pixels[key] for key in keys)
    free = shutil.disk_usage(folder).free
    log(
        f'{folder}: {len(todo)} of {count} files are to be written as {kind}, about {needed:.0f} '
        f'bytes ({needed / 1e9:.2f} GB; free are {free / 1e9:.2f} GB)'
    )
    if needed * _MARGIN > free:
        other = ', take --cache webp, which needs less' if kind != 'webp' else ''
        raise WriteError(
            f'cannot write {folder}: it takes about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are '
            f'free. Free some{other}, or make it a link to a folder on another disk.'
        )


def _pixels(path: Path) -> int:
    """Pixels of an image by its header; 0 if it cannot be read."""
    try:
        with Image.open(path) as opened:
            return opened.width * opened.height
    except (*PILLOW_ERRORS, Image.DecompressionBombError):
        return 0


def _write(
    root: Path,
    folder: Path,
    todo: dict[str, bool],
    entries: dict[str, Entry],
    kind: str,
    command: str,
) -> dict[str, str]:
    """Write the copies, and the index from time to time; adds their entries to `entries`.

    Returns:
        why a file has no copy, by its relative path.
    """
    left_out: dict[str, str] = {}
    results: dict[str, Entry | str] = {}  # of the threads, until they are saved

    def copy(key: str) -> None:
        results[key] = _copy(root, folder, kind, key, todo[key])

    def save(complete: bool) -> None:
        for key in list(results):
            result, old = results.pop(key), entries.get(key)
            if isinstance(result, str):
                left_out[key] = result
                continue
            entries[key] = result
            if old:  # of another format
                Path(copy_path(folder, key, old.kind)).unlink(missing_ok=True)
        write_text_atomic(folder / INDEX, Index(entries, command, complete).to_json())

    save(complete=False)
    for parent in {os.path.dirname(key) for key in todo}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))  # decoding and encoding free the GIL
    saved, done = time.monotonic(), False
    try:
        for _ in track(pool.map(copy, todo), total=len(todo), title=f'writing {folder}'):
            if time.monotonic() - saved > _SAVE_SECONDS:
                save(complete=False)
                saved = time.monotonic()
        done = True
    finally:
        pool.shutdown(cancel_futures=True)
        save(complete=done)
    return left_out


def _copy(root: Path, folder: Path | None, kind: str, key: str, is_label: bool) -> Entry | str:
    """Copy one file.

    Args:
        root: folder of the data set.
        folder: folder of the cache; None to write nothing.
        kind: format of the copy.
        key: path of the file, relative to the data set.
        is_label: whether it is a label map.

    Returns:
        its entry; or why it can have no copy, as the end of a sentence.
    """
    path, kind = root / key, _kind_of(kind, is_label)
    state = os.stat(path)  # before it is read, so that a change from now on shows
    data = path.read_bytes()
    try:
        with Image.open(BytesIO(data)) as opened:
            check_pixel_count(opened.size)
        pixels = _decode_original(data, is_label)
        encoded = encode(pixels, kind)
    except (*PILLOW_ERRORS, Image.DecompressionBombError, cv2.error) as error:
        return f'cannot be copied: {error}'
    copied = decode(np.frombuffer(encoded, np.uint8), is_label)
    if copied is None or copied.dtype != pixels.dtype or not np.array_equal(copied, pixels):
        return f'has no {kind} of the same pixels'
    if folder:
        write_bytes_atomic(Path(copy_path(folder, key, kind)), encoded)
    return Entry(state.st_size, state.st_mtime_ns, pixels.shape, kind, len(encoded))


def _decode_original(data: bytes, is_label: bool) -> np.ndarray:
    """The pixels that the stock steps decode, by their default settings.

    Raises:
        ValueError: the file cannot be decoded, or is a label map of other than 8 bits.
    """
    if not is_label:
        pixels = mmcv.imfrombytes(data, flag='color', backend='cv2')
        if pixels is None:
            raise ValueError('OpenCV cannot decode it')
        return pixels
    pixels = mmcv.imfrombytes(data, flag='unchanged', backend='pillow')
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or min(pixels.shape) == 1:
        raise ValueError(f'it is a label map of {pixels.dtype} and shape {pixels.shape}')
    return pixels
