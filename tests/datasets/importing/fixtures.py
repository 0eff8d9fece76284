"""Six small images with the same objects in every format that is imported."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
CLASSES = ('disc', 'square')
COLOURS = {'background': (0, 0, 0), 'disc': (200, 60, 40), 'square': (40, 90, 220)}
# Name -> objects, (class, corners of its outline); they lie on borders of pixels.
SCENES = {
    f'scene_{i}.png': [
        ('disc', [(30, 20 + i), (52, 20 + i), (52, 30 + i), (41, 30 + i), (41, 40), (30, 40)]),
        ('square', [(4 + i, 5), (20 + i, 5), (20 + i, 17), (4 + i, 17)]),
    ][: 1 + i % 2 + (i == 0)]
    for i in range(6)
}


def box_of(corners) -> tuple[int, int, int, int]:
    xs, ys = zip(*corners)
    return min(xs), min(ys), max(xs), max(ys)


def pixels_of(corners) -> np.ndarray:
    """(H, W) the pixels inside an outline on their borders."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    centres = np.array([(x * 2, y * 2) for x, y in corners], np.int32)
    double = cv2.fillPoly(np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8), [centres], 1)
    mask[:] = double[1::2, 1::2]
    return mask.astype(bool)


def labels_of(name: str) -> np.ndarray:
    """(H, W) background, disc and square as 0, 1 and 2."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for kind, corners in SCENES[name]:
        labels[pixels_of(corners)] = 1 + CLASSES.index(kind)
    return labels


def picture(name: str) -> Image.Image:
    rng = np.random.default_rng(list(SCENES).index(name))
    colours = np.array(list(COLOURS.values()))[labels_of(name)]
    return Image.fromarray((colours + rng.integers(0, 30, colours.shape)).clip(0, 255).astype('u1'))


def save_pictures(folder: Path, names=SCENES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        picture(name).save(folder / name)


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def png(pixels: np.ndarray, mode: str = 'L') -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255, 'L').convert(mode).save(file, 'PNG')
    return file.getvalue()


# ---- formats: each writes the scenes below `root`, with the given splits where it has them -------
def coco_content(names=SCENES, kind='polygons', root_category=False) -> dict:
    shift = int(root_category)
    content = dict(
        images=[
            dict(id=7 + i, file_name=n, width=WIDTH, height=HEIGHT) for i, n in enumerate(names)
        ],
        annotations=[],
        categories=[dict(id=i + shift, name=c) for i, c in enumerate(CLASSES)],
    )
    if root_category:
        content['categories'].insert(0, dict(id=0, name='shapes', supercategory='none'))
        for category in content['categories'][1:]:
            category['supercategory'] = 'shapes'
    for i, name in enumerate(names):
        for label, corners in SCENES[name]:
            x1, y1, x2, y2 = box_of(corners)
            entry = dict(
                id=len(content['annotations']) + 1,
                image_id=7 + i,
                category_id=CLASSES.index(label) + shift,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=1,
                iscrowd=0,
            )
            if kind == 'polygons':
                entry['segmentation'] = [[v for corner in corners for v in corner]]
            elif kind == 'masks':
                entry['segmentation'] = dict(size=[HEIGHT, WIDTH], counts=runs(corners))
            content['annotations'].append(entry)
    return content


def runs(corners) -> list[int]:
    """Run lengths of a mask, column by column, of 0 and 1 in turn."""
    flat = pixels_of(corners).T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *ends, flat.size]).tolist()


def coco(root, splits, kind) -> None:
    save_pictures(root / 'images')
    write(root / 'annotations' / 'instances.json', coco_content(kind=kind))


def roboflow(root, splits, kind) -> None:
    for split, names in splits.items():
        folder = root / ('valid' if split == 'val' else split)
        save_pictures(folder, names)
        write(folder / '_annotations.coco.json', coco_content(names, kind, root_category=True))


def yolo(root, splits, kind) -> None:
    lines = ['path: ../datasets/shapes', 'nc: 2', f'names: {list(CLASSES)}']
    for split, names in splits.items():
        folder = 'valid' if split == 'val' else split
        lines.append(f'{split}: ../{folder}/images')
        save_pictures(root / folder / 'images', names)
        for name in names:
            text = ''
            for label, corners in SCENES[name]:
                x1, y1, x2, y2 = box_of(corners)
                values = [
                    (x1 + x2) / 2 / WIDTH,
                    (y1 + y2) / 2 / HEIGHT,
                    (x2 - x1) / WIDTH,
                    (y2 - y1) / HEIGHT,
                ]
                if kind == 'polygons':
                    values = [v / s for corner in corners for v, s in zip(corner, (WIDTH, HEIGHT))]
                text += ' '.join([str(CLASSES.index(label)), *(f'{v:.6f}' for v in values)]) + '\n'
            write(root / folder / 'labels' / name.replace('.png', '.txt'), text)
    write(root / 'data.yaml', '\n'.join(lines) + '\n')


def voc(root, splits, kind) -> None:
    save_pictures(root / 'JPEGImages')
    for split, names in splits.items():
        stems = ''.join(f'{Path(name).stem}\n' for name in names)
        write(root / 'ImageSets' / 'Main' / f'{split}.txt', stems)
    for name, objects in SCENES.items():
        items = ''
        for label, corners in objects:
            values = zip(('xmin', 'ymin', 'xmax', 'ymax'), box_of(corners))
            box = ''.join(f'<{key}>{value + 1}</{key}>' for key, value in values)
            items += f'<object><name>{label}</name><bndbox>{box}</bndbox></object>'
        size = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>'
        text = f'<annotation><filename>{name}</filename>{size}{items}</annotation>'
        write(root / 'Annotations' / name.replace('.png', '.xml'), text)


def labelme(root, splits, kind) -> None:
    save_pictures(root / 'images')
    for name, objects in SCENES.items():
        shapes = []
        for label, corners in objects:
            x1, y1, x2, y2 = box_of(corners)
            shape = dict(label=label, points=corners, group_id=None, shape_type='polygon', flags={})
            if kind == 'boxes':
                shape |= dict(shape_type='rectangle', points=[(x2, y2), (x1, y1)])
            elif kind == 'masks':
                part = png(pixels_of(corners)[y1:y2, x1:x2])
                mask = base64.b64encode(part).decode()
                shape |= dict(shape_type='mask', points=[(x1, y1), (x2 - 1, y2 - 1)], mask=mask)
            shapes.append(shape)
        content = dict(version='5.5.0', flags={}, shapes=shapes, imagePath=f'..\\images\\{name}',
                       imageData=None, imageHeight=HEIGHT, imageWidth=WIDTH)  # fmt: skip
        write(root / 'json' / name.replace('.png', '.json'), content)


def cvat(root, splits, kind) -> None:
    save_pictures(root / 'images')
    images = ''
    for i, (name, objects) in enumerate(SCENES.items()):
        items = ''
        for label, corners in objects:
            x1, y1, x2, y2 = box_of(corners)
            if kind == 'boxes':
                items += f'<box label="{label}" xtl="{x1}.00" ytl="{y1}.00" xbr="{x2}" ybr="{y2}"/>'
            elif kind == 'polygons':
                points = ';'.join(f'{x}.00,{y}.00' for x, y in corners)
                items += f'<polygon label="{label}" points="{points}"><attribute name="a">b</attribute></polygon>'
            else:
                flat = pixels_of(corners)[y1:y2, x1:x2].ravel()
                ends = np.flatnonzero(np.diff(flat)) + 1
                lengths = np.diff([0, *ends, flat.size]).tolist()
                rle = ', '.join(map(str, [0, *lengths] if flat[0] else lengths))
                items += (
                    f'<mask label="{label}" rle="{rle}" left="{x1}" top="{y1}" width="{x2 - x1}" '
                    f'height="{y2 - y1}"/>'
                )
        images += f'<image id="{i}" name="{name}" width="{WIDTH}" height="{HEIGHT}">{items}</image>'
    labels = ''.join(
        f'<label><name>{c}</name><color>#{bytes(COLOURS[c]).hex()}</color></label>' for c in CLASSES
    )
    meta = f'<version>1.1</version><meta><task><labels>{labels}</labels></task></meta>'
    write(
        root / 'annotations.xml',
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{meta}{images}</annotations>',
    )


def brush(pixels: np.ndarray) -> list[int]:
    """Label Studio's run-length code of a mask, as bytes of an image with alpha."""
    flat = np.repeat(pixels.ravel() * 255, 4)
    lengths = (3, 4, 8, 16)
    bits = f'{flat.size:032b}{7:05b}' + ''.join(f'{n - 1:04b}' for n in lengths)
    bits += '0' + '00' + f'{2:03b}' + ''.join(f'{v:08b}' for v in flat[:3])  # three single values
    ends = np.flatnonzero(np.diff(flat[3:])) + 1
    for start, end in zip([0, *ends], [*ends, flat.size - 3]):
        bits += '1' + '11' + f'{end - start - 1:016b}' + f'{flat[3 + start]:08b}'
    bits += '0' * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def label_studio(root, splits, kind) -> None:
    save_pictures(root / 'media')
    tasks = []
    for i, (name, objects) in enumerate(SCENES.items()):
        results = []
        for label, corners in objects:
            x1, y1, x2, y2 = box_of(corners)
            per_cent = [(100 * x / WIDTH, 100 * y / HEIGHT) for x, y in corners]
            type_, value = dict(
                boxes=('rectanglelabels', dict(
                    x=100 * x1 / WIDTH, y=100 * y1 / HEIGHT, width=100 * (x2 - x1) / WIDTH,
                    height=100 * (y2 - y1) / HEIGHT, rotation=0)),
                polygons=('polygonlabels', dict(points=per_cent, closed=True)),
                masks=('brushlabels', dict(format='rle', rle=brush(pixels_of(corners)))),
            )[kind]  # fmt: skip
            results.append(dict(
                id=f'r{len(results)}', type=type_, value=value | {type_: [label]},
                original_width=WIDTH, original_height=HEIGHT, image_rotation=0,
            ))  # fmt: skip
        tasks.append(dict(
            id=i + 1, file_upload=f'0123abcd-{name}', data=dict(image=f'/data/upload/1/0123abcd-{name}'),
            annotations=[dict(id=i, was_cancelled=False, result=results)],
        ))  # fmt: skip
    write(root / 'project.json', tasks)


def via(root, splits, kind) -> None:
    save_pictures(root)
    entries = {}
    for name, objects in SCENES.items():
        regions = []
        for label, corners in objects:
            x1, y1, x2, y2 = box_of(corners)
            xs, ys = zip(*corners)
            shape = dict(name='polygon', all_points_x=xs, all_points_y=ys)
            if kind == 'boxes':
                shape = dict(name='rect', x=x1, y=y1, width=x2 - x1, height=y2 - y1)
            regions.append(dict(shape_attributes=shape, region_attributes=dict(type=label)))
        entries[f'{name}123'] = dict(filename=name, size=123, regions=regions, file_attributes={})
    write(root / 'via_project.json', dict(_via_settings={}, _via_img_metadata=entries))


def supervisely(root, splits, kind) -> None:
    save_pictures(root / 'ds0' / 'img')
    classes = [dict(title=c, shape='any', color=f'#{bytes(COLOURS[c]).hex()}') for c in CLASSES]
    write(root / 'meta.json', dict(classes=classes, tags=[]))
    for name, objects in SCENES.items():
        items = []
        for label, corners in objects:
            x1, y1, x2, y2 = box_of(corners)
            item = dict(id=len(items), classTitle=label)
            if kind == 'boxes':
                item |= dict(
                    geometryType='rectangle',
                    points=dict(exterior=[(x1, y1), (x2, y2)], interior=[]),
                )
            elif kind == 'polygons':
                item |= dict(geometryType='polygon', points=dict(exterior=corners, interior=[]))
            else:
                data = zlib.compress(png(pixels_of(corners)[y1:y2, x1:x2], '1'))
                bitmap = dict(data=base64.b64encode(data).decode(), origin=[x1, y1])
                item |= dict(geometryType='bitmap', bitmap=bitmap)
            items.append(item)
        content = dict(
            description='', tags=[], size=dict(height=HEIGHT, width=WIDTH), objects=items
        )
        write(root / 'ds0' / 'ann' / f'{name}.json', content)


def instance_masks(root, splits, kind) -> None:
    for name, objects in SCENES.items():
        folder = root / Path(name).stem
        save_pictures(folder / 'images', [name])
        for i, (label, corners) in enumerate(objects):
            path = folder / 'masks' / label / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels_of(corners)))


def masks(root, splits, kind) -> None:
    """Label maps; `kind` is 'ids', 'palette' or 'colours'."""
    save_pictures(root / 'images')
    (root / 'masks').mkdir()
    for name in SCENES:
        labels = Image.fromarray(labels_of(name))
        if kind == 'palette':
            labels.putpalette([v for colour in COLOURS.values() for v in colour])
        elif kind == 'colours':
            labels = Image.fromarray(np.array(list(COLOURS.values()), np.uint8)[labels_of(name)])
        labels.save(root / 'masks' / name.replace('.png', '_mask.png'))
    if kind == 'colours':
        lines = [f'{" ".join(map(str, colour))} {name}\n' for name, colour in COLOURS.items()]
        write(root / 'label_colors.txt', ''.join(lines))


FORMATS: dict[str, Callable] = {
    'coco': coco, 'roboflow': roboflow, 'yolo': yolo, 'voc': voc, 'labelme': labelme, 'cvat': cvat,
    'label_studio': label_studio, 'via': via, 'supervisely': supervisely,
    'instance_masks': instance_masks, 'masks': masks,
}  # fmt: skip
