"""DNLNet on ResNet-50, Cityscapes: disentangled non-local attention in the decode head, MMSegmentation's recipe.

The pairwise term compares queries and keys less their means over the positions, at a temperature of 0.05; a unary
term adds one vector to all. `mode='gaussian'` is refused: MMSegmentation's head overwrites its input there.

40,000 iterations of batch 8 (4 GPUs x 2), crop 512x1024, SGD 0.01, poly 0.9; test on whole images.
Source: open-mmlab/mmsegmentation, dnl_r50-d8_4xb2-40k_cityscapes-512x1024.
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
        type='DNLHead',
        reduction=2,
        mode='embedded_gaussian'))
