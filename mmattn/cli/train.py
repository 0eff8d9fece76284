"""Train a config: logs, curves and checkpoints go to the work dir.

Example: python tools/train.py configs/ccnet_r18_street.py
"""

import sys

from mmattn.cli.common import config_options, parser, rehearsal_option, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('config', help='config file')
    args.add_argument('--work-dir', help='where everything goes (default: work_dirs/<config name>)')
    args.add_argument(
        '--resume',
        nargs='?',
        const='latest',
        metavar='CHECKPOINT',
        help="go on from a checkpoint, by default the latest; 'auto': or start fresh",
    )
    args.add_argument(
        '--init-from',
        metavar='WEIGHTS',
        help='start from weights as far as they fit: file or address',
    )
    args.add_argument('--amp', action='store_true', help='mixed precision (GPU)')
    args.add_argument('--auto-scale-lr', action='store_true', help='learning rate by batch size')
    args.add_argument('--no-validate', action='store_true', help='no validation during training')
    args.add_argument('--seed', type=int, help='random seed (default: of the config)')
    args.add_argument(
        '--allow-topology-change',
        action='store_true',
        help='resume with another number of processes, inexactly',
    )
    args.add_argument(
        '--allow-config-change', action='store_true', help='resume with another config, inexactly'
    )
    args.add_argument(
        '--skip-data-check',
        action='store_true',
        help='do not look at the files of the data first: that refuses what you know is right',
    )
    rehearsal_option(args)
    config_options(args)
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.engine.train import TrainOptions, train

        work_dir = train(
            args.config,
            TrainOptions(
                work_dir=args.work_dir,
                resume=args.resume,
                init_from=args.init_from,
                amp=args.amp,
                auto_scale_lr=args.auto_scale_lr,
                attention=args.attention,
                cfg_options=args.cfg_options,
                launcher=args.launcher,
                seed=args.seed,
                validate=not args.no_validate,
                allow_topology_change=args.allow_topology_change,
                allow_config_change=args.allow_config_change,
                rehearsal=not args.no_rehearsal,
                skip_data_check=args.skip_data_check,
            ),
        )
        curves = ', logs and curves.png' if (work_dir / 'curves.png').exists() else ' and logs'
        print(f'done: checkpoints{curves} are in {work_dir}')

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
