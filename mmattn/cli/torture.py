"""Kill trainings, or saves, at random moments and see that nothing is lost and all is exact.

With a config: it is trained once without a stop, then killed (SIGKILL) N times and resumed, and
every step's losses and all that remains at the end are compared bit for bit. With --saves: a
process that saves without pause, keeping one checkpoint, is killed N times, and each time the last
checkpoint that it had acknowledged must be there. With --soak: the config is trained once, and
memory, open files, threads and checkpoints must not grow with it.

Example: python tools/torture.py configs/ccnet_r18_street.py --kills 20 --out-dir work_dirs/torture
"""

import sys

from mmattn.cli.common import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('config', nargs='?', help='config file')
    args.add_argument('--saves', action='store_true', help='kill saves instead of a training')
    args.add_argument('--soak', action='store_true', help='kill nothing: see that nothing grows')
    args.add_argument('--kills', type=int, help='how many (default: 20, of saves 120)')
    args.add_argument('--seed', type=int, default=0, help='of the moments; default: %(default)s')
    args.add_argument('--out-dir', required=True, help='an empty folder for what is written')
    args.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE',
        help='change the config, e.g. train_cfg.max_iters=20',
    )  # fmt: skip
    given, args = args, args.parse_args(argv)
    if bool(args.config) == args.saves:
        given.error('name a config, or --saves')
    if args.soak and (args.saves or args.kills):
        given.error('--soak kills nothing')

    def task() -> None:
        from mmattn.testing.kill import torture_saves, torture_training
        from mmattn.testing.soak import soak

        if args.soak:
            soak(args.config, args.out_dir, args.cfg_options)
        elif args.saves:
            torture_saves(args.kills or 120, args.seed, args.out_dir)
        else:
            kills = args.kills or 20
            torture_training(args.config, kills, args.seed, args.out_dir, args.cfg_options)

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
