"""Train and test with several attention blocks and seeds, and compare.

Runs one recipe with each block and seed, and reports mean and standard deviation, a paired test
against the plain network, the cost of each block, and a plot. Call it again to continue after an
interruption, or with more blocks or seeds: finished runs are kept.

Example: python tools/ablate.py configs/retinanet_r18_bccd.py --attention none,se,cbam,se+gc
"""

from .common import CONFIG_HELP, make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--attention', required=True, metavar='NAME,NAME,...',
        help="names to compare, files of configs/_base_/attention; 'a+b' for both at once, 'none' "
        'for the plain network',
    )  # fmt: skip
    parser.add_argument(
        '--seeds', type=int, default=3, help='number of seeds for each; default: %(default)s'
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='number of runs at a time; default: %(default)s'
    )
    parser.add_argument(
        '--threads', type=int, help='CPU threads of each run; default: number of cores / jobs'
    )
    parser.add_argument('--metric', help='test metric to compare; default: mask AP, box AP or mIoU')
    parser.add_argument(
        '--out-dir', help='folder for results; default: work_dirs/ablation/<config name>'
    )
    parser.add_argument(
        '--scheduler', choices=['local', 'slurm', 'ray'], default='local',
        help='where the runs are started; default: %(default)s, on this machine',
    )  # fmt: skip
    parser.add_argument(
        '--scheduler-options', default='', metavar='TEXT',
        help="extra options passed to sbatch, e.g. '--partition=gpu --gres=gpu:1', or to ray, e.g. "
        "'num_gpus=1'",
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='override config values of all runs'
    )
    args = parser.parse_args(argv)

    def task() -> None:
        from pathlib import Path

        from mmattn.analysis.ablation import ablate

        out_dir = Path(args.out_dir or Path('work_dirs/ablation') / Path(args.config).stem)
        try:
            ablate(
                args.config,
                args.attention.split(','),
                args.seeds,
                out_dir=out_dir,
                jobs=args.jobs,
                threads=args.threads,
                metric=args.metric,
                scheduler=args.scheduler,
                scheduler_options=args.scheduler_options,
                options=args.cfg_options,
            )
        finally:
            if (out_dir / 'results.md').is_file():
                print((out_dir / 'results.md').read_text(encoding='utf-8'))

    return run(task, args)
