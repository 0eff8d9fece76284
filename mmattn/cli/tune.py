r"""Search for the best settings: train with those that Optuna chooses.

Trials that the validation shows to be worse than the median are stopped early. Call it again to
continue after an interruption, with more --trials to add some, or in several processes at a time.

Example: python tools/tune.py configs/fcn_r18_street.py --trials 20 \
  --space optim_wrapper.optimizer.lr=log:1e-4:1e-2 'attention=none|cbam|gc'
"""

from .common import (
    CONFIG_HELP,
    add_config_options,
    add_data_check_option,
    add_data_option,
    add_rehearsal_option,
    make_parser,
    run,
)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--space',
        nargs='+',
        required=True,
        metavar='KEY=RANGE',
        help='config keys, or attention, with their ranges: float:0:1, log:1e-5:1e-2, int:1:8, or '
        'a choice a|b|c, in quotes for the shell',
    )
    parser.add_argument(
        '--trials',
        type=int,
        default=20,
        metavar='N',
        help='number of trials, those of earlier calls included; default: %(default)s',
    )
    parser.add_argument(
        '--metric', help='validation metric; default: save_best of the config, or else the first'
    )
    parser.add_argument(
        '--work-dir',
        help='folder for all results; default: work_dirs/tuning/<name>, with the '
        'names of config, data set and blocks',
    )
    parser.add_argument(
        '--storage',
        metavar='URL',
        help='data base for the study, e.g. postgresql://...; default: SQLite in the work dir',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed for the settings drawn; default: %(default)s'
    )
    parser.add_argument(
        '--startup-trials',
        type=int,
        default=5,
        metavar='N',
        help='number of trials before others are stopped early; default: %(default)s',
    )
    add_data_check_option(parser)
    add_rehearsal_option(parser)
    add_data_option(parser)
    add_config_options(parser, launcher=False)
    args = parser.parse_args(argv)

    def task() -> None:
        from pathlib import Path

        from mmattn.analysis.tuning import TuneOptions, tune
        from mmattn.engine.run_config import run_name

        name = run_name(args.config, args.attention, args.data)
        work_dir = Path(args.work_dir or Path('work_dirs/tuning') / name)
        tune(
            args.config,
            args.space,
            TuneOptions(
                work_dir=work_dir,
                trials=args.trials,
                metric=args.metric,
                storage=args.storage,
                seed=args.seed,
                startup_trials=args.startup_trials,
                attention=args.attention,
                data=args.data,
                cfg_options=args.cfg_options or [],
                rehearsal=not args.no_rehearsal,
                skip_data_check=args.skip_data_check,
            ),
        )
        print(f'done: the table, trials.png and the trainings are in {work_dir}')

    return run(task, args)
