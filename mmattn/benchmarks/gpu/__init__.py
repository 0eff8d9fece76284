"""A report of the blocks on a GPU in a quarter of an hour: what is right, and what is fast.

`report` runs what `parts` lists in a process of its own (`worker`), with a time limit for each;
`summary` says what their rows mean. Needs torch, numpy and, for its kernels, Triton; imports of
mmattn nothing but blocks and ops. Baselines are restated formulas (`restated`).
"""
