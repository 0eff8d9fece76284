"""Testing a checkpoint on the test data of a config."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config

from mmattn.checkpoint.plain_values import to_plain
from mmattn.checkpoint.read import read_checkpoint, sha256
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import parse_options
from mmattn.config.published_weights import resolve
from mmattn.datasets.class_names import check_checkpoint_classes
from mmattn.datasets.validation import check_loaders
from mmattn.errors import UsageError
from mmattn.files import check_writable
from mmattn.models.seg_tta import tta_pipeline

from .build import build_runner, connected, run_loop
from .commands import option_flags, relative_path
from .distributed import is_main
from .evaluators import folder_of, folders_written, prepare_evaluation, write_to
from .hardware import hardware
from .network import drop_pretrained
from .options import complete
from .run_config import class_counts, prepare_config
from .signals import handle_signals


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """Options of `test`, and flags of `tools/test.py`.

    Attributes:
        work_dir: folder for the log and `metrics/<checkpoint>.json` (with `tta`,
            `<checkpoint>_tta.json`), default `work_dirs/<config name>`.
        out: a `.pkl` file for all predictions, or a folder for label maps as PNG (see `IoUMetric`)
            or for `results.bbox.json` and `results.segm.json` in COCO's format.
        show_dir: folder for pictures of image, ground truth and prediction side by side.
        attention: names of blocks to add; by default those that the checkpoint was trained with.
        cfg_options: changes to the config; a dict of dotted keys, or `key=value` strings.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        tta: test-time augmentation: average a segmentor over the scales and flips of the config's
            `tta_pipeline`, or of `mmattn.models.seg_tta.tta_pipeline`, with its `tta_model`, or
            `mmattn.SegTTAModel`.
        skip_data_check: do not check the data files first.
        rehearsal: try one image with its metrics and pictures first, see `rehearse`.
    """

    __test__ = False  # no test case of pytest

    work_dir: str | Path | None = None
    out: str | Path | None = None
    show_dir: str | Path | None = None
    attention: str | None = None
    cfg_options: dict | list[str] | None = None
    launcher: str = 'none'
    tta: bool = False
    skip_data_check: bool = False
    rehearsal: bool = True


def test(
    config: str | Path,
    checkpoint: str | Path | None,
    options: TestOptions | None = None,
    **fields,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data of a config.

    Args:
        config: path of the config file, or the name of a model of the index.
        checkpoint: a `.pth` or `.safetensors` file, or anything else that `mmattn.load_model`
            takes; None evaluates the network with its initial weights.
        options: see `TestOptions`.
        fields: single fields of `TestOptions`, such as `tta=True`; they replace those of `options`.

    Returns:
        the metrics, in percent; nan for a class that is absent, null in the JSON.

    Raises:
        MmattnError: of the fitting kind.
        TypeError: an unknown field; names the nearest.
    """
    options = complete(options or TestOptions(), fields)
    if checkpoint is not None:
        config, checkpoint = resolve(config, checkpoint, options.attention)
    with (
        handle_signals(training=False) as listener,
        connected(
            options.launcher, config, options.cfg_options, options.attention, checkpoint,
            options.work_dir, training=False,
        ) as ranks,
    ):  # fmt: skip
        if ranks:
            listener.check_peers = ranks.raise_peer_failure
        return _test(config, checkpoint, options)


def _test(config: str | Path, checkpoint: Path | None, options: TestOptions) -> dict[str, float]:
    cfg_options, out, show_dir = parse_options(options.cfg_options), options.out, options.show_dir
    cfg = prepare_config(
        config, cfg_options, options.launcher, options.work_dir, options.attention, checkpoint
    )
    work_dir = Path(cfg.work_dir)
    cfg.work_dir = str(work_dir / 'test')
    cfg.resume, cfg.load_from = False, str(checkpoint) if checkpoint else None
    if checkpoint:
        drop_pretrained(cfg.model)
        heads = dict(class_counts(cfg.model, 'model'))
        meta = read_checkpoint(checkpoint).get('meta', {})
        check_checkpoint_classes(cfg, heads, meta, checkpoint)
    if options.tta:
        _use_tta(cfg)
    if out:
        write_to(cfg, out)
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [h for h in hooks if h['type'] != 'mmattn.CurvesHook']
    if show_dir:
        cfg.custom_hooks.append(dict(type='mmattn.ComparisonHook', out_dir=str(show_dir)))
    check_writable(work_dir)
    if show_dir:
        check_writable(Path(show_dir), '--show-dir')
    if out:
        check_writable(folder_of(out), '--out')
    for key, folder in folders_written(cfg, 'test'):
        check_writable(folder, key)
    if is_main():
        check_loaders(cfg, 'test', skip=options.skip_data_check)
    runner = build_runner(cfg, 'test_loop')
    prepare_evaluation(runner, 'test')
    runner.rehearsal = options.rehearsal
    if not checkpoint:
        runner._init_model_weights()
    metrics = to_plain(run_loop(runner.test), 'metrics')  # of any evaluator: numbers of NumPy, too
    if is_main() and checkpoint:
        record = dict(
            config=Path(config).name,
            checkpoint=Path(checkpoint).name,
            sha256=sha256(checkpoint),
            metrics={k: None if v != v else v for k, v in metrics.items()},  # JSON has no nan
            command=f'python tools/test.py {relative_path(config)} {relative_path(checkpoint)}'
            + (f' --attention {options.attention}' if options.attention else '')
            + (' --tta' if options.tta else '')
            + option_flags(cfg_options),
            hardware=hardware(),
            torch=torch.__version__,
            date=time.strftime('%Y-%m-%d'),
        )
        path = work_dir / 'metrics' / f'{Path(checkpoint).stem}{"_tta" if options.tta else ""}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + '\n')
    return metrics


def _use_tta(cfg: Config) -> None:
    """Wrap the network in one that averages, and have each test image read in several ways."""
    if 'decode_head' not in cfg.model:
        raise UsageError(f'--tta averages maps of classes: {cfg.filename} is no segmentor.')

    for leaf in dataset_leaves(cfg.test_dataloader['dataset']):
        try:
            leaf['pipeline'] = cfg.get('tta_pipeline') or tta_pipeline(leaf['pipeline'])
        except ValueError as error:
            raise UsageError(f'--tta: {error}.') from error
    cfg.model = dict(cfg.get('tta_model') or dict(type='mmattn.SegTTAModel'), module=cfg.model)
