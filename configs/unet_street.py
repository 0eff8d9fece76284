"""U-Net, street: the plain baseline of attention_unet_street.py, same seed and schedule.

440 iterations of batch 4, crop 128x256, from random weights.
"""
_base_ = [
    '_base_/models/segmentor_unet.py',
    '_base_/datasets/street.py',
    '_base_/schedules/adamw_440.py',
    '_base_/runtime.py',
]
model = dict(data_preprocessor=dict(size=_base_.crop_size))
