"""Measure attention blocks beside their peers (MMCV, MMSegmentation, the authors' operations) in
one process: equality first, then time forward and forward with backward, memory kept and at most.

Ratios are peer over ours, so above 1 ours needs less. Times on a CPU depend on the allocator: with
MALLOC_MMAP_THRESHOLD_=8589934592 and MALLOC_TRIM_THRESHOLD_=8589934592 set before the start, memory
is kept and not asked for anew; the first line says which it was.

--plugins measures instead what putting blocks into a network costs beside the blocks themselves:
Mask R-CNN R50 of mmdet beside ours, and with plugins that do nothing.

--segmentation measures what testing a segmentor costs beside its network, MMSegmentation beside
ours: sliding windows, logits to a map of classes, intersection and union.

Example: python tools/benchmark.py 'c*' --size 2 256 64 64 --json benchmark.json
"""

import os
import sys

from mmattn.cli import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('pattern', nargs='?', default='*', help='of the name; default: all')
    args.add_argument(
        '--size', nargs=4, type=int, default=[2, 256, 64, 64], metavar=tuple('NCHW'),
        help='of the input; default: 2 256 64 64',
    )  # fmt: skip
    args.add_argument('--rounds', type=int, default=7, help='default: %(default)s')
    args.add_argument('--json', metavar='OUT', help='write the figures there, too')
    other = args.add_mutually_exclusive_group()
    other.add_argument('--plugins', action='store_true', help='the cost of plugging')
    other.add_argument('--segmentation', action='store_true', help='the cost of testing segmentors')
    given, parsed = args, args.parse_args(argv)
    flag = '--plugins' if parsed.plugins else '--segmentation' if parsed.segmentation else None
    if flag and (parsed.pattern != '*' or parsed.size != given.get_default('size')):
        given.error(f'{flag} has sizes of its own: leave pattern and --size out')
    if parsed.rounds < 1:
        given.error(f'--rounds {parsed.rounds}: allowed are numbers from 1')
    args = parsed

    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the memory profiler's notes to its makers

    def task() -> None:
        if args.plugins:
            from mmattn.engine.overhead import report_overhead

            report_overhead('configs/mask_rcnn_r50_coco.py', args.rounds, args.json)
            return
        if args.segmentation:
            from mmattn.engine.segmentation_benchmark import report_segmentation

            report_segmentation(args.rounds, args.json)
            return
        from mmattn.engine.benchmark import report

        report(args.pattern, tuple(args.size), args.rounds, args.json)

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
