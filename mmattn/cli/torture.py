"""Kill trainings or saves at random times and check that nothing is lost.

With a config (kill test): it is trained once without interruption, then killed (SIGKILL) N times
and resumed; the losses of every step and the final state are compared bit for bit. With --saves: a
process that saves in a loop, keeping one checkpoint, is killed N times; each time the last
acknowledged checkpoint must load. With --soak: the config is trained once; memory, open files,
threads and checkpoints must not grow.

Example: python tools/torture.py configs/ccnet_r18_street.py --kills 20 --out-dir work_dirs/torture
"""

from .common import CONFIG_HELP, make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', nargs='?', help=CONFIG_HELP)
    parser.add_argument('--saves', action='store_true', help='kill saves instead of a training')
    parser.add_argument(
        '--soak', action='store_true', help='soak test: kill nothing, check that nothing grows'
    )
    parser.add_argument('--kills', type=int, help='number of kills (default: 20, with --saves 120)')
    parser.add_argument(
        '--seed', type=int, default=0, help='seed for the kill times; default: %(default)s'
    )
    parser.add_argument('--out-dir', required=True, help='empty folder for all that is written')
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE',
        help='override config values, e.g. train_cfg.max_iters=20',
    )  # fmt: skip
    args = parser.parse_args(argv)
    if bool(args.config) == args.saves:
        parser.error('name a config, or --saves')
    if args.soak and (args.saves or args.kills):
        parser.error('--soak kills nothing')

    def task() -> None:
        from mmattn.testing.kill import kill_test, kill_test_saves
        from mmattn.testing.soak import soak_test

        if args.soak:
            soak_test(args.config, args.out_dir, args.cfg_options)
        elif args.saves:
            kill_test_saves(args.kills or 120, args.seed, args.out_dir)
        else:
            kills = args.kills or 20
            kill_test(args.config, kills, args.seed, args.out_dir, args.cfg_options)

    return run(task, args)
