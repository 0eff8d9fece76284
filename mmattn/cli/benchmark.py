"""Measure time and memory of the attention blocks against baselines.

Baselines are MMCV, MMSegmentation, timm (where installed) and the authors' operations, in the same
process with the same weights; equality is checked first. Measured are the forward pass, forward and
backward, memory saved for backward, peak memory, and the lower bound that the machine sets.

Ratios are baseline over ours, so above 1 ours needs less. Each block has a representative size;
--size sets one for all. Targets are shown where size, device and dtype are theirs. Times on a CPU
depend on the allocator: MALLOC_MMAP_THRESHOLD_=8589934592 and MALLOC_TRIM_THRESHOLD_=8589934592,
set before the start, make malloc reuse memory instead of returning it to the system; the first line
of the output says which setting was used.

--plot draws time and memory against the number of pixels, 16x16 to 128x256, of the blocks that
match the pattern; without a pattern, of four.

--plugins measures the overhead of inserting blocks into a network in addition to the blocks
themselves: Mask R-CNN R50 of mmdet against ours, and with plugins that do nothing.

--trust measures the overhead of safe training: a step with checks against a plain step, a
crash-safe checkpoint against torch.save with fsync.

--segmentation measures the cost of testing a segmentor outside its network, MMSegmentation against
ours: sliding windows, logits to class maps, intersection and union.

Example: python tools/benchmark.py 'c*' --size 2 256 64 64 --json benchmark.json
"""

import os

from .common import make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        'pattern', nargs='?', default='*', help='glob over case names (default: all)'
    )
    parser.add_argument(
        '--size', nargs=4, type=int, metavar=tuple('NCHW'),
        help='input size; default: the representative size of each block',
    )  # fmt: skip
    parser.add_argument(
        '--device', default='cpu', help='cpu, cuda, cuda:1, ...; default: %(default)s'
    )
    parser.add_argument(
        '--dtype', default='fp32', choices=['fp32', 'fp16', 'bf16', 'fp64'],
        help='dtype of input and weights; default: %(default)s',
    )  # fmt: skip
    parser.add_argument(
        '--rounds', type=int, default=7,
        help='maximum number of rounds; the fastest counts; default: %(default)s',
    )  # fmt: skip
    parser.add_argument('--json', metavar='OUT', help='also write the results to this JSON file')
    parser.add_argument(
        '--plot', metavar='OUT.png', help='plot time and memory against the number of pixels'
    )
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        '--plugins', action='store_true', help='measure the overhead of inserting blocks'
    )
    others.add_argument(
        '--trust', action='store_true', help='measure the overhead of checks and safe checkpoints'
    )
    others.add_argument(
        '--segmentation', action='store_true', help='measure the cost of testing segmentors'
    )
    args = parser.parse_args(argv)
    flags = [f'--{name}' for name in ('plugins', 'trust', 'segmentation') if getattr(args, name)]
    flag = flags[0] if flags else None
    if flag and (args.pattern != '*' or args.size):
        parser.error(f'{flag} has sizes of its own: leave pattern and --size out')
    if flag and (args.device != 'cpu' or args.dtype != 'fp32' or args.plot):
        parser.error(f'{flag} is for the CPU in fp32: leave --device, --dtype and --plot out')
    if args.rounds < 1:
        parser.error(f'--rounds {args.rounds}: allowed are numbers from 1')

    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # silence the log of torch's profiler

    def task() -> None:
        if args.plugins or args.trust:
            from mmattn.benchmarks.overhead import report_overhead, report_trust

            report_cost = report_overhead if args.plugins else report_trust
            report_cost('mask_rcnn_r50_coco', args.rounds, args.json)
            return
        if args.segmentation:
            from mmattn.benchmarks.segmentation import report_segmentation

            report_segmentation(args.rounds, args.json)
            return
        from mmattn.benchmarks.report import run_benchmark

        run_benchmark(
            args.pattern,
            args.size and tuple(args.size),
            args.rounds,
            args.json,
            device=args.device,
            dtype=args.dtype,
            plot_path=args.plot,
        )

    return run(task, args)
