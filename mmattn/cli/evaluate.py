"""Score saved results without a model.

coco        detections in COCO's results format: its twelve numbers, and the AP of every category;
            results of infer.py, next to its images.json, are matched by file name
cityscapes  label maps as PNG: IoU and iIoU of every class and category, and their means
labels      label maps as PNG with class indices, of any classes: IoU of each, and the mean

Example: python tools/evaluate.py coco --annotations instances_val2017.json --results boxes.json
         python tools/evaluate.py cityscapes --annotations gtFine/val --predictions maps
         python tools/evaluate.py labels --annotations mask/val --predictions maps --classes a,b
"""

import argparse

from .common import make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    subparsers = parser.add_subparsers(
        dest='kind', required=True, metavar='KIND', help='format of the results'
    )
    coco = subparsers.add_parser('coco', help="detections in COCO's format")
    cityscapes = subparsers.add_parser(
        'cityscapes', help='label maps with the label ids of Cityscapes'
    )
    labels = subparsers.add_parser('labels', help='label maps with class indices')
    for subparser in coco, cityscapes, labels:
        subparser.add_argument(
            '-v', '--verbose', action='store_true', default=argparse.SUPPRESS,
            help='show the traceback of an error',
        )  # fmt: skip
        subparser.add_argument(
            '--json', metavar='OUT', help='also write the scores in full precision to this file'
        )
    coco.add_argument('--annotations', required=True, metavar='JSON', help='COCO instances file')
    coco.add_argument('--results', required=True, metavar='JSON', help='COCO results file')
    coco.add_argument(
        '--iou-type', choices=['bbox', 'segm'], default='bbox',
        help='compare boxes or masks; default: %(default)s',
    )  # fmt: skip
    coco.add_argument(
        '--backend', choices=['auto', 'pycocotools', 'faster_coco_eval'], default='auto',
        help='scoring package; auto: faster_coco_eval where it is installed, else pycocotools',
    )  # fmt: skip
    cityscapes.add_argument(
        '--annotations', required=True, metavar='DIR',
        help='folder with *_gtFine_labelIds.png, and *_gtFine_instanceIds.png for iIoU: gtFine/val',
    )  # fmt: skip
    cityscapes.add_argument(
        '--predictions', required=True, metavar='DIR',
        help='folder with one PNG of label ids per image, as test.py --out writes it',
    )  # fmt: skip
    labels.add_argument(
        '--annotations', required=True, metavar='DIR',
        help='folder with label maps: PNG, class indices from 0',
    )  # fmt: skip
    labels.add_argument(
        '--predictions', required=True, metavar='DIR',
        help='folder with one PNG of the same name per label map, as test.py --out writes it',
    )  # fmt: skip
    labels.add_argument(
        '--classes', required=True, metavar='NAME,NAME', help='class names, in the order of indices'
    )
    labels.add_argument(
        '--ignore', type=int, default=255, metavar='N',
        help='label that is not scored; default: %(default)s',
    )  # fmt: skip
    args = parser.parse_args(argv)

    def score_coco() -> None:
        from mmattn.evaluation.coco import report_coco

        report_coco(
            args.annotations,
            args.results,
            iou_type=args.iou_type,
            backend=args.backend,
            json_path=args.json,
        )

    def score_cityscapes() -> None:
        from mmattn.evaluation.cityscapes import report_cityscapes

        report_cityscapes(args.annotations, args.predictions, json_path=args.json)

    def score_labels() -> None:
        from mmattn.evaluation.label_maps import report_label_maps

        classes = [name.strip() for name in args.classes.split(',')]
        report_label_maps(
            args.annotations, args.predictions, classes, ignore=args.ignore, json_path=args.json
        )

    tasks = dict(coco=score_coco, cityscapes=score_cityscapes, labels=score_labels)
    return run(tasks[args.kind], args)
