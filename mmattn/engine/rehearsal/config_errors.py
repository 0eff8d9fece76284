"""Turning an exception in a run into a config error: which part, which value, what to do."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import DataLoader

from mmattn.engine.out_of_memory import is_out_of_memory
from mmattn.errors import Exit, MmattnError, UsageError, explain

from .error_location import channels_remedy, key_of, module_of, sample_remedy

PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmattn')


@contextlib.contextmanager
def as_config_error(runner, part: str) -> Iterator[None]:
    """Re-raise an exception in the block as a config error, unless it has another known cause.

    Args:
        runner: runner with the config.
        part: part of the run, for the message, such as 'the first training step'.

    Raises:
        UsageError: names the config, the part, the error with its place, and what to do if known.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MmattnError) or is_out_of_memory(error):
            raise
        known = explain(error)
        if known and known[0] != Exit.BUG:
            raise
        reason = _reason(error, runner)
        remedy = _config_remedy(error, runner, part) or _part_remedy(error, reason, part, runner)
        raise UsageError(
            f'config {runner.cfg.filename} fails in {part}: {reason}{remedy}'
        ) from error


def last_batch_size(loader: DataLoader) -> int:
    """Images in the last batch of an epoch if it is smaller than the others; else 0."""
    sampler, size = loader.sampler, loader.batch_size
    if size is None or loader.drop_last or getattr(sampler, 'endless', False):
        return 0
    try:
        return len(sampler) % size
    except TypeError:  # an endless sampler
        return 0


def _reason(error: Exception, runner) -> str:
    """Type, message and location of an error."""
    frames = traceback.extract_tb(error.__traceback__)
    text = ' '.join(str(error).split()).rstrip('.') or frames[-1].line or 'no message'
    frame = next((f for f in reversed(frames) if _package_path(f.filename)), None)
    places = [f'{_package_path(frame.filename)}:{frame.lineno}'] if frame else []
    name = module_of(error, runner.model)
    if name:
        key, _ = key_of(name, runner.cfg.model)
        inner = name.removeprefix(key.removeprefix('model.')).strip('.')
        places.append(key if not inner else name if key == 'model' else f'{key}: {inner}')
    location = f' ({", ".join(places)})' if places else ''
    return f'{type(error).__name__}: {text}{location}.'


def _part_remedy(error: Exception, reason: str, part: str, runner) -> str:
    """What to change in the config of a network's part or of a pipeline; '' if not known."""
    words = part.split()
    mode = next((m for m in ('val', 'test') if any(w.startswith(m) for w in words)), 'train')
    return channels_remedy(error, runner.model, runner.cfg.model) or sample_remedy(
        reason, f'{mode}_dataloader', runner.cfg
    )


def _package_path(file: str) -> str:
    """The path of a file from the name of its package on; '' if it is in none of `PACKAGES`."""
    parts = Path(file).parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in PACKAGES:
            return '/'.join(parts[index:])
    return ''


def _config_remedy(error: Exception, runner, part: str) -> str:
    """What to change in the config, for errors with a known cause; else ''."""
    text = str(error)
    if 'Expected more than 1 value per channel' in text:
        if 'train' not in part:  # a validation runs on single images, whatever the batch size
            return ''
        return _batch_norm_remedy(getattr(runner, 'original', None) or runner)
    for key, cfg in _dicts(runner.cfg.model, 'model'):
        loss, weights = cfg.get('loss_decode'), cfg.get('class_weight')
        one_channel = cfg.get('out_channels') == 1 and isinstance(loss, dict)
        if 'out of bounds' in text and one_channel and not loss.get('use_sigmoid'):
            return (
                f' {key}.out_channels=1 is for a loss of one map: set '
                f'{key}.loss_decode.use_sigmoid=True.'
            )
        if isinstance(weights, list | tuple):
            if cfg.get('avg_non_ignore') and 'too many indices' in text:
                return f' {key}.class_weight works with {key}.avg_non_ignore=False.'
            return f' Look at {key}.class_weight, which has {len(weights)} values.'
    return ''


def _batch_norm_remedy(runner) -> str:
    loader = runner.train_dataloader
    if loader.batch_size and loader.batch_size > 1 and last_batch_size(loader) == 1:
        return (
            f' {len(loader.sampler)} images in batches of {loader.batch_size} leave a last batch '
            'of one, and a norm over pooled values needs two: set train_dataloader.drop_last=True.'
        )
    return ' A norm over pooled values needs two images: set train_dataloader.batch_size=2.'


def _dicts(value, key: str) -> Iterator[tuple[str, dict]]:
    """Every dict in a nested value, with its dotted key."""
    if isinstance(value, dict):
        yield key, value
        for name, item in value.items():
            yield from _dicts(item, f'{key}.{name}')
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _dicts(item, f'{key}[{index}]')
