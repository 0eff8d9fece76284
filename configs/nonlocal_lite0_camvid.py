"""Non-local network on EfficientNet-Lite0, CamVid: embedded Gaussian non-local attention in the decode head, else fcn_lite0_camvid.py.

600 iterations of batch 8, crop 240x320, from ImageNet weights. The last checkpoint is the result:
CamVid's val split is one clip next to the training frames, so nothing is chosen by it.
"""
_base_ = [
    '_base_/models/segmentor_lite0.py',
    '_base_/datasets/camvid.py',
    '_base_/schedules/adamw_600.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(type='mmattn.NLHead', mode='embedded_gaussian', num_classes=11),
    auxiliary_head=dict(num_classes=11))
