"""Score saved results without a model.

coco        detections in COCO's results format: its twelve numbers, and the AP of every category;
            those of infer.py, beside its images.json, are paired by file name
cityscapes  label maps as PNG: IoU and iIoU of every class and category, and their means
labels      label maps as PNG with class indices, of any classes: IoU of each, and the mean

Example: python tools/evaluate.py coco --annotations instances_val2017.json --results boxes.json
         python tools/evaluate.py cityscapes --annotations gtFine/val --predictions maps
         python tools/evaluate.py labels --annotations mask/val --predictions maps --classes a,b
"""

import argparse
import sys

from mmattn.cli.common import parser, run


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    kinds = args.add_subparsers(dest='kind', required=True, metavar='KIND')
    coco = kinds.add_parser('coco', help="detections in COCO's format")
    cityscapes = kinds.add_parser('cityscapes', help='label maps with the label ids of Cityscapes')
    labels = kinds.add_parser('labels', help='label maps with class indices')
    for kind in coco, cityscapes, labels:
        kind.add_argument(
            '-v', '--verbose', action='store_true', default=argparse.SUPPRESS,
            help='show the traceback of an error',
        )  # fmt: skip
        kind.add_argument('--json', metavar='OUT', help='write all digits there, too')
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
    cityscapes.add_argument(
        '--annotations', required=True, metavar='DIR',
        help='folder with *_gtFine_labelIds.png, and *_gtFine_instanceIds.png for iIoU: gtFine/val',
    )  # fmt: skip
    cityscapes.add_argument(
        '--predictions', required=True, metavar='DIR',
        help='folder with a PNG of label ids per image, as tools/test.py --out writes',
    )  # fmt: skip
    labels.add_argument(
        '--annotations', required=True, metavar='DIR', help='folder with label maps: PNG, from 0'
    )
    labels.add_argument(
        '--predictions', required=True, metavar='DIR',
        help='folder with a PNG of the same name for each, as tools/test.py --out writes',
    )  # fmt: skip
    labels.add_argument(
        '--classes', required=True, metavar='NAME,NAME', help='names of the classes, by index'
    )
    labels.add_argument(
        '--ignore', type=int, default=255, metavar='N',
        help='label that is not scored; default: %(default)s',
    )  # fmt: skip
    args = args.parse_args(argv)

    def score_coco() -> None:
        from mmattn.evaluation.coco import report

        report(
            args.annotations,
            args.results,
            iou_type=args.iou_type,
            backend=args.backend,
            json_path=args.json,
        )

    def score_cityscapes() -> None:
        from mmattn.evaluation.cityscapes import report

        report(args.annotations, args.predictions, json_path=args.json)

    def score_labels() -> None:
        from mmattn.evaluation.label_maps import report

        classes = [name.strip() for name in args.classes.split(',')]
        report(args.annotations, args.predictions, classes, ignore=args.ignore, json_path=args.json)

    kinds = dict(coco=score_coco, cityscapes=score_cityscapes, labels=score_labels)
    return run(kinds[args.kind], args)


if __name__ == '__main__':
    sys.exit(main())
