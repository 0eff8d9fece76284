"""U-Net, DSB 2018: nuclei against background, the plain baseline of attention_unet_dsb2018.py.

440 iterations of batch 4, from random weights; scored on the val split.
"""
_base_ = [
    '_base_/models/segmentor_unet.py',
    '_base_/datasets/dsb2018_labels.py',
    '_base_/schedules/adamw_440.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=2),
    auxiliary_head=dict(num_classes=2))
