"""PSANet on ResNet-50, Cityscapes: point-wise spatial attention in the decode head, MMSegmentation's recipe.

Each position has a weight for every offset within mask_size, by a compiled operator of mmcv, so it is not exported.
A map of H x W, after shrink_factor, needs (2H - 1, 2W - 1) for all pairs: (97, 97) is that of a crop of 769x769. In
crops of 512x1024, 32 x 64, offsets over 48 columns have a logit of 0.

40,000 iterations of batch 8 (4 GPUs x 2), crop 512x1024, SGD 0.01, poly 0.9; test on whole images.
Source: open-mmlab/mmsegmentation, psanet_r50-d8_4xb2-40k_cityscapes-512x1024.
"""
_base_ = [
    '_base_/models/segmentor_r50_mmseg.py',
    '_base_/datasets/cityscapes_512x1024.py',
    '_base_/schedules/sgd_40k.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(
        type='PSAHead',
        mask_size=(97, 97),
        shrink_factor=2))
