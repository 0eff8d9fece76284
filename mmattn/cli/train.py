"""Train a config; logs, curves and checkpoints go to the work dir.

Example: python tools/train.py configs/ccnet_r18_street.py
"""

from .common import (
    CONFIG_HELP,
    add_config_options,
    add_data_check_option,
    add_data_option,
    add_network_options,
    add_rehearsal_option,
    make_parser,
    run,
)


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--work-dir', help='folder for all results (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help="resume from a checkpoint; without one, or with 'auto': from the latest of the work "
        'dir, or start from scratch where there is none',
    )
    parser.add_argument(
        '--init-from',
        metavar='WEIGHTS',
        help='start from the weights that match the network: file or URL',
    )
    add_network_options(parser, training=True)
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate by the batch size'
    )
    parser.add_argument('--no-validate', action='store_true', help='train without validation')
    parser.add_argument(
        '--val-loss',
        action='store_true',
        help='compute the losses at each validation, too: val/loss and its parts, next to the '
        'metric',
    )
    parser.add_argument('--seed', type=int, help='random seed (default: that of the config)')
    parser.add_argument(
        '--allow-topology-change',
        action='store_true',
        help='allow resuming with another number of processes, which is not bit-exact',
    )
    parser.add_argument(
        '--allow-config-change',
        action='store_true',
        help='allow resuming with a changed config, which is not bit-exact',
    )
    add_data_check_option(parser)
    add_rehearsal_option(parser)
    add_data_option(parser)
    add_config_options(parser)
    args = parser.parse_args(argv)

    def task() -> None:
        from mmattn.engine.train import TrainOptions, train

        work_dir = train(
            args.config,
            TrainOptions(
                work_dir=args.work_dir,
                resume=args.resume,
                init_from=args.init_from,
                amp=args.amp,
                channels_last=args.channels_last,
                compile=args.compile,
                auto_scale_lr=args.auto_scale_lr,
                attention=args.attention,
                data=args.data,
                cfg_options=args.cfg_options,
                launcher=args.launcher,
                seed=args.seed,
                validate=not args.no_validate,
                val_loss=args.val_loss,
                allow_topology_change=args.allow_topology_change,
                allow_config_change=args.allow_config_change,
                rehearsal=not args.no_rehearsal,
                skip_data_check=args.skip_data_check,
            ),
        )
        curves = ', logs and curves.png' if (work_dir / 'curves.png').exists() else ' and logs'
        print(f'done: checkpoints{curves} are in {work_dir}')

    return run(task, args)
