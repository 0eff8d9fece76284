"""Does a block help? Train and test one recipe with each of several blocks and seeds, and compare
with the plain network: mean and spread, a paired test, what each costs, a picture of both.

Call it again to go on after an interruption, or with more blocks or seeds: what is done stays done.

Example: python tools/ablate.py configs/retinanet_r18_bccd.py --attention none,se,cbam,se+gc
"""

import sys

from mmattn.cli.common import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('config', help='config file of a detector or segmentor')
    args.add_argument(
        '--attention', required=True, metavar='NAME,NAME,...',
        help="what is compared, files of configs/_base_/attention; 'a+b' for both at once",
    )  # fmt: skip
    args.add_argument('--seeds', type=int, default=3, help='how many; default: %(default)s')
    args.add_argument('--jobs', type=int, default=1, help='runs at a time; default: %(default)s')
    args.add_argument('--threads', type=int, help='of each run on a CPU; default: cores / jobs')
    args.add_argument('--metric', help='of the test; default: mask AP, box AP or mIoU')
    args.add_argument('--out-dir', help='default: work_dirs/ablation/<config name>')
    args.add_argument(
        '--scheduler', choices=['local', 'slurm', 'ray'], default='local',
        help='who runs them; default: this machine',
    )  # fmt: skip
    args.add_argument(
        '--scheduler-options', default='', metavar='TEXT',
        help="of sbatch, e.g. '--partition=gpu --gres=gpu:1'; for ray e.g. 'num_gpus=1'",
    )  # fmt: skip
    args.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config of all runs'
    )
    args = args.parse_args(argv)

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


if __name__ == '__main__':
    sys.exit(main())
