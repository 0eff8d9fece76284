"""Testing a checkpoint on the test data of a config."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmattn.checkpoint.plain_values import to_plain
from mmattn.checkpoint.read import Checkpoint, open_checkpoint
from mmattn.config.leaves import dataset_leaves
from mmattn.config.load import change_config, load_config_file, parse_options
from mmattn.config.published_weights import resolve
from mmattn.config.runner_keys import check_backends
from mmattn.datasets.class_names import check_checkpoint_classes
from mmattn.datasets.validation import check_loaders
from mmattn.errors import UsageError
from mmattn.evaluation.report import prepare_report, write_report
from mmattn.files import check_empty, check_writable
from mmattn.models.det_tta import det_tta_model, det_tta_pipeline
from mmattn.models.seg_tta import tta_pipeline
from mmattn.visualization.window import check_window

from .build import build_runner, distributed_run, join_processes, run_loop
from .commands import network_flags, option_flags, relative_path
from .distributed import is_main
from .evaluators import (
    folder_of,
    output_folders,
    prepare_evaluation,
    use_own_label_maps,
    write_predictions,
)
from .execution import amp_dtype, use_flags
from .hardware import hardware
from .network import drop_pretrained, report_data_set
from .options import complete
from .run_config import class_counts, prepare_config, recorded_attention, recorded_data_set
from .runner import Runner
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
        show: show these pictures in a window.
        wait_time: seconds that a picture of `show` stays; 0 until a key is pressed.
        report: new or empty folder for an HTML page with the metrics, tables of classes, curves,
            confusion matrix and the worst images, and for its numbers as `report.json`.
        attention: names of blocks to add; by default those that the checkpoint was trained with.
        data: name of a data set, see `add_data_set`; by default the one that the checkpoint was
            trained on with it.
        cfg_options: changes to the config; a dict of dotted keys, or `key=value` strings.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        tta: test-time augmentation by the config's `tta_pipeline` and `tta_model`. Without them a
            segmentor is averaged over scales and flips by `mmattn.SegTTAModel`, see
            `mmattn.models.seg_tta`; boxes of a detector over the image and its mirror are merged by
            `DetTTAModel` of mmdet, see `mmattn.models.det_tta`.
        amp: run the network in mixed precision: 'float16' (GPU only) or 'bfloat16'; True for
            float16.
        channels_last: store kernels and images in channels_last.
        compile: compile backbone, neck and heads by `torch.compile`.
        fuse_conv_bn: fold batch norms into the convolutions before them.
        skip_data_check: do not check the data files first.
        rehearsal: try one image with its metrics and pictures first, see `rehearse`.
    """

    __test__ = False  # no test case of pytest

    work_dir: str | Path | None = None
    out: str | Path | None = None
    show_dir: str | Path | None = None
    report: str | Path | None = None
    show: bool = False
    wait_time: float = 2.0
    attention: str | None = None
    data: str | None = None
    cfg_options: dict | list[str] | None = None
    launcher: str = 'none'
    tta: bool = False
    amp: bool | str = False
    channels_last: bool = False
    compile: bool = False
    fuse_conv_bn: bool = False
    skip_data_check: bool = False
    rehearsal: bool = True


def test(
    config: str | Path,
    checkpoint: str | Path | Checkpoint | None,
    options: TestOptions | None = None,
    **fields,
) -> dict[str, float]:
    """Evaluate a checkpoint on the test data of a config.

    Args:
        config: path of the config file, or the name of a model of the index.
        checkpoint: a `.pth` or `.safetensors` file, an open checkpoint, or anything else that
            `mmattn.load_model` takes; None evaluates the network with its initial weights.
        options: see `TestOptions`.
        fields: single fields of `TestOptions`, such as `tta=True`; they replace those of `options`.

    Returns:
        the metrics, in percent; nan for a class that is absent, null in the JSON.

    Raises:
        MmattnError: of the fitting kind.
        TypeError: an unknown field; names the nearest.
    """
    options = complete(options or TestOptions(), fields)
    if options.show:
        _check_show(options)
    if checkpoint is not None:
        config, checkpoint = resolve(config, checkpoint, options.attention)
    with (
        handle_signals(training=False) as signal_handler,
        distributed_run(config, options, 'test', training=False) as processes,
    ):
        if processes:
            signal_handler.check_peers = processes.raise_peer_failure
        if checkpoint is not None:
            checkpoint = open_checkpoint(checkpoint, training_state=False)
        cfg = load_config_file(config)
        cfg_options = parse_options(options.cfg_options)
        attention = recorded_attention(options.attention, checkpoint)
        data = recorded_data_set(options.data, checkpoint)
        change_config(cfg, cfg_options, attention, data)
        join_processes(processes, cfg, options, 'test')
        runner = _build(cfg, checkpoint, cfg_options, options)
        metrics = to_plain(run_loop(runner.test), 'metrics')  # numbers of NumPy become Python's
        if is_main():
            record = _record(checkpoint, config, options)
            if checkpoint:
                _write_record(runner, checkpoint, metrics, record, options)
            if options.report:
                loop = runner.test_loop
                parts = loop.dataloader.dataset, loop.evaluator
                page = write_report(*parts, metrics, record, options.report)
                runner.logger.info(f'report: {page}')
        return metrics


def _check_show(options: TestOptions) -> None:
    if options.launcher != 'none':
        raise UsageError(
            f'--show needs one process: leave --launcher {options.launcher} out, or write the '
            'pictures with --show-dir DIR.'
        )
    check_window(options.wait_time, 'Write the pictures with --show-dir DIR.')


def _build(
    cfg: Config, checkpoint: Checkpoint | None, cfg_options: dict, options: TestOptions
) -> Runner:
    """The runner of a test, once config, data and checkpoint are checked."""
    out, show_dir = options.out, options.show_dir
    prepare_config(cfg, cfg_options, options.launcher, options.work_dir)
    if options.amp:
        amp_dtype(options.amp, get_device())
    use_flags(cfg, channels_last=options.channels_last, compile=options.compile)
    check_backends(cfg)
    work_dir = Path(cfg.work_dir)
    cfg.work_dir = str(work_dir / 'test')
    cfg.resume, cfg.load_from = False, str(checkpoint.path) if checkpoint else None
    if checkpoint:
        drop_pretrained(cfg.model)
        heads = dict(class_counts(cfg.model, 'model'))
        check_checkpoint_classes(cfg, heads, checkpoint.meta, checkpoint.path)
    if options.tta:
        _use_tta(cfg)
    if out:
        write_predictions(cfg, out)
    if options.report:
        use_own_label_maps(cfg)
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [h for h in hooks if h['type'] != 'mmattn.CurvesHook']
    if show_dir or options.show:
        folder = str(show_dir) if show_dir else None
        hook = dict(type='mmattn.ComparisonHook', out_dir=folder, show=options.show)
        cfg.custom_hooks.append(dict(hook, wait_time=options.wait_time))
    check_writable(work_dir)
    if show_dir:
        check_writable(Path(show_dir), '--show-dir')
    if out:
        check_writable(folder_of(out), '--out')
    if options.report and is_main():
        check_empty(Path(options.report), '--report')
    for key, folder in output_folders(cfg, 'test'):
        check_writable(folder, key)
    if is_main():
        check_loaders(cfg, 'test', skip=options.skip_data_check)
    runner = build_runner(cfg, 'test_loop')
    prepare_evaluation(runner, 'test')
    if options.report:
        loop = runner.test_loop
        prepare_report(loop.dataloader.dataset, loop.evaluator, options.report)
    runner.checkpoint, runner.rehearsal = checkpoint, options.rehearsal
    report_data_set(cfg)
    runner.amp, runner.fuse_conv_bn = options.amp, options.fuse_conv_bn
    if not checkpoint:
        runner._init_model_weights()
    return runner


def _record(
    checkpoint: Checkpoint | None, config: str | Path, options: TestOptions
) -> dict[str, str]:
    """Config, checkpoint, command, machine and date of a test."""
    record = dict(config=Path(config).name)
    if checkpoint:
        path = checkpoint.path
        record |= dict(
            checkpoint=path.name,
            sha256=checkpoint.sha256,
            command=f'python tools/test.py {relative_path(config)} {relative_path(path)}'
            + (f' --attention {options.attention}' if options.attention else '')
            + (f' --data {options.data}' if options.data else '')
            + (' --tta' if options.tta else '')
            + network_flags(options)
            + option_flags(parse_options(options.cfg_options)),
        )
    return record | dict(
        hardware=hardware(), torch=torch.__version__, date=time.strftime('%Y-%m-%d')
    )


def _write_record(
    runner: Runner,
    checkpoint: Checkpoint,
    metrics: dict[str, float],
    record: dict[str, str],
    options: TestOptions,
) -> None:
    """Write `metrics/<checkpoint>.json` into the work dir: metrics, and how they were measured."""
    values = {k: None if v != v else v for k, v in metrics.items()}  # JSON has no nan
    suffix = '_tta' if options.tta else ''
    file = Path(runner.work_dir).parent / 'metrics' / f'{checkpoint.path.stem}{suffix}.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(metrics=values) | record, indent=2) + '\n')


def _use_tta(cfg: Config) -> None:
    """Configure test-time augmentation: views of each image, and a network that merges them."""
    segments = 'decode_head' in cfg.model
    make_pipeline = tta_pipeline if segments else det_tta_pipeline
    network = cfg.get('tta_model')
    try:
        if not network:
            network = dict(type='mmattn.SegTTAModel') if segments else det_tta_model(cfg.model)
        for leaf in dataset_leaves(cfg.test_dataloader['dataset']):
            leaf['pipeline'] = cfg.get('tta_pipeline') or make_pipeline(leaf['pipeline'])
    except ValueError as error:
        raise UsageError(f'--tta: {error}.') from error
    cfg.model = dict(network, module=cfg.model)
