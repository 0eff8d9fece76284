"""Labels of a `street` scene: the ids of Cityscapes, and its things as COCO annotations."""

import cv2
import numpy as np

# Names and ids are those of the Cityscapes label table; things get instance ids 1000 * id + k.
ID = dict(
    ego=1, road=7, sidewalk=8, building=11, wall=12, fence=13, pole=17, light=19, sign=20,
    vegetation=21, terrain=22, sky=23, person=24, rider=25, car=26, truck=27, bus=28, train=31,
    motorcycle=32, bicycle=33,
)  # fmt: skip
TRAIN_ID = np.full(256, 255, np.uint8)
TRAIN_ID[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = range(19)
THINGS = ('person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle')
MIN_AREA = 12  # pixels; a smaller visible part of a thing is no COCO annotation


def annotations(ids: np.ndarray) -> list[dict]:
    """The things of a scene as COCO annotations: polygons and boxes xywh of what is visible."""
    entries = []
    for ident in np.unique(ids[ids >= 1000]):
        mask = (ids == ident).astype(np.uint8)
        area = int(mask.sum())
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        polygons = [line.reshape(-1).tolist() for line in outlines if len(line) >= 3]
        if area < MIN_AREA or not polygons:
            continue
        box = cv2.boundingRect(cv2.findNonZero(mask))
        entries.append(
            dict(
                category_id=int(ident) // 1000,
                segmentation=polygons,
                bbox=list(box),
                area=area,
                iscrowd=0,
            )
        )
    return entries
