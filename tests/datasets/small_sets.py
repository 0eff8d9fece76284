"""Small sets that several tests of data share: discs and squares on noise, and boxes on grey."""

import json

import numpy as np
from PIL import Image

COLOURS = np.array([(40, 40, 40), (220, 60, 40), (40, 90, 220)], np.uint8)
ORIENTATION = 0x0112


def scene(number, classes=3, height=24, width=32):
    """A picture (H, W, 3) and its labels (H, W); no two corners look alike."""
    rng = np.random.default_rng(number)
    labels = np.zeros((height, width), np.uint8)
    labels[3:11, 4:16] = 1
    labels[12:20, 18:29] = 2 if classes > 2 else 1
    labels[16 + number % 5 :, :7] = 1
    noise = rng.normal(0, 6, (height, width, 3))
    return (COLOURS[labels] + noise).clip(0, 255).astype(np.uint8), labels


def label_set(root, *, classes=3, count=4, kind='palette', suffix='.png', change=None):
    """Write pictures and label maps below `root`; returns the config of their data set."""
    for folder in 'img', 'mask':
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, labels = scene(number, classes)
        Image.fromarray(picture).save(root / 'img' / f'{number}.png')
        write_labels(
            root / 'mask' / f'{number}{suffix}', labels if change is None else change(labels), kind
        )
    names = ('ground', 'disc', 'square')[:classes]
    return dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='img', seg_map_path='mask'),
        img_suffix='.png',
        metainfo=dict(classes=names),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )


def write_labels(path, labels, kind):
    if kind == 'colours':
        image = Image.fromarray(COLOURS[labels])
    elif kind == 'grey and alpha':
        image = Image.fromarray(np.dstack([labels, labels]), 'LA')
    elif kind == '1 bit':
        image = Image.fromarray(labels > 0)
    elif kind == '16 bits':
        image = Image.fromarray(labels.astype(np.uint16))
    elif kind == 'float':
        image = Image.fromarray(labels.astype(np.float32))
    else:
        image = Image.fromarray(labels.astype(np.uint8))
        if kind == 'palette':
            image.putpalette(COLOURS.tobytes())
    image.save(path)


def turn(path, orientation):
    """Give a picture an EXIF orientation, its pixels as they are."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.open(path).convert('RGB').save(path, exif=exif)


def box_set(root, *, count=3, size=(32, 24), suffix='.png', change=None):
    """Write pictures and `set.json` below `root`; returns the config of their data set."""
    (root / 'img').mkdir(parents=True, exist_ok=True)
    width, height = size
    content = dict(
        images=[], annotations=[], categories=[dict(id=1, name='red'), dict(id=2, name='green')]
    )
    for number in range(1, count + 1):
        name = f'{number}{suffix}'
        Image.new('RGB', size, 'grey').save(root / 'img' / name)
        content['images'].append(dict(id=number, file_name=name, width=width, height=height))
        for shift, category in enumerate((1, 2)):
            x, y, w, h = 2 + 9 * shift, 3, 8, 6
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=number,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
    if change:
        change(content)
    (root / 'set.json').write_text(json.dumps(content))
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='set.json',
        data_prefix=dict(img='img'),
        metainfo=dict(classes=('red', 'green')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)],
    )
