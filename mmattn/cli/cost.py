"""What a network costs: parameters, multiplications, memory in training and time, part by part and
attention block by attention block; and, before a run, whether its training fits in memory.

Example: python tools/cost.py configs/mask_rcnn_r50_coco.py --attention gc --memory-limit 11
"""

import sys

from mmattn.cli.common import config_options, parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('config', help='config file')
    args.add_argument(
        '--size', nargs=2, type=int, metavar=('H', 'W'), help='of images; default: as in training'
    )
    args.add_argument(
        '--batch', type=int, metavar='N', help="images a device; default: the config's"
    )
    args.add_argument(
        '--memory-limit', type=float, metavar='GB', help='default: what is free on the device'
    )
    args.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...; default: cpu')
    args.add_argument('--no-latency', action='store_true', help='count only, run nothing')
    args.add_argument('--json', metavar='OUT', help='write the figures there, too')
    args.add_argument('--plot', metavar='OUT.png', help='draw them')
    args.add_argument(
        '--compare', metavar='NAME,NAME,...',
        help="instead: the whole network with each of these blocks; 'a+b' for both at once",
    )  # fmt: skip
    config_options(args, launcher=False)
    given, args = args, args.parse_args(argv)
    if args.compare and (args.attention or args.plot or args.memory_limit):
        given.error('--compare: leave --attention, --plot and --memory-limit out')

    def task() -> None:
        from mmattn.analysis.cost import report_comparison, report_cost

        common = dict(
            size=args.size and tuple(args.size),
            batch=args.batch,
            device=args.device,
            latency=not args.no_latency,
            options=args.cfg_options,
            json_path=args.json,
        )
        if args.compare:
            report_comparison(args.config, args.compare.split(','), **common)
            return
        report_cost(
            args.config,
            attention=args.attention,
            memory_limit=args.memory_limit,
            plot_path=args.plot,
            **common,
        )

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
