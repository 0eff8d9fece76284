"""Test-time augmentation of detectors: an image as it is and mirrored, boxes merged by NMS.

The network is `DetTTAModel` of mmdet. Reference code: open-mmlab/mmdetection, tools/test.py, which
fills in the same two keys of a config. Differs from it in: the threshold and the number of boxes
are those of the detector, so that one view alone gives the plain result; the mirror comes before
annotations and padding, and the plain view first, as the merged sample is made from the first.
"""

from collections.abc import Iterator, Sequence
from typing import Any

_IOU_THRESHOLD, _MAX_BOXES = 0.5, 100  # of mmdet, where the detector has none of its own
_MASK_KEYS = ('mask_head', 'panoptic_head')  # parts whose results DetTTAModel cannot merge


def det_tta_model(model: dict) -> dict:
    """The config of mmdet's `DetTTAModel` for a detector, without its key `module`.

    Args:
        model: config of the detector.

    Raises:
        ValueError: the detector predicts masks, which `DetTTAModel` does not merge.
    """
    key = next(mask_head_keys(model, 'model'), None)
    if key:
        raise ValueError(
            f'DetTTAModel of mmdet merges boxes alone, and {key} predicts masks. Leave --tta out, '
            'or write a tta_model into the config'
        )
    test_cfg = model.get('test_cfg') or {}
    test_cfg = test_cfg.get('rcnn') or test_cfg
    threshold = (test_cfg.get('nms') or {}).get('iou_threshold', _IOU_THRESHOLD)
    return dict(
        type='DetTTAModel',
        tta_cfg=dict(
            nms=dict(type='nms', iou_threshold=threshold),
            max_per_img=test_cfg.get('max_per_img', _MAX_BOXES),
        ),
    )


def mask_head_keys(value: Any, where: str) -> Iterator[str]:
    """Config keys of the heads that predict masks, in a config below the key `where`."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in _MASK_KEYS and item:
                yield f'{where}.{key}'
            yield from mask_head_keys(item, f'{where}.{key}')


def det_tta_pipeline(test_pipeline: Sequence[dict]) -> list[dict]:
    """The pipeline for test-time augmentation: a test pipeline, plain and mirrored.

    Raises:
        ValueError: the test pipeline does not end with PackDetInputs, or augments already.
    """
    names = [step['type'].split('.')[-1] for step in test_pipeline]
    if not names or names[-1] != 'PackDetInputs' or {'TestTimeAug', 'RandomFlip'} & set(names):
        raise ValueError(
            f'no mirrored view for a test pipeline of {", ".join(names)}: its last step has to be '
            'PackDetInputs, without RandomFlip or TestTimeAug before. Write a tta_pipeline into '
            'the config'
        )
    loaded = [i for i, name in enumerate(names) if _makes_image(name)]
    first = loaded[-1] + 1 if loaded else 0
    steps = [dict(step) for step in test_pipeline]
    pack = steps[-1]
    if 'meta_keys' in pack:
        pack['meta_keys'] = tuple(dict.fromkeys((*pack['meta_keys'], 'flip', 'flip_direction')))
    flips = [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)]
    views = [flips, *([step] for step in steps[first:])]
    return [*steps[:first], dict(type='TestTimeAug', transforms=views)]


def _makes_image(name: str) -> bool:
    """Whether a step reads or resizes an image: the mirror comes after the last of them."""
    return 'Resize' in name or (name.startswith('Load') and 'nnotations' not in name)
