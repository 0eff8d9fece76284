"""A report of the blocks on a GPU in a quarter of an hour: what is right, and what is fast.

`report` runs what `parts` lists in a process of its own (`worker`), with a time limit for each;
`summary` says what their rows mean. Needs torch, numpy and, for its kernels, Triton; imports of
mmattn nothing but blocks and ops. Baselines are formulas, restated on the weights of our blocks
(`restated`, and those of authors in `benchmarks.authors_operations`).
"""
