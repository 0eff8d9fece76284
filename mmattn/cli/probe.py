"""Measure what each block can do, on small generated tasks that need one ability each.

A tiny network with each block in turn is trained on each task: a marker anywhere, in the same row,
in the same column; look-up by content; counting; the largest; undoing a shift; choosing a scale or
a channel. Without a block the network sees too little of the image and stays near chance, 25 %; the
ceiling is 100 %. A table of accuracies is printed, mean and standard deviation over the seeds, bold
from 20 points above chance. docs/probe.md describes the tasks.

With --json a run can be stopped at any time; --resume goes on where it was. A cell has the same
result, bit for bit, in any order: to repeat one, name its block, task and seed, and compare with
--against.

Example: python tools/probe.py --blocks none nonlocal2d 'criss*' --tasks marker row --seeds 2
"""

import os

from .common import make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        '--blocks', nargs='+', default=['*'], metavar='GLOB',
        help='globs over the rows of the table, case does not matter; default: all',
    )  # fmt: skip
    parser.add_argument(
        '--tasks', nargs='+', default=['*'], metavar='GLOB',
        help='globs over the names of the tasks; default: all',
    )  # fmt: skip
    numbers = parser.add_mutually_exclusive_group()
    numbers.add_argument(
        '--seeds', type=int, default=5, help='number of seeds for each; default: %(default)s'
    )
    numbers.add_argument('--seed', type=int, metavar='N', help='this seed alone, from 0')
    parser.add_argument(
        '--steps', type=int, help='training steps of each cell; default: those of docs/probe.md'
    )
    parser.add_argument(
        '--jobs', type=int, default=os.cpu_count() or 1,
        help='number of processes, each with one thread; default: number of cores',
    )  # fmt: skip
    parser.add_argument('--json', metavar='OUT', help='also write the results to this JSON file')
    parser.add_argument(
        '--resume', action='store_true', help='keep what the --json file has, and measure the rest'
    )
    parser.add_argument(
        '--against', metavar='OTHER',
        help='compare with the cells of this JSON file; exit 1 unless all are equal, bit for bit',
    )  # fmt: skip
    parser.add_argument('--plot', metavar='OUT.png', help='draw the table as a heat map')
    args = parser.parse_args(argv)
    if args.resume and not args.json:
        parser.error('--resume goes on with the file of --json: name it')

    def task() -> None:
        from mmattn.analysis.probe import run_probe
        from mmattn.analysis.probe_network import STEPS

        run_probe(
            args.blocks,
            args.tasks,
            range(args.seeds) if args.seed is None else [args.seed],
            jobs=args.jobs,
            steps=STEPS if args.steps is None else args.steps,
            json_path=args.json,
            resume=args.resume,
            against=args.against,
            plot_path=args.plot,
        )

    return run(task, args)
