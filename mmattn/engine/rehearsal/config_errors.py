"""What an error in a part of a run means for the config: which part, which value, what to do."""

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
def part(runner, where: str) -> Iterator[None]:
    """What fails in a part of a run is an error of the config, unless it is known to be another.

    Args:
        runner: has the config.
        where: the part, for the message.

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
        remedy = _remedy(error, runner, where) or _remedy_of_parts(error, reason, where, runner)
        raise UsageError(
            f'config {runner.cfg.filename} fails in {where}: {reason}{remedy}'
        ) from error


def last_batch(loader: DataLoader) -> int:
    """Images in the last batch of an epoch, if that is cut short; else 0."""
    sampler, size = loader.sampler, loader.batch_size
    if size is None or loader.drop_last or getattr(sampler, 'endless', False):
        return 0
    try:
        return len(sampler) % size
    except TypeError:  # a sampler without an end
        return 0


def _reason(error: Exception, runner) -> str:
    """Kind, text and place of an error."""
    frames = traceback.extract_tb(error.__traceback__)
    text = ' '.join(str(error).split()).rstrip('.') or frames[-1].line or 'no message'
    place = next((f for f in reversed(frames) if _in_package(f.filename)), None)
    places = [f'{_in_package(place.filename)}:{place.lineno}'] if place else []
    name = module_of(error, runner.model)
    if name:
        key, _ = key_of(name, runner.cfg.model)
        inner = name.removeprefix(key.removeprefix('model.')).strip('.')
        places.append(key if not inner else name if key == 'model' else f'{key}: {inner}')
    at = f' ({", ".join(places)})' if places else ''
    return f'{type(error).__name__}: {text}{at}.'


def _remedy_of_parts(error: Exception, reason: str, where: str, runner) -> str:
    """What to do about a part of the network or of the samples."""
    words = where.split()
    mode = next((m for m in ('val', 'test') if any(w.startswith(m) for w in words)), 'train')
    return channels_remedy(error, runner.model, runner.cfg.model) or sample_remedy(
        reason, f'{mode}_dataloader', runner.cfg
    )


def _in_package(file: str) -> str:
    """The path of a file of one of the packages, from the package on."""
    parts = Path(file).parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in PACKAGES:
            return '/'.join(parts[index:])
    return ''


def _remedy(error: Exception, runner, where: str) -> str:
    """What to do, where that is known."""
    text = str(error)
    if 'Expected more than 1 value per channel' in text:
        # elsewhere one image is one image: what then fails is no norm over a batch
        return _remedy_of_norm(getattr(runner, 'real', None) or runner) if 'train' in where else ''
    for key, found in _dicts(runner.cfg.model, 'model'):
        loss, weights = found.get('loss_decode'), found.get('class_weight')
        single = found.get('out_channels') == 1 and isinstance(loss, dict)
        if 'out of bounds' in text and single and not loss.get('use_sigmoid'):
            return (
                f' {key}.out_channels=1 is for a loss of one map: set '
                f'{key}.loss_decode.use_sigmoid=True.'
            )
        if isinstance(weights, list | tuple):
            if found.get('avg_non_ignore') and 'too many indices' in text:
                return f' {key}.class_weight works with {key}.avg_non_ignore=False.'
            return f' Look at {key}.class_weight, which has {len(weights)} values.'
    return ''


def _remedy_of_norm(runner) -> str:
    loader = runner.train_dataloader
    if loader.batch_size and loader.batch_size > 1 and last_batch(loader) == 1:
        return (
            f' {len(loader.sampler)} images in batches of {loader.batch_size} leave a last batch '
            'of one, and a norm over pooled values needs two: set train_dataloader.drop_last=True.'
        )
    return ' A norm over pooled values needs two images: set train_dataloader.batch_size=2.'


def _dicts(value, where: str) -> Iterator[tuple[str, dict]]:
    """Every dict below a value, with its key."""
    if isinstance(value, dict):
        yield where, value
        for key, item in value.items():
            yield from _dicts(item, f'{where}.{key}')
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _dicts(item, f'{where}[{index}]')
