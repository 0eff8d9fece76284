"""Measure attention blocks beside their peers (MMCV, MMSegmentation, timm where installed, the
authors' operations) in one process: equality first, then time forward and forward with backward,
memory kept and at most, and the least time that the machine allows.

Ratios are peer over ours, so above 1 ours needs less. Each block has a size at which it tells
something; --size is for all. Targets stand where size, device and dtype are theirs. Times on a CPU
depend on the allocator: with MALLOC_MMAP_THRESHOLD_=8589934592 and
MALLOC_TRIM_THRESHOLD_=8589934592 set before the start, memory is kept and not asked for anew; the
first line says which it was.

--plot draws time and memory against the number of pixels, 16x16 to 128x256, of the blocks that the
pattern names; without one, of four.

--plugins measures instead what putting blocks into a network costs beside the blocks themselves:
Mask R-CNN R50 of mmdet beside ours, and with plugins that do nothing.

--trust measures what the guarantees of a training cost: a step that is watched, a checkpoint that
survives a kill, beside a plain step and torch.save with fsync.

--segmentation measures what testing a segmentor costs beside its network, MMSegmentation beside
ours: sliding windows, logits to a map of classes, intersection and union.

Example: python tools/benchmark.py 'c*' --size 2 256 64 64 --json benchmark.json
"""

import os
import sys

from mmattn.cli.common import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('pattern', nargs='?', default='*', help='of the name; default: all')
    args.add_argument(
        '--size', nargs=4, type=int, metavar=tuple('NCHW'),
        help="of the input; default: each block's own",
    )  # fmt: skip
    args.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...; default: cpu')
    args.add_argument(
        '--dtype', default='fp32', choices=['fp32', 'fp16', 'bf16', 'fp64'],
        help='of input and weights; default: fp32',
    )  # fmt: skip
    args.add_argument('--rounds', type=int, default=7, help='at most; default: %(default)s')
    args.add_argument('--json', metavar='OUT', help='write the figures there, too')
    args.add_argument('--plot', metavar='OUT.png', help='draw time and memory by size')
    other = args.add_mutually_exclusive_group()
    other.add_argument('--plugins', action='store_true', help='the cost of plugging')
    other.add_argument('--trust', action='store_true', help='the cost of the guarantees')
    other.add_argument('--segmentation', action='store_true', help='the cost of testing segmentors')
    given, args = args, args.parse_args(argv)
    flags = [f'--{name}' for name in ('plugins', 'trust', 'segmentation') if getattr(args, name)]
    flag = flags[0] if flags else None
    if flag and (args.pattern != '*' or args.size):
        given.error(f'{flag} has sizes of its own: leave pattern and --size out')
    if flag and (args.device != 'cpu' or args.dtype != 'fp32' or args.plot):
        given.error(f'{flag} is for the CPU in fp32: leave --device, --dtype and --plot out')
    if args.rounds < 1:
        given.error(f'--rounds {args.rounds}: allowed are numbers from 1')

    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the memory profiler's notes to its makers

    def task() -> None:
        if args.plugins:
            from mmattn.benchmarks.overhead import report_overhead

            report_overhead('configs/mask_rcnn_r50_coco.py', args.rounds, args.json)
            return
        if args.trust:
            from mmattn.benchmarks.overhead import report_trust

            report_trust('configs/mask_rcnn_r50_coco.py', args.rounds, args.json)
            return
        if args.segmentation:
            from mmattn.benchmarks.segmentation import report_segmentation

            report_segmentation(args.rounds, args.json)
            return
        from mmattn.benchmarks.report import report

        report(
            args.pattern,
            args.size and tuple(args.size),
            args.rounds,
            args.json,
            device=args.device,
            dtype=args.dtype,
            plot_path=args.plot,
        )

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
