"""Out of memory: recognising it, and an error that says what to change."""

from pathlib import Path

from mmattn.checkpoint.find import last_good
from mmattn.errors import MemoryShortage
from mmattn.torch_compat import OutOfMemoryError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that host or device memory ran out."""
    return isinstance(error, MemoryError | OutOfMemoryError) or "can't allocate memory" in str(
        error
    )


def out_of_memory_error(runner, error: BaseException) -> MemoryShortage:
    """The error for the user: size of the batch, last checkpoint, and what to change.

    Args:
        runner: the runner of the training.
        error: what was raised.
    """
    guard = runner.guard
    sizes, batch = [], guard.batch if isinstance(guard.batch, dict) else {}
    images = batch.get('inputs', [])
    if len(images):
        height, width = (max(int(image.shape[i]) for image in images) for i in (-2, -1))
        sizes += [f'batch {len(images)}', f'image {width}x{height}']
    objects = [s.gt_instances for s in batch.get('data_samples', []) if 'gt_instances' in s]
    if objects:
        sizes.append(f'{sum(map(len, objects))} objects')
    good = last_good(Path(runner.work_dir))
    reason = f' ({error})' if isinstance(error, MemoryError) and str(error) else ''
    return MemoryShortage(
        f'out of memory at iteration {runner.iter + 1}{reason}: {", ".join(sizes)}; last '
        f'checkpoint {good.stem if good else "none"}. Lower train_dataloader.batch_size or the '
        'size of the images, or set activation_checkpointing in the config.'
    )
