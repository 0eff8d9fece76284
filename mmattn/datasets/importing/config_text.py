"""The config file of an imported set: data loaders and metrics, for any network.

Names come from files of strangers: every text is written as a literal, and braces, which mmengine
replaces before it reads a config, as escapes.
"""

from typing import Any

MARK = 'Written by: mmattn data import'
_MAX_SCALE = (1333, 800)  # width and height of training images; of label maps, _MAX_LABEL_SCALE
_MAX_LABEL_SCALE = (2048, 1024)
_MAX_CROP = 512


def literal(value: Any) -> str:
    """A value as Python source in which mmengine finds nothing to replace."""
    if isinstance(value, tuple | list):
        end = ',' if len(value) == 1 and isinstance(value, tuple) else ''
        inner = ', '.join(map(literal, value)) + end
        return f'({inner})' if isinstance(value, tuple) else f'[{inner}]'
    return ascii(value).replace('{', '\\x7b').replace('}', '\\x7d')


def detection_config(
    name: str,
    summary: str,
    classes: list[str],
    palette: list[tuple[int, int, int]],
    splits: list[str],
    size: tuple[int, int],
    *,
    masks: bool,
) -> str:
    """The config of a set of boxes, or of boxes and masks.

    Args:
        name: name of the set, `data/NAME`.
        summary: what it holds, for the docstring.
        classes: class names.
        palette: their colours.
        splits: splits that have a file.
        size: width and height that most images have about.
        masks: whether objects have masks.
    """
    scale = _fitted(size, _MAX_SCALE)
    load = "dict(type='LoadAnnotations', with_bbox=True, with_mask=True)" if masks else (
        "dict(type='LoadAnnotations', with_bbox=True)"
    )  # fmt: skip
    metric = "['bbox', 'segm']" if masks else "'bbox'"
    loaders = ''.join(
        _loader(
            split,
            "type='CocoDataset'",
            f"ann_file='annotations/{file}.json'",
            "data_prefix=dict(img='images/')",
            'filter_cfg=dict(filter_empty_gt=True)' if split == 'train' else 'test_mode=True',
        )
        for split, file in _files(splits).items()
    )
    return f"""{_head(name, summary, classes, palette)}
train_pipeline = [
    dict(type='LoadImageFromFile'),
    {load},
    dict(type='RandomResize', scale={scale}, ratio_range=(0.8, 1.2), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale={scale}, keep_ratio=True),
    {load},
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
{loaders}val_evaluator = dict(type='mmattn.CocoMetric', metric={metric}, classwise=True)
test_evaluator = val_evaluator
"""


def segmentation_config(
    name: str,
    summary: str,
    classes: list[str],
    palette: list[tuple[int, int, int]],
    splits: list[str],
    size: tuple[int, int],
    *,
    suffixes: tuple[str, str],
) -> str:
    """The config of a set of label maps; arguments are those of `detection_config`.

    Args:
        suffixes: what follows a name of the lists in image and label map.
    """
    scale = _fitted(size, _MAX_LABEL_SCALE)
    crop = tuple(_crop(side) for side in reversed(scale))
    resize = ''
    if scale != size:
        resize = f"    dict(type='Resize', scale={scale}, keep_ratio=True),\n"
    loaders = ''.join(
        _loader(
            split,
            "type='BaseSegDataset'",
            f"ann_file='annotations/{file}.txt'",
            f'img_suffix={literal(suffixes[0])}',
            f'seg_map_suffix={literal(suffixes[1])}',
            "data_prefix=dict(img_path='images', seg_map_path='labels')",
        )
        for split, file in _files(splits).items()
    )
    return f"""{_head(name, summary, classes, palette)}crop_size = {crop}
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale={scale}, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
{resize}    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
{loaders}val_evaluator = dict(type='mmattn.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
"""


def _head(name: str, summary: str, classes: list[str], palette: list) -> str:
    return (
        f'"""{name}, {summary}.\n\n{MARK}. It holds the data alone; train a network on it with\n'
        f'mmattn train CONFIG --data {name}.\n"""\n'
        f"data_root = 'data/{name}'\n"
        f'metainfo = dict(\n    classes={literal(tuple(classes))},\n'
        f'    palette={literal(palette)})\n'
    )


def _loader(split: str, *lines: str) -> str:
    train = split == 'train'
    batch = 4 if train else 1
    sampler = 'InfiniteSampler' if train else 'DefaultSampler'
    pipeline = f'{"train" if train else "test"}_pipeline'
    kind, *others = lines
    dataset = ',\n        '.join([
        kind, 'metainfo=metainfo', 'data_root=data_root', *others, f'pipeline={pipeline}',
    ])  # fmt: skip
    return (
        f'{split}_dataloader = dict(\n    batch_size={batch},\n    num_workers=2,\n'
        f'    persistent_workers=True,\n    sampler=dict(type={sampler!r}, shuffle={train}),\n'
        f'    dataset=dict(\n        {dataset}))\n'
    )


def _files(splits: list[str]) -> dict[str, str]:
    """The split whose file each loader reads: val and test stand in for each other."""
    val = 'val' if 'val' in splits else 'test'
    return dict(train='train', val=val, test='test' if 'test' in splits else val)


def _fitted(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """A size, reduced to one of at most `limit`, whichever side is longer."""
    longer, shorter = max(limit), min(limit)
    factor = min(1, longer / max(size), shorter / min(size))
    return size if factor == 1 else (round(size[0] * factor), round(size[1] * factor))


def _crop(side: int) -> int:
    """Side of a crop: a multiple of 32 of at most 512 pixels; of 8 in a small image."""
    step = 32 if side >= 64 else 8
    return max(step, min(side, _MAX_CROP) // step * step)
