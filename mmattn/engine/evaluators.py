"""Evaluators in a config: the annotations they score against, and the files they write."""

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner

from mmattn.config.leaves import dataset_leaves
from mmattn.config.registered import find_class
from mmattn.errors import UsageError
from mmattn.evaluation.output_names import check_outputs, png_names
from mmattn.evaluation.scored_images import score_tested_images

from .hooks.comparison import ComparisonHook

_PICKLES = ('.pkl', '.pickle')
_SUFFIXES = (
    '.json',
    '.png',
    '.jpg',
    '.txt',
    '.csv',
    '.npy',
    '.npz',
    '.yaml',
    '.yml',
    '.zip',
    '.tar',
)


def align_evaluator(cfg: Config, part: str) -> None:
    """Make COCO's metric score against the annotations that the data loader reads.

    Annotations in several files are joined once the data sets are built, see `mmattn.evaluation`.
    mmdet's own metric is replaced by `mmattn.CocoMetric`, which has the same arguments.

    Args:
        cfg: a config whose default scope is set; it is changed.
        part: 'val' or 'test'.

    Raises:
        UsageError: the evaluator names another file; shows both.
    """
    from mmdet.evaluation import CocoMetric

    loader, evaluator = cfg.get(f'{part}_dataloader'), cfg.get(f'{part}_evaluator')
    if not loader or not evaluator:
        return
    each = _is_kind(evaluator, 'MultiDatasetsEvaluator')
    parts = loader['dataset'].get('datasets') or [loader['dataset']]
    for index, metric, cls in _metrics(evaluator, cfg):
        if not issubclass(cls, CocoMetric):
            continue
        if cls is CocoMetric:
            metric['type'] = 'mmattn.CocoMetric'
        dataset = parts[min(index, len(parts) - 1)] if each else loader['dataset']
        leaves = [leaf for leaf in dataset_leaves(dataset) if leaf.get('ann_file')]
        files = {os.path.join(leaf.get('data_root') or '', leaf['ann_file']) for leaf in leaves}
        read_file, scored_file = next(iter(files), None), metric.get('ann_file')
        if len({os.path.realpath(file) for file in files}) != 1:
            continue
        if scored_file is None:
            metric['ann_file'] = read_file
        elif os.path.realpath(scored_file) != os.path.realpath(read_file):
            raise UsageError(
                f'{part}_dataloader and {part}_evaluator use different annotation files: '
                f'{read_file} and {scored_file}. Leave {part}_evaluator.ann_file out.'
            )


def write_predictions(cfg: Config, out: str | Path) -> None:
    """Make the test evaluator write all predictions to a `.pkl`, or its own files into a folder.

    Raises:
        UsageError: `out` is a file where a folder is needed, or the other way round; no metric of
            the config writes files.
    """
    out, evaluator = Path(out), cfg.test_evaluator
    if out.suffix in _PICKLES:
        if out.is_dir():
            raise UsageError(f'--out {out} is a folder. Name another file, or one inside it.')
        if _is_kind(evaluator, 'MultiDatasetsEvaluator'):
            raise UsageError(
                f'--out {out}: MultiDatasetsEvaluator gives each metric a data set of its own, and '
                f'none of them dumps predictions. Name a folder, such as {out.with_suffix("")}.'
            )
        dump = dict(type='DumpResults', out_file_path=str(out))
        if isinstance(evaluator, dict) and 'metrics' in evaluator:
            evaluator['metrics'] = [*_as_list(evaluator['metrics']), dump]
        else:
            cfg.test_evaluator = [*_as_list(evaluator), dump]
        return
    if not out.is_dir() and (out.exists() or out.suffix.lower() in _SUFFIXES):
        raise UsageError(
            f'--out {out}: results are written into a folder. Name one, such as '
            f'{out.with_suffix("")}_results, or a .pkl for all predictions.'
        )
    _write_into(cfg, out)


def use_own_label_maps(cfg: Config) -> None:
    """Replace mmseg's `IoUMetric` in the test evaluator by ours, which has the same arguments."""
    from mmseg.evaluation import IoUMetric

    for _, metric, cls in _metrics(cfg.test_evaluator, cfg):
        if cls is IoUMetric:
            metric['type'] = 'mmattn.IoUMetric'


def folder_of(out: str | Path) -> Path:
    """The folder that `--out` writes into."""
    return Path(out).parent if Path(out).suffix in _PICKLES else Path(out)


def output_folders(cfg: Config, part: str) -> Iterator[tuple[str, Path]]:
    """Config keys that make metrics of 'val' or 'test' write files, and the folders of these."""
    for _, metric, _ in _metrics(cfg.get(f'{part}_evaluator') or [], cfg):
        for key in 'outfile_prefix', 'output_dir', 'out_file_path':
            if metric.get(key):
                path = Path(metric[key])
                yield f'{part}_evaluator.{key}', path if key == 'output_dir' else path.parent


def prepare_evaluation(runner: Runner, part: str) -> None:
    """Compare the built data set and evaluator of a loop: see `score_what_is_tested`.

    Where the evaluator writes a file for each image, give each a name of its own, and see that none
    is written over a source.

    Raises:
        UsageError: they do not belong together; an output would replace a source.
    """
    loop = getattr(runner, f'{part}_loop')
    if not isinstance(getattr(loop, 'evaluator', None), Evaluator):
        return
    dataset = loop.dataloader.dataset
    chosen = '--out' if part == 'test' else f'{part}_evaluator'
    score_tested_images(dataset, loop.evaluator, part)
    for hook in runner.hooks if part == 'test' else ():
        if isinstance(hook, ComparisonHook):
            hook.prepare(dataset)
    for metric in loop.evaluator.metrics:
        folder = getattr(metric, 'output_dir', None)
        prefix = getattr(metric, 'outfile_prefix', None)
        if folder:
            metric.output_names = png_names(dataset)
            check_outputs(dataset, folder, metric.output_names.values(), chosen)
        elif prefix:
            folder, name = os.path.split(prefix)
            files = [Path(f'{name}.{kind}.json') for kind in ('bbox', 'segm')]
            check_outputs(dataset, folder, files, chosen)


def _write_into(cfg: Config, folder: Path) -> None:
    use_own_label_maps(cfg)  # ours keeps the names of folders
    prefixes, written = cfg.test_evaluator, 0
    each = _is_kind(prefixes, 'MultiDatasetsEvaluator')
    names = prefixes.get('dataset_prefixes', []) if each else []
    for index, metric, cls in _metrics(cfg.test_evaluator, cfg):
        if written and not each:
            return  # a second metric would write the same files
        if 'outfile_prefix' in _parameters(cls):
            name = names[index] if index < len(names) else 'results'
            metric['outfile_prefix'] = str(folder / name)
        elif 'output_dir' in _parameters(cls):
            metric['output_dir'] = str(folder)
        else:
            continue
        written += 1
    if not written:
        kinds = ', '.join(cls.__name__ for _, _, cls in _metrics(cfg.test_evaluator, cfg))
        raise UsageError(
            f'--out {folder}: {kinds or "the evaluator"} writes no files. Name a .pkl for all '
            f'predictions, such as {folder}.pkl.'
        )


def _metrics(evaluator, cfg: Config) -> Iterator[tuple[int, dict, type]]:
    """Index, config and class of the metrics of an evaluator in any of its forms."""
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator['metrics']
    for index, metric in enumerate(_as_list(evaluator)):
        if not isinstance(metric, dict):
            continue  # an object, not a config
        kind = metric.get('type')
        if isinstance(kind, str):
            kind = find_class(kind, cfg.get('default_scope') or 'mmengine')
        if inspect.isclass(kind):
            yield index, metric, kind


def _is_kind(evaluator, name: str) -> bool:
    kind = evaluator.get('type') if isinstance(evaluator, dict) else None
    return getattr(kind, '__name__', str(kind)).split('.')[-1] == name


def _as_list(value) -> list:
    return [*value] if isinstance(value, list | tuple) else [value]


def _parameters(cls: type) -> set[str]:
    """Names of the constructor arguments of a class and of its bases."""
    inits = (base.__init__ for base in cls.__mro__ if '__init__' in vars(base))
    return {name for init in inits if init is not object.__init__
            for name in inspect.signature(init).parameters}  # fmt: skip
