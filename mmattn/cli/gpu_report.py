"""Report in a quarter of an hour what of the blocks is right, and what is fast, on a GPU.

Needs torch, numpy and the blocks; Triton for the kernels, which are otherwise not run. Nothing of
OpenMMLab is needed: baselines are formulas of MMCV, MMSegmentation and authors, restated, and
torch's own attention. In a clone that is not installed: python -m mmattn gpu-report --out DIR.

Parts, in the order of their worth: what the device can do; time to compile; equality of criss-cross
and softmax attention with the formula in fp64; times of criss-cross attention, PAM and NonLocal2d
against baselines in both memory formats; equality of every block; a map of more than 2^31 numbers;
gates; what torch.compile makes of both sides; a decode head's loss and a network, for reference.

Each part runs in a process of its own and ends at a time limit, so that one that fails or hangs
leaves the others alone. DIR/report.json has all rows and the summary, DIR/summary.txt the summary;
both are written after each part. DIR/PART.log has what a part printed.

A ratio is that of the best baseline to the best of ours; both replayed from a CUDA graph, and
called from Python. Targets are judged by the lower one. The exit code is 1 if a check fails or a
part does not finish; missed targets are listed.

Without a GPU, or with --device cpu, the same parts run in small, the kernels in Triton's
interpreter: a test of the report itself, whose times mean nothing.

Example: python tools/gpu_report.py --out gpu_report
"""

from pathlib import Path

from .common import make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for the report')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ...; default: the GPU if there is one')
    parser.add_argument(
        '--minutes',
        type=float,
        default=8,
        help='time limit for all parts; those that it leaves no time are skipped; '
        'default: %(default)s',
    )
    parser.add_argument(
        '--parts', nargs='+', default=[], metavar='PART', help='names of parts; default: all'
    )
    args = parser.parse_args(argv)
    if not args.minutes > 0:
        parser.error(f'--minutes {args.minutes:g}: allowed are numbers above 0')

    def task() -> None:
        from mmattn.benchmarks.gpu.report import run_report

        run_report(Path(args.out), args.device, args.minutes, args.parts)

    return run(task, args)
