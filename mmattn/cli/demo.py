"""Train, evaluate and publish CCNet and FCN on generated street scenes.

Generates the scenes, trains both networks, evaluates and publishes them, draws predictions, and
prints the scores and where everything was written.

Example: python tools/demo.py
"""

import json
import time
from pathlib import Path

from .common import make_parser, run

_DATA_ROOT = Path('data/street')  # in the configs
IMAGES = (400, 40, 60)  # scenes for train, val, test
_OVERVIEW_SCENES = 3


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument(
        '--out-dir', default='work_dirs/demo', help='folder for the results; default: %(default)s'
    )
    parser.add_argument(
        '--data', default='data/street', help='folder for the scenes; default: %(default)s'
    )
    args = parser.parse_args(argv)
    return run(lambda: demo(args.out_dir, args.data), args)


def demo(
    out_dir: str | Path = 'work_dirs/demo',
    data: str | Path = _DATA_ROOT,
    images: tuple[int, int, int] = IMAGES,
    options: dict | None = None,
) -> dict[str, float]:
    """Train and compare CCNet and its plain baseline on `street`.

    Args:
        out_dir: folder for logs, checkpoints, published weights and pictures.
        data: folder of the `street` set, which is generated if it does not exist.
        images: number of scenes to generate for train, val and test.
        options: overrides for both configs, with dotted keys.

    Returns:
        mIoU in percent on the test scenes of 'ccnet', 'fcn' and 'untrained'.

    Raises:
        MmattnError: a step failed; the exit code is that of the step.
    """
    from rich.console import Console

    from mmattn.config.index import find_model
    from mmattn.datasets.street import SPLITS, generate
    from mmattn.engine.hardware import hardware
    from mmattn.engine.test import test
    from mmattn.engine.train import train
    from mmattn.zoo.publish import publish

    out_dir, data, console = Path(out_dir), Path(data), Console()
    start = time.monotonic()
    if not (data / 'street.json').exists():
        generate(data, images=dict(zip(SPLITS, images)))
    options = dict(options or {})
    if data != _DATA_ROOT:
        for loader in 'train_dataloader', 'val_dataloader', 'test_dataloader':
            options[f'{loader}.dataset.data_root'] = str(data)
    configs = {name: find_model(f'{name}_r18_street').config for name in ('ccnet', 'fcn')}
    scores, seconds = {}, {}
    for name, config in configs.items():
        console.rule(f'training {config.stem}')
        train_start = time.monotonic()
        train(config, work_dir=out_dir / config.stem, cfg_options=options)
        seconds[name] = time.monotonic() - train_start
    console.rule('evaluating on the test scenes')
    for name, config in configs.items():
        work_dir = out_dir / config.stem
        metrics = test(
            config,
            work_dir / 'best.pth',
            work_dir=work_dir,
            show_dir=out_dir / 'pictures' if name == 'ccnet' else None,
            cfg_options=options,
        )
        scores[name] = metrics['mIoU']
    scores['untrained'] = test(
        configs['ccnet'], None, work_dir=out_dir / 'untrained', cfg_options=options
    )['mIoU']
    console.rule('publishing')
    best = out_dir / configs['ccnet'].stem / 'best.pth'
    published = publish(configs['ccnet'], best, out_dir / 'published')
    pictures = sorted((out_dir / 'pictures').glob('*.png'))
    overview = out_dir / 'overview.jpg'
    _stack(pictures[:_OVERVIEW_SCENES], overview)

    minutes = (time.monotonic() - start) / 60
    title = f'street, {len(pictures)} test scenes; {hardware()}; {minutes:.1f} min in all'
    console.print(_score_table(title, scores, seconds))
    paths = {
        'scenes': str(data),
        'logs, curves, checkpoints': ', '.join(f'{out_dir / c.stem}' for c in configs.values()),
        'published weights and card': '\n'.join(str(path) for path in published.values()),
        'image, truth, prediction': f'{overview} and {out_dir / "pictures"}',
    }
    console.print(_path_table(paths))
    record = dict(mIoU=scores, seconds=seconds, minutes=minutes, hardware=hardware())
    (out_dir / 'demo.json').write_text(json.dumps(record, indent=2) + '\n')
    return scores


def _score_table(title: str, scores: dict[str, float], seconds: dict[str, float]):
    """A rich table of mIoU and training time of each network."""
    from rich.table import Table

    table = Table(title=title)
    for column in 'network', 'mIoU (%)', 'training (s)':
        table.add_column(column, justify='left' if column == 'network' else 'right')
    table.add_row(
        'CCNet, ResNet-18 (ccnet_r18_street)', f'{scores["ccnet"]:.2f}', f'{seconds["ccnet"]:.0f}'
    )
    table.add_row(
        'FCN, ResNet-18 (fcn_r18_street)', f'{scores["fcn"]:.2f}', f'{seconds["fcn"]:.0f}'
    )
    table.add_row('CCNet before training', f'{scores["untrained"]:.2f}', '')
    return table


def _path_table(paths: dict[str, str]):
    """A rich table of what was written where."""
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow='fold')  # never cut a path off
    for content, path in paths.items():
        table.add_row(content, path)
    return table


def _stack(pictures: list[Path], out: Path) -> None:
    """Write pictures below each other into one file, padded to equal width."""
    import cv2
    import numpy as np

    from mmattn.visualization.comparison import save_picture

    rows = [cv2.imread(str(path)) for path in pictures]
    if not rows:
        return
    width = max(row.shape[1] for row in rows)
    white = dict(borderType=cv2.BORDER_CONSTANT, value=(255, 255, 255))
    padded = [cv2.copyMakeBorder(row, 0, 8, 0, width - row.shape[1], **white) for row in rows]
    save_picture(out, np.vstack(padded))
