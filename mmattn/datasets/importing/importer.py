"""Importing a data set: from any format of `formats` to `data/NAME` and `configs/NAME.py`."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mmattn.config.names import CONFIG_FOLDERS
from mmattn.errors import DataError, UsageError, printable
from mmattn.files import check_writable, write_text_atomic

from . import config_text, writing
from .class_table import read_table
from .content import Content
from .formats import FORMATS, guess_format, read_format
from .records import TASKS, ReadOptions
from .source import Source
from .splits import assign_splits, parse_shares

DATA, CONFIGS = Path('data'), Path('configs')  # folders of the working folder
REPORT = 'import_report.txt'


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `import_data`, and flags of `tools/import_data.py`.

    Attributes:
        format: key of `formats.FORMATS`; None to guess it.
        task: 'detection', 'instances' or 'segmentation'; None for what the annotations are.
        split: per cent of train, val and test, such as '80/10/10'; None to keep the splits of the
            source, or that where it has none.
        seed: seed for drawing the splits.
        classes: class names with commas, or a file with a line for each, see `read_table`.
        ignore_labels: values of label maps that are no class.
        images: folder of the images, if it is another than that of the annotations.
        overwrite: replace a set that was imported under this name.
    """

    format: str | None = None
    task: str | None = None
    split: str | None = None
    seed: int = 0
    classes: str | None = None
    ignore_labels: tuple[int, ...] = ()
    images: str | Path | None = None
    overwrite: bool = False


def import_data(
    name: str,
    paths: Iterable[str | Path],
    options: ImportOptions | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Import a data set into `data/NAME`, with a config of its loaders, `configs/NAME.py`.

    Images are linked or copied into `data/NAME/images`. Boxes and masks become
    `data/NAME/annotations/{train,val,test}.json` in COCO's format; label maps
    `data/NAME/labels`, with lists of names. `data/NAME/import_report.txt` has everything that is
    wrong with the source, which is never written to. All is written, or nothing.

    Args:
        name: name of the set: letters, digits and underscores.
        paths: a folder, or annotation files.
        options: see `ImportOptions`.
        log: called with a line of text.

    Returns:
        path of the config.

    Raises:
        UsageError: the name is taken; the format is not clear; a wrong option.
        DataError: the source cannot be imported; all problems are listed.
        WriteError: the folders cannot be written to.
    """
    options = options or ImportOptions()
    sources = [Path(path) for path in paths]
    out, config = _targets(name, sources, options.overwrite)
    shares = parse_shares(options.split) if options.split else None
    reading = _read_options(options)
    source = Source(sources, Path(options.images) if options.images else None)
    if options.format:
        kind, reason = options.format, 'as --format says'
    else:
        kind, reason = guess_format(source)
    origin = f'{source.root} is taken for {FORMATS[kind].TITLE} ({kind}): {reason}'
    log(printable(origin))
    report = out.with_name(f'{name}.{REPORT}')  # of an import that is refused
    for folder in out.parent, config.parent:
        check_writable(folder, 'cd')
    part = out.with_name(f'.{name}.part')
    writing.remove_folder(part)
    part.mkdir()
    try:
        found = read_format(kind, source, reading)
        found.colours = found.colours or reading.colours
        content = Content(source, found, reading.classes, options.task, part)
        _refuse(content, report)
        splits, how = assign_splits(
            content.images, shares, options.seed, source.problems, content.name_of
        )
        lines = [f'{name}: {content.describe()}; {how}', *content.write(splits)]
        lines = [printable(line) for line in lines]  # class names are those of strangers
        text = content.config_text(name, splits)
        for line in [*lines, *source.problems.lines()]:
            log(line)
        full = [printable(origin), *lines, '', *source.problems.lines(limit=None)]
        (part / REPORT).write_text('\n'.join(full) + '\n', encoding='utf-8')
        writing.remove_folder(out)
        os.replace(part, out)
    finally:
        writing.remove_folder(part)
    report.unlink(missing_ok=True)
    try:
        write_text_atomic(config, text)
    except OSError:
        writing.remove_folder(out)
        raise
    return config


def _targets(name: str, sources: list[Path], overwrite: bool) -> tuple[Path, Path]:
    """Folder and config of the set, which are free, or may be replaced.

    Raises:
        UsageError: they are not.
    """
    if not re.fullmatch(r'[A-Za-z]\w*', name, re.ASCII):
        raise UsageError(f'name {name!r}: write letters, digits and underscores, such as my_set.')
    out, config = DATA / name, CONFIGS / f'{name}.py'
    for folder in CONFIG_FOLDERS:
        for own in folder / f'{name}.py', folder / '_base_' / 'datasets' / f'{name}.py':
            if own.is_file() and not _is_imported(own):
                raise UsageError(f'name {name}: mmattn has a config of that name. Choose another.')
    for path in sources:
        place, target = path.resolve(), out.resolve()
        if place.is_relative_to(target) or target.is_relative_to(place):
            raise UsageError(
                f'--from {path}: the set would be written into {out}, which is the same folder, or '
                'one of them is inside the other. Name another folder.'
            )
    for path, is_ours in (
        (out, (out / REPORT).is_file() and not out.is_symlink()),
        (config, _is_imported(config)),
    ):
        if not (path.exists() or path.is_symlink()):
            continue
        if not is_ours:
            raise UsageError(f'{path} is there, but no import wrote it. Choose another name.')
        if not overwrite:
            raise UsageError(f'{path} is there. Choose another name, or pass --overwrite.')
    return out, config


def _is_imported(config: Path) -> bool:
    """Whether an import wrote a config."""
    return config.is_file() and config_text.MARK in config.read_text('utf-8', 'replace')[:2000]


def _read_options(options: ImportOptions) -> ReadOptions:
    if options.format and options.format not in FORMATS:
        raise UsageError(f'--format {options.format}: known are {", ".join(FORMATS)}.')
    if options.task and options.task not in TASKS:
        raise UsageError(f'--task {options.task}: known are {", ".join(TASKS)}.')
    wrong = [label for label in options.ignore_labels if not 0 <= label < 1 << 16]
    if wrong:
        raise UsageError(f'--ignore-labels {wrong[0]}: allowed are 0 to 65535.')
    names, colours = None, {}
    if options.classes and Path(options.classes).is_file():
        names, colours = read_table(Path(options.classes))
    elif options.classes:
        names = [name.strip() for name in options.classes.split(',')]
        if not all(names) or len(set(names)) < len(names):
            raise UsageError(
                f'--classes {options.classes}: it is no file; write different names with commas '
                'between them, or the path of a table.'
            )
    return ReadOptions(names and tuple(names), colours, tuple(options.ignore_labels))


def _refuse(content: Content, report: Path) -> None:
    """End an import that cannot be used, with all problems in a file.

    Raises:
        DataError: shows the first problems of each kind.
    """
    problems = content.source.problems
    reason = problems.first_refused() if problems.is_refused else content.nothing_left()
    if reason:
        lines = problems.lines(limit=None)
        report.write_text('\n'.join([reason, *lines]) + '\n', encoding='utf-8')
        raise DataError(
            f'{content.source.root} cannot be imported: {reason} All problems are in {report}.',
            problems.lines(),
        )
