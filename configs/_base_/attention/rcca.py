"""Recurrent criss-cross attention, R = 2, before the last residual block of stage 3: where CCNet's Mask R-CNN has it.

Source: CCNet, TPAMI 2020, arXiv 1811.11721, section on COCO, which follows the placement of the non-local block.
In a segmentor its place is the decode head: mmattn.CCHead.
"""
plugins = [
    dict(
        cfg=dict(type='mmattn.CrissCrossAttention', recurrence=2, init='identity'),
        position='after_add',
        stages=(False, False, True, False),
        blocks=(-2, ),
        learn=True),
]
