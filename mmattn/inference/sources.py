"""The images and videos that a tool looks at, and where what it makes of each goes."""

import glob
import json
from collections import Counter
from pathlib import Path

from mmattn.errors import DataError, UsageError, WriteError

IMAGES = {'.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp'}
VIDEOS = {'.mp4', '.avi', '.mov', '.mkv', '.webm'}
INDEX = 'sources.json'
_FOREIGN = '--out-dir {}: {} is there and was not written by this tool. Choose another --out-dir.'


def find_sources(source: str, out_dir: Path, suffix: str = '') -> dict[Path, Path]:
    """Image or video -> the name of its files below the folders of the output, without suffix.

    What an earlier run wrote into `out_dir` is not looked at.

    Args:
        source: an image, a video, a folder of them, or a glob pattern.
        out_dir: the folder of the output.
        suffix: of images in a folder, besides the usual ones.

    Raises:
        DataError: nothing there to look at.
    """
    root = Path(source)
    if root.is_dir():
        known, own = tuple(IMAGES | VIDEOS | ({suffix.lower()} - {''})), _Own(out_dir)
        inside = root.resolve() in out_dir.resolve().parents
        fitting = (p for p in root.rglob('*') if p.name.lower().endswith(known))
        paths = sorted(p for p in fitting if p.is_file())
        paths = [p for p in paths if p.resolve() not in own]
        if inside:
            paths = [p for p in paths if out_dir.resolve() not in p.resolve().parents]
        if not paths:
            kinds = ', '.join(sorted(known))
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
    """Path -> a name that no other has: without its suffix where that is clear, else with it."""
    short = Counter(path.with_suffix('') for path in paths)
    whole, folders = set(paths), {parent for path in paths for parent in path.parents}
    names = {}
    for path in paths:
        name = path.with_suffix('')
        clear = short[name] == 1 and name not in whole and not (is_video(path) and name in folders)
        names[root / path] = name if clear else path
    return names


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def added(path: Path, suffix: str) -> Path:
    """A name with a suffix behind it, whatever dots it has."""
    return path.with_name(f'{path.name}{suffix}')


class Outputs:
    """The files that a run is going to write, each with its source; `sources.json` lists them.

    Args:
        out_dir: the folder.
        files: path below it -> the source; one that ends in '/' stands for a folder of frames.

    Raises:
        UsageError: one of them would replace a source, or a file that no run of the tool wrote.
    """

    def __init__(self, out_dir: Path, files: dict[str, str]) -> None:
        self.out_dir, self.files = out_dir, files
        self.own = _Own(out_dir)
        if self.own.foreign:
            raise UsageError(_FOREIGN.format(out_dir, out_dir / INDEX))
        inputs = {Path(source).resolve() for source in files.values() if source}
        for name in files:
            path = out_dir / name
            if path.resolve() in inputs:
                raise UsageError(
                    f'--out-dir {out_dir}: {path} would replace a file that is looked at. Choose '
                    'another --out-dir.'
                )
            if path.is_file() and path.resolve() not in self.own and not self._paired(name):
                raise UsageError(_FOREIGN.format(out_dir, path))

    def _paired(self, name: str) -> bool:
        """Whether a file has the picture beside it that a run without an index wrote with it."""
        first, _, rest = name.partition('/')
        overlay = self.out_dir / 'overlay'
        if first == 'labels':
            return (overlay / rest).is_file()
        return first == 'overlay' or overlay.is_dir()

    def write(self) -> None:
        """Write the index, with what is left of earlier runs.

        Raises:
            WriteError: it cannot be written.
        """
        left = {n: s for n, s in self.own.files.items() if (self.out_dir / n).exists()}
        path = self.out_dir / INDEX
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(left | self.files, indent=0, ensure_ascii=False)
            path.write_text(text, encoding='utf-8')
        except OSError as error:
            raise WriteError(f'cannot write {path}: {error.strerror}.') from error

    def stale(self) -> list[str]:
        """Files of an earlier run that this one does not write again."""
        new = set(self.files)
        return [n for n in self.own.files if n not in new and (self.out_dir / n).exists()]


class _Own:
    """What earlier runs wrote into a folder."""

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
