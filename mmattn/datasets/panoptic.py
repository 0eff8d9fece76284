"""Checking COCO panoptic files: segments per image, and a PNG of segment ids for each image."""

import json
import os
from pathlib import Path
from reprlib import repr as show

from mmattn.errors import DataError

_KEYS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('image_id', 'segments_info'),
    'categories': ('id', 'name', 'isthing'),
}
_SEGMENT_KEYS = ('id', 'category_id', 'bbox', 'area')


def check_panoptic(dataset, where: str) -> None:
    """Check the file of a `CocoPanopticDataset`, and that its images and PNGs are there.

    Raises:
        DataError: names file, id and field, and what to do.
    """
    file = Path(dataset.ann_file)
    name = f'{file} ({where})'
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f'{name}: not valid JSON: {error}. Get it again.') from error
    lists = {key: content.get(key) if isinstance(content, dict) else None for key in _KEYS}
    for key, entries in lists.items():
        if not isinstance(entries, list):
            raise DataError(
                f'{name}: {key!r} is no list. Is this a file of COCO panoptic segments?'
            )
    first = lists['annotations'][0] if lists['annotations'] else None
    if isinstance(first, dict) and 'segments_info' not in first and 'category_id' in first:
        raise DataError(
            f"{name}: its annotations are instances, without 'segments_info', but the data set "
            'reads panoptic segments. Set ann_file to the panoptic file, or type to CocoDataset.'
        )
    for key, entries in lists.items():
        for i, entry in enumerate(entries):
            missing = [k for k in _KEYS[key] if not isinstance(entry, dict) or k not in entry]
            if missing:
                raise DataError(f'{name}: {key}[{i}]: missing {missing[0]!r}. Add it.')
    category_ids = {c['id'] for c in lists['categories']}
    for annotation in lists['annotations']:
        for segment in annotation['segments_info']:
            segment_name = f'segment {show(segment.get("id"))} of image {annotation["image_id"]}'
            missing = [k for k in _SEGMENT_KEYS if k not in segment]
            if missing:
                raise DataError(f'{name}: {segment_name}: missing {missing[0]!r}. Add it.')
            if segment['category_id'] not in category_ids:
                raise DataError(
                    f'{name}: {segment_name}: category {show(segment["category_id"])} is not '
                    'defined. Add it to categories.'
                )
    folders = {'image': dataset.data_prefix.get('img'), 'PNG': dataset.data_prefix.get('seg')}
    for what, folder in folders.items():
        if not folder:
            continue
        names = [image['file_name'] for image in lists['images']]
        if what == 'PNG':
            names = [n.replace('.jpg', '.png') for n in names]
        lost = [p for n in names if not os.path.isfile(p := os.path.join(folder, n))]
        if lost:
            raise DataError(
                f'{name}: {what} {lost[0]} is missing ({len(lost)} of {len(names)}). Set '
                f'data_prefix.{"img" if what == "image" else "seg"}, or get them again.'
            )
