"""Import a data set of your own into data/NAME, with a config of its loaders, configs/NAME.py.

Formats: COCO JSON, YOLO, Pascal VOC, LabelMe, CVAT, Label Studio, VIA, Supervisely, what Roboflow
exports in these, a folder of masks, and binary masks of single objects. The source is never
written to; everything that is wrong with it is listed, and in data/NAME/import_report.txt.

Examples:
  python tools/import_data.py cells --from BCCD
  python tools/import_data.py roads --from DIR --classes classes.txt --split 80/10/10
  python tools/train.py configs/faster_rcnn_r50_coco.py --data cells
"""

from .common import add_image_options, make_parser, run

FORMATS = (
    'coco', 'yolo', 'voc', 'labelme', 'cvat', 'label_studio', 'via', 'supervisely', 'masks',
    'instance_masks',
)  # fmt: skip
TASKS = ('detection', 'instances', 'segmentation')


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('name', help='name of the set: letters, digits and underscores')
    parser.add_argument(
        '--from', dest='paths', nargs='+', required=True, metavar='PATH',
        help='folder of the data set, or annotation files',
    )  # fmt: skip
    parser.add_argument(
        '--format', choices=FORMATS, help='format of the annotations (default: guessed)'
    )
    parser.add_argument(
        '--task', choices=TASKS, help='what is trained (default: what the annotations are made for)'
    )
    parser.add_argument(
        '--split', metavar='TRAIN/VAL/TEST',
        help='per cent of the images, drawn at random (default: the splits of the source, or '
        '80/10/10 where it has none)',
    )  # fmt: skip
    parser.add_argument(
        '--seed', type=int, default=0, help='seed for drawing the splits; default: %(default)s'
    )
    parser.add_argument(
        '--classes', metavar='NAMES',
        help='class names with commas, or a file with a line for each, "NAME" or "RED GREEN BLUE '
        'NAME", which masks of colours need',
    )  # fmt: skip
    parser.add_argument(
        '--ignore-labels', type=int, nargs='+', default=(), metavar='VALUE',
        help='values of masks that are no class, in addition to 255',
    )  # fmt: skip
    parser.add_argument(
        '--images', metavar='DIR', help='folder of the images, if it is not below --from'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace a set that was imported under this name'
    )
    add_image_options(parser)
    args = parser.parse_args(argv)

    def task() -> None:
        from mmattn.datasets.importing.importer import ImportOptions, import_data

        config = import_data(
            args.name,
            args.paths,
            ImportOptions(
                format=args.format,
                task=args.task,
                split=args.split,
                seed=args.seed,
                classes=args.classes,
                ignore_labels=tuple(args.ignore_labels),
                images=args.images,
                overwrite=args.overwrite,
            ),
        )
        print(f'done: data/{args.name} and {config}; train on it: mmattn train CONFIG --data '
              f'{args.name}')  # fmt: skip

    return run(task, args)
