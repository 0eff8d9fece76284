"""Sources and outputs of inference: find images and videos, and name the files for each."""

import glob
import json
from collections import Counter
from pathlib import Path

from mmattn.errors import DataError, UsageError, cannot_write

IMAGES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
VIDEOS = {'.mp4', '.avi', '.mov', '.mkv', '.webm'}
INDEX = 'sources.json'
_FOREIGN = '--out-dir {}: {} exists and was not written by mmattn. Choose another --out-dir.'


def find_sources(source: str, out_dir: Path, suffix: str = '') -> dict[Path, Path]:
    """Image or video -> name of its output files, without suffix.

    Files that an earlier run wrote into `out_dir` are left out.

    Args:
        source: image, video, folder of them, or glob pattern.
        out_dir: folder of the output.
        suffix: suffix of images in a folder, in addition to the usual ones.

    Raises:
        DataError: no image or video found.
    """
    root = Path(source)
    if root.is_dir():
        suffixes = tuple(IMAGES | VIDEOS | ({suffix.lower()} - {''}))
        earlier = _EarlierOutputs(out_dir)
        inside = root.resolve() in out_dir.resolve().parents
        candidates = (p for p in root.rglob('*') if p.name.lower().endswith(suffixes))
        paths = sorted(p for p in candidates if p.is_file())
        paths = [p for p in paths if p.resolve() not in earlier]
        if inside:
            paths = [p for p in paths if out_dir.resolve() not in p.resolve().parents]
        if not paths:
            kinds = ', '.join(sorted(suffixes))
            raise DataError(f'no image or video in {source}: looked for {kinds}.')
    elif root.is_file():
        paths, root = [root], root.parent
    elif glob.has_magic(source):
        paths = sorted(p for p in map(Path, glob.glob(source, recursive=True)) if p.is_file())
        if not paths:
            raise DataError(f'no file fits {source}.')
        root = Path(*root.parts[: _first_magic(root)])
    else:
        raise DataError(f'image {source} does not exist.')
    return output_names([path.relative_to(root) for path in paths], root)


def output_names(paths: list[Path], root: Path = Path()) -> dict[Path, Path]:
    """Path -> unique output name: without the suffix if that is unambiguous, else with it."""
    short = Counter(path.with_suffix('') for path in paths)
    whole, folders = set(paths), {parent for path in paths for parent in path.parents}
    names = {}
    for path in paths:
        name = path.with_suffix('')
        unique = short[name] == 1 and name not in whole and not (is_video(path) and name in folders)
        names[root / path] = name if unique else path
    return names


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def append_suffix(path: Path, suffix: str) -> Path:
    """Append a suffix to a name; dots in the name stay."""
    return path.with_name(f'{path.name}{suffix}')


class OutputIndex:
    """Files that a run will write, each with its source; `sources.json` lists them.

    Args:
        out_dir: folder of the output.
        files: path below it -> source; a path that ends in '/' is a folder of frames.

    Raises:
        UsageError: a file would replace a source, or a file that no earlier run wrote.
    """

    def __init__(self, out_dir: Path, files: dict[str, str]) -> None:
        self.out_dir, self.files = out_dir, files
        self.earlier = _EarlierOutputs(out_dir)
        if self.earlier.foreign:
            raise UsageError(_FOREIGN.format(out_dir, out_dir / INDEX))
        inputs = {Path(source).resolve() for source in files.values() if source}
        for name in files:
            path = out_dir / name
            if path.resolve() in inputs:
                raise UsageError(
                    f'--out-dir {out_dir}: {path} would replace a source. Choose another --out-dir.'
                )
            if (
                path.is_file()
                and path.resolve() not in self.earlier
                and not self._has_overlay(name)
            ):
                raise UsageError(_FOREIGN.format(out_dir, path))

    def _has_overlay(self, name: str) -> bool:
        """Whether a file has the overlay that runs of versions without an index wrote with it."""
        first, _, rest = name.partition('/')
        overlay = self.out_dir / 'overlay'
        if first == 'labels':
            return (overlay / rest).is_file()
        return first == 'overlay' or overlay.is_dir()

    def write(self) -> None:
        """Write the index, with the files of earlier runs that still exist.

        Raises:
            WriteError: the index cannot be written.
        """
        remaining = {n: s for n, s in self.earlier.files.items() if (self.out_dir / n).exists()}
        path = self.out_dir / INDEX
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(remaining | self.files, indent=0, ensure_ascii=False)
            path.write_text(text, encoding='utf-8')
        except OSError as error:
            raise cannot_write(path, error) from error

    def stale(self) -> list[str]:
        """Files of an earlier run that this one does not write again."""
        new = set(self.files)
        return [n for n in self.earlier.files if n not in new and (self.out_dir / n).exists()]


class _EarlierOutputs:
    """Files that earlier runs wrote into a folder, from its `sources.json`.

    Attributes:
        foreign: whether the index exists and is not one.
        files: path below the folder -> source.
    """

    def __init__(self, out_dir: Path) -> None:
        try:
            files = json.loads((out_dir / INDEX).read_text(encoding='utf-8'))
        except FileNotFoundError:
            files = {}
        except (OSError, ValueError):
            files = None
        self.foreign = not isinstance(files, dict)
        self.files: dict[str, str] = {} if self.foreign else files
        self.paths = {(out_dir / name).resolve() for name in self.files if name[-1:] != '/'}
        self.folders = {(out_dir / name).resolve() for name in self.files if name[-1:] == '/'}

    def __contains__(self, path: Path) -> bool:
        return path in self.paths or any(folder in path.parents for folder in self.folders)


def _first_magic(path: Path) -> int:
    return next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
