"""Checking a download of ADE20K, MIT scene parsing benchmark: 150 classes, 0 is unlabelled.

Source: B. Zhou et al., Scene parsing through ADE20K dataset, CVPR 2017.
"""

from collections.abc import Callable
from pathlib import Path

from mmattn.errors import DataError
from mmattn.text import some

from .validation import check_data

# Images per split; sceneparsing.csail.mit.edu.
COUNTS = {'training': 20210, 'validation': 2000}
_NAME = 'ADEChallengeData2016'
PACKAGE = f'{_NAME}.zip of the MIT scene parsing benchmark (sceneparsing.csail.mit.edu)'


def prepare_ade20k(root: str | Path, log: Callable[[str], None] = print) -> dict[str, int]:
    """Check that every image below `root` has its label map, with labels 0..150.

    Args:
        root: folder ADEChallengeData2016, with `images/SPLIT/*.jpg` and
            `annotations/SPLIT/*.png`.
        log: called with a line per split.

    Returns:
        images per split.

    Raises:
        DataError: a folder or a file is missing, or a label map is wrong.
    """
    import mmseg.datasets  # noqa: F401, registers the data set

    root, counts, problems = Path(root), {}, []
    if (root / _NAME).is_dir():
        raise DataError(f'ADE20K: {root} holds the set in a folder. Give --root {root / _NAME}.')
    for folder in (root / kind / split for kind in ('images', 'annotations') for split in COUNTS):
        if not folder.is_dir():
            raise DataError(
                f'ADE20K: {folder} does not exist. Unpack {PACKAGE} and name its folder with '
                '--root.'
            )
    for split, expected in COUNTS.items():
        folders = {'.jpg': root / 'images' / split, '.png': root / 'annotations' / split}
        images, labels = ({p.stem for p in d.glob(f'*{end}')} for end, d in folders.items())
        counts[split] = len(images)
        note = '' if len(images) == expected else f' (the original set has {expected})'
        log(f'{split}: {len(images)} images{note}')
        if not images:
            problems.append(f'no image in {folders[".jpg"]}')
        for end, missing in ('.png', images - labels), ('.jpg', labels - images):
            if missing:
                names = [str(folders[end] / f'{stem}{end}') for stem in sorted(missing)]
                what = 'images have no label map' if end == '.png' else 'label maps have no image'
                problems.append(f'{len(names)} {split} {what}; missing: {some(names)}')
    if problems:
        raise DataError(f'ADE20K: {"; ".join(problems)}. Unpack {PACKAGE} again.')
    for split in COUNTS:
        prefix = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
        check_data(dict(type='mmseg.ADE20KDataset', data_root=str(root), data_prefix=prefix), split)
    return counts
