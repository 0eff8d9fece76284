"""Count parameters, MACs, training memory and latency of a network, part by part.

Attention blocks are listed one by one. Tells before a run whether its training fits in memory.

Example: python tools/cost.py configs/mask_rcnn_r50_coco.py --attention gc --memory-limit 11
"""

from .common import CONFIG_HELP, add_config_options, make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('H', 'W'), help='image size; default: as in training'
    )
    parser.add_argument(
        '--batch', type=int, metavar='N', help='images per device; default: that of the config'
    )
    parser.add_argument(
        '--memory-limit', type=float, metavar='GB',
        help='memory that the training may use; default: what is free on the device',
    )  # fmt: skip
    parser.add_argument(
        '--device', default='cpu', help='cpu, cuda, cuda:1, ...; default: %(default)s'
    )
    parser.add_argument(
        '--no-latency', action='store_true', help='count only, without running the network'
    )
    parser.add_argument('--json', metavar='OUT', help='also write the results to this JSON file')
    parser.add_argument('--plot', metavar='OUT.png', help='plot the results')
    parser.add_argument(
        '--compare', metavar='NAME,NAME,...',
        help="instead compare the whole network with each of these blocks; 'a+b' for both at once",
    )  # fmt: skip
    add_config_options(parser, launcher=False)
    args = parser.parse_args(argv)
    if args.compare and (args.attention or args.plot or args.memory_limit):
        parser.error('--compare: leave --attention, --plot and --memory-limit out')

    def task() -> None:
        from mmattn.analysis.cost_report import report_comparison, report_cost

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
