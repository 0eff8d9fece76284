"""Measure time and memory of the attention blocks against baselines.

Baselines are MMCV, MMSegmentation, MMDetection, timm, torch's fused attention and the authors'
operations, in the same process with the same weights, alternating; equality of outputs and of all
gradients is checked first. Measured are the forward pass, forward and backward, memory saved for
backward and peak memory.

A ratio is the best baseline over the best of ours, so above 1 ours needs less. The best is the
better of eager and compiled (torch.compile), in one memory layout, NCHW or channels_last (NHWC).
Each block has a representative size; --size sets one for all. By default all is measured with
torch's number of threads and with one, and with glibc's malloc tuned (freed memory is kept) and as
it is: both change who is fast. Targets hold for torch's number of threads and tuned malloc.

A whole run takes hours. With --json it can be stopped at any time; --resume goes on where it was.

--plot draws time and memory against the number of pixels, 16x16 to 128x256, of the blocks that
match the pattern; without a pattern, of four.

--plugins measures the overhead of inserting blocks into a network in addition to the blocks
themselves: Mask R-CNN R50 of mmdet against ours, and with plugins that do nothing.

--trust measures the overhead of safe training: a step with checks against a plain step, a
crash-safe checkpoint against torch.save with fsync.

--training CONFIG measures whole steps of a training by parts: MMSegmentation's or MMDetection's
classes with MMEngine's runner, and ours. Where the data of the config are not there, or with
--image, images are generated. --with adds columns, each for options of tools/train.py.

--step measures parts of a step: the loss and accuracy of a decode head, numbers that are logged,
loading of samples, gates that keep nothing for the backward pass.

--segmentation measures the cost of testing a segmentor outside its network, MMSegmentation against
ours: sliding windows, logits to class maps, intersection and union.

--formats measures size and decoding time of images in lossless formats, among which prepare_data.py
--cache chooses.

Example: python tools/benchmark.py 'c*' --size 2 256 64 64 --malloc tuned --json benchmark.json
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
        '--rounds', type=int,
        help='maximum number of rounds; the median counts; default: 25. Of --plugins, --trust, '
        '--segmentation and --formats: number of rounds, the fastest counts; default: 7',
    )  # fmt: skip
    parser.add_argument(
        '--threads', type=int, nargs='+', metavar='N',
        help="numbers of threads; default: torch's own number, and 1",
    )  # fmt: skip
    parser.add_argument(
        '--malloc', nargs='+', choices=['tuned', 'default', 'current'],
        help='settings of malloc, each in its own process; current: as the environment has it; '
        'default: tuned and default, on a GPU current',
    )  # fmt: skip
    parser.add_argument(
        '--layout', nargs='+', default=['NCHW', 'NHWC'], choices=['NCHW', 'NHWC'],
        help='memory layouts; default: both',
    )  # fmt: skip
    parser.add_argument(
        '--mode', nargs='+', default=['eager', 'compiled'], choices=['eager', 'compiled'],
        help='with and without torch.compile; default: both',
    )  # fmt: skip
    parser.add_argument('--json', metavar='OUT', help='also write the results to this JSON file')
    parser.add_argument(
        '--resume', action='store_true', help='keep what the --json file has, and measure the rest'
    )
    parser.add_argument(
        '--against', metavar='OTHER', help='also compare the ratios with those of this JSON file'
    )
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
    others.add_argument(
        '--formats', nargs='+', metavar='IMAGE',
        help='measure how these images decode from lossless formats',
    )  # fmt: skip
    others.add_argument('--training', metavar='CONFIG', help='measure steps of a training')
    others.add_argument(
        '--step', nargs='*', metavar='PART',
        help='measure parts of a training step: loss, history, samples, gates; default: all',
    )  # fmt: skip
    training = parser.add_argument_group('of --training')
    training.add_argument('--attention', metavar='NAME[,NAME]', help='blocks to add on both sides')
    training.add_argument(
        '--image', nargs=2, type=int, metavar=('H', 'W'), help='generate images of this size'
    )
    training.add_argument('--batch', type=int, help="images of a step; default: the config's")
    training.add_argument(
        '--with', nargs='+', dest='variants', default=[], metavar='OPTION[,OPTION]',
        help='a further column for ours with these options, such as channels_last,amp=bfloat16',
    )  # fmt: skip
    training.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='override config values'
    )
    args = parser.parse_args(argv)
    names = 'plugins', 'trust', 'segmentation', 'formats', 'training', 'step'
    flags = [f'--{name}' for name in names if getattr(args, name) not in (False, None)]
    flag = flags[0] if flags else None
    if flag and (args.pattern != '*' or args.size):
        parser.error(f'{flag} has sizes of its own: leave pattern and --size out')
    on_gpu = args.device != 'cpu' and flag != '--training'
    if flag and (on_gpu or args.dtype != 'fp32' or args.plot):
        parser.error(f'{flag} is for the CPU in fp32: leave --device, --dtype and --plot out')
    given = [
        o for o in ('attention', 'image', 'batch', 'variants', 'cfg_options') if getattr(args, o)
    ]
    if given and not args.training:
        name = given[0].replace('variants', 'with').replace('_', '-')
        parser.error(f'--{name} is for --training: name a config there, or leave it out')
    if args.threads and flag in ('--training', '--step'):
        parser.error(f"{flag} runs with torch's number of threads: set OMP_NUM_THREADS instead")
    if args.rounds is None:
        args.rounds = 7 if flag else 25
    for name, values in dict(rounds=[args.rounds], threads=args.threads or [1]).items():
        if min(values) < 1:
            parser.error(f'--{name} {min(values)}: allowed are numbers from 1')
    if args.resume and not args.json:
        parser.error('--resume goes on with the file of --json: name it')

    os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # silence the log of torch's profiler

    def task() -> None:
        if args.plugins or args.trust:
            from mmattn.benchmarks.overhead import report_overhead, report_trust

            report_cost = report_overhead if args.plugins else report_trust
            report_cost('mask_rcnn_r50_coco', args.rounds, args.json)
            return
        if args.training:
            from mmattn.benchmarks.training import report_training

            report_training(
                args.training,
                args.rounds,
                args.json,
                attention=args.attention,
                options=args.cfg_options,
                size=args.image and tuple(args.image),
                batch=args.batch,
                variants=[_options(text) for text in args.variants],
                device=args.device,
            )
            return
        if args.step is not None:
            from mmattn.benchmarks.step_parts import report_step

            report_step(args.step, args.rounds, args.json)
            return
        if args.segmentation:
            from mmattn.benchmarks.segmentation import report_segmentation

            report_segmentation(args.rounds, args.json)
            return
        if args.formats:
            from mmattn.benchmarks.image_formats import report_formats

            report_formats(args.formats, args.rounds, args.json)
            return
        from mmattn.benchmarks.run import run_benchmark

        run_benchmark(
            args.pattern,
            args.size and tuple(args.size),
            args.rounds,
            args.json,
            device=args.device,
            dtype=args.dtype,
            threads=args.threads,
            layouts=args.layout,
            modes=args.mode,
            plot_path=args.plot,
            resume=args.resume,
            against=args.against,
        )

    settings = args.malloc or (['tuned', 'default'] if args.device == 'cpu' else ['current'])
    if not flag and settings != ['current']:
        return _run_with_mallocs(settings, args, sys.argv[1:] if argv is None else argv)
    return run(task, args)


def _options(text: str) -> dict:
    """`channels_last,amp=bfloat16` as fields of `TrainOptions`."""
    pairs = (item.partition('=') for item in text.split(','))
    return {name.replace('-', '_'): value if sign else True for name, sign, value in pairs}


def _run_with_mallocs(settings: list[str], args: argparse.Namespace, argv: list[str]) -> int:
    """Run the command once for each setting of malloc, which a process has from its start on."""
    from mmattn.benchmarks.machine import TUNED

    with tempfile.TemporaryDirectory() as folder:
        path = args.json or str(Path(folder) / 'benchmark.json')
        for index, setting in enumerate(settings):
            environment = {name: value for name, value in os.environ.items() if name not in TUNED}
            environment |= TUNED if setting == 'tuned' else {}
            # the last of an option counts
            command = [sys.executable, '-m', 'mmattn', 'benchmark', *argv]
            command += ['--malloc', 'current', '--json', path]
            command += ['--resume'] if index else []
            code = subprocess.run(command, env=environment).returncode
            if code:
                return code
    return 0
