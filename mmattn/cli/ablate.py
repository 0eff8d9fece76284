"""Train and test with several attention blocks and seeds, and compare.

Runs one recipe, or several, with each block and seed, and reports mean, standard deviation and 95 %
interval, paired and unpaired tests against the plain network, the smallest effect that would have
been seen, the cost of each block, and plots. Call it again to continue after an interruption, or
with more blocks or seeds: finished runs are kept. --table makes the tables again from results.

Example: python tools/ablate.py configs/retinanet_r18_bccd.py --attention none,se,cbam,se+gc
         python tools/ablate.py fcn_r18_street ccnet_r18_street --between-configs
         python tools/ablate.py --table work_dirs/ablation/*/results.json
"""

from .common import CONFIG_HELP, make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        'config', nargs='*', help=f'{CONFIG_HELP}; several are run one after another'
    )
    parser.add_argument(
        '--attention', metavar='NAME,NAME,...',
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
        '--test', choices=['paired', 'welch'],
        help='t-test that decides: paired by seed, or of the means of all seeds with unequal '
        'variances; default: paired. Choose it before the runs',
    )  # fmt: skip
    parser.add_argument(
        '--out-dir',
        help='folder for results, with a folder for each of several configs; default: '
        'work_dirs/ablation/<config name>',
    )
    parser.add_argument(
        '--table', nargs='+', metavar='RESULTS.json',
        help='run nothing: print the table of these results, of several blocks over configs; with '
        '--out-dir write it and the plots',
    )  # fmt: skip
    parser.add_argument(
        '--between-configs', action='store_true',
        help='compare the plain networks of the configs with that of the first, such as heads of '
        'one backbone',
    )  # fmt: skip
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
    if bool(args.config) == bool(args.table):
        parser.error('name configs with --attention, or results with --table')
    if args.between_configs and len(args.config or args.table) < 2:
        parser.error('--between-configs compares two configs or more')
    if args.between_configs and args.attention:
        parser.error('--between-configs compares plain networks: leave --attention out')
    if args.config and not (args.attention or args.between_configs):
        parser.error('the following arguments are required: --attention')

    def read(paths: list) -> list:
        from mmattn.analysis.ablation_results import compare_configs, read_ablation

        ablations = [read_ablation(path, args.test) for path in paths]
        return [compare_configs(ablations)] if args.between_configs else ablations

    def table() -> None:
        from pathlib import Path

        from mmattn.analysis.ablation import write_report
        from mmattn.analysis.ablation_results import report

        ablations = read(args.table)
        if args.out_dir:
            print(write_report(ablations, Path(args.out_dir)))
        else:
            print(report(ablations))

    def task() -> None:
        from pathlib import Path

        from mmattn.analysis.ablation import ablate_configs, write_report

        root = Path(args.out_dir or Path('work_dirs/ablation'))
        out_dirs = {config: root / Path(config).stem for config in args.config}
        if args.out_dir and len(args.config) == 1:
            out_dirs = dict.fromkeys(args.config, root)
        try:
            ablate_configs(
                out_dirs,
                (args.attention or 'none').split(','),
                args.seeds,
                jobs=args.jobs,
                threads=args.threads,
                metric=args.metric,
                test=args.test or 'paired',
                scheduler=args.scheduler,
                scheduler_options=args.scheduler_options,
                options=args.cfg_options,
            )
        finally:
            results = [folder / 'results.json' for folder in out_dirs.values()]
            results = [path for path in results if path.is_file()]
            for path in results:
                print(path.with_name('results.md').read_text(encoding='utf-8'))
            if len(results) > 1:
                print(write_report(read(results), root))

    return run(table if args.table else task, args)
