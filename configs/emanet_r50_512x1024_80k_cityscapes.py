"""EMANet on ResNet-50, Cityscapes: expectation-maximization attention in the decode head, MMSegmentation's recipe.

The bases are no parameters but a buffer, a moving average over batches and ranks. The EM steps pass no gradient on: the
head learns by its skip connection and by the convolutions after them, and `ema_mid_conv` stays as it was drawn.

80,000 iterations of batch 8 (4 GPUs x 2), crop 512x1024, SGD 0.01, poly 0.9; test on whole images.
Source: open-mmlab/mmsegmentation, emanet_r50-d8_4xb2-80k_cityscapes-512x1024.
"""
_base_ = [
    '_base_/models/segmentor_r50_mmseg.py',
    '_base_/datasets/cityscapes_512x1024.py',
    '_base_/schedules/sgd_80k.py',
    '_base_/runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(
        type='EMAHead',
        channels=256,
        ema_channels=512,
        num_bases=64,
        num_stages=3))
