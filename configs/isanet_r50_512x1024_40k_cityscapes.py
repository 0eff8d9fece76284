"""ISANet on ResNet-50, Cityscapes: interlaced sparse self-attention in the decode head, MMSegmentation's recipe.

Attention among the positions at the same place of every window of down_factor, then within each window. A map
whose sides are no multiples of down_factor is padded with zeros, which take part in the softmax: images with sides of
multiples of 64 pixels (8 of the stride by 8) need no padding.
It is not exported, as the windows fix the size of an image.

40,000 iterations of batch 8 (4 GPUs x 2), crop 512x1024, SGD 0.01, poly 0.9; test on whole images.
Source: open-mmlab/mmsegmentation, isanet_r50-d8_4xb2-40k_cityscapes-512x1024.
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
        type='ISAHead',
        isa_channels=256,
        down_factor=(8, 8)))
