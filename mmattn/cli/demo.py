"""The main job on embedded data: generate, train, evaluate, publish, and show what came out."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from mmattn.datasets.street import SPLITS, generate
from mmattn.engine.hardware import hardware
from mmattn.engine.test import test
from mmattn.engine.train import train
from mmattn.visualization.comparison import save_picture
from mmattn.zoo.publish import publish

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
_HOME = Path('data/street')  # where the configs look for the scenes
IMAGES = (400, 40, 60)  # scenes for train, val, test
_SHOWN = 3  # scenes in the overview picture


def demo(
    out_dir: str | Path = 'work_dirs/demo',
    data: str | Path = _HOME,
    images: tuple[int, int, int] = IMAGES,
    options: dict | None = None,
) -> dict[str, float]:
    """Train and compare CCNet and its plain baseline on `street`.

    Args:
        out_dir: logs, checkpoints, published weights and pictures go here.
        data: the `street` set; made if it is not there.
        images: how many scenes for train, val and test, if they are to be made.
        options: changes to both configs, dotted keys.

    Returns:
        mIoU in percent on the test scenes of 'ccnet', 'fcn' and 'untrained'.

    Raises:
        MmattnError: of the kind that fits.
    """
    out_dir, data, console = Path(out_dir), Path(data), Console()
    start = time.monotonic()
    if not (data / 'street.json').exists():
        generate(data, images=dict(zip(SPLITS, images)))
    options = dict(options or {})
    if data != _HOME:
        for loader in 'train_dataloader', 'val_dataloader', 'test_dataloader':
            options[f'{loader}.dataset.data_root'] = str(data)
    configs = {name: CONFIGS / f'{name}_r18_street.py' for name in ('ccnet', 'fcn')}
    scores, seconds = {}, {}
    for name, config in configs.items():
        console.rule(f'training {config.stem}')
        began = time.monotonic()
        train(config, work_dir=out_dir / config.stem, cfg_options=options)
        seconds[name] = time.monotonic() - began
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
    files = publish(configs['ccnet'], best, out_dir / 'published')
    pictures = sorted((out_dir / 'pictures').glob('*.png'))
    overview = out_dir / 'overview.jpg'
    _stack(pictures[:_SHOWN], overview)

    minutes = (time.monotonic() - start) / 60
    table = Table(
        title=f'street, {len(pictures)} test scenes; {hardware()}; {minutes:.1f} min in all'
    )
    for column in 'network', 'mIoU (%)', 'training (s)':
        table.add_column(column, justify='left' if column == 'network' else 'right')
    table.add_row(
        'CCNet, ResNet-18 (ccnet_r18_street)', f'{scores["ccnet"]:.2f}', f'{seconds["ccnet"]:.0f}'
    )
    table.add_row(
        'FCN, ResNet-18 (fcn_r18_street)', f'{scores["fcn"]:.2f}', f'{seconds["fcn"]:.0f}'
    )
    table.add_row('CCNet before training', f'{scores["untrained"]:.2f}', '')
    console.print(table)
    lies = Table(show_header=False, box=None)
    lies.add_column(no_wrap=True)
    lies.add_column(overflow='fold')  # a path that is cut is of no use
    lies.add_row('scenes', str(data))
    lies.add_row(
        'logs, curves, checkpoints', ', '.join(f'{out_dir / c.stem}' for c in configs.values())
    )
    lies.add_row('published weights and card', '\n'.join(str(p) for p in files.values()))
    lies.add_row('image, truth, prediction', f'{overview} and {out_dir / "pictures"}')
    console.print(lies)
    record = dict(mIoU=scores, seconds=seconds, minutes=minutes, hardware=hardware())
    (out_dir / 'demo.json').write_text(json.dumps(record, indent=2) + '\n')
    return scores


def _stack(pictures: list[Path], out: Path) -> None:
    rows = [cv2.imread(str(p)) for p in pictures]
    if rows:
        save_picture(out, np.vstack(_equal_width(rows)))


def _equal_width(rows: list[np.ndarray]) -> list[np.ndarray]:
    width = max(r.shape[1] for r in rows)
    white = dict(borderType=cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return [cv2.copyMakeBorder(r, 0, 8, 0, width - r.shape[1], **white) for r in rows]
