"""Score saved results without a model.

coco    detections in COCO's results format: its twelve numbers, and the AP of every category

Example: python tools/evaluate.py coco --annotations instances_val2017.json --results boxes.json
"""

import argparse
import sys

from mmattn.cli import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    kinds = args.add_subparsers(dest='kind', required=True, metavar='KIND')
    coco = kinds.add_parser('coco', help="detections in COCO's format")
    coco.add_argument(
        '-v', '--verbose', action='store_true', default=argparse.SUPPRESS,
        help='show the traceback of an error',
    )  # fmt: skip
    coco.add_argument('--annotations', required=True, metavar='JSON', help='COCO instances file')
    coco.add_argument('--results', required=True, metavar='JSON', help='COCO results file')
    coco.add_argument(
        '--iou-type', choices=['bbox', 'segm'], default='bbox',
        help='compare boxes or masks; default: %(default)s',
    )  # fmt: skip
    coco.add_argument(
        '--backend', choices=['auto', 'pycocotools', 'faster_coco_eval'], default='auto',
        help='auto: faster_coco_eval where it is installed, else pycocotools',
    )  # fmt: skip
    coco.add_argument('--json', metavar='OUT', help='write all digits there, too')
    args = args.parse_args(argv)

    def task() -> None:
        from mmattn.evaluation.coco import report

        report(
            args.annotations,
            args.results,
            iou_type=args.iou_type,
            backend=args.backend,
            json_path=args.json,
        )

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
