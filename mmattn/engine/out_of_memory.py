"""Out of memory: recognised, and explained with what to change."""

from pathlib import Path

import torch

from mmattn.checkpoint.find import last_good
from mmattn.errors import MemoryShortage


# ---- memory ------------------------------------------------------------------------------------
def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(
        error, MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)


def out_of_memory_error(runner, error: BaseException) -> MemoryShortage:
    """What a lack of memory means: how large the batch was, and what to change."""
    hook = runner.guard
    parts, batch = [], hook.batch if isinstance(hook.batch, dict) else {}
    images = batch.get('inputs', [])
    if len(images):
        height, width = (max(int(image.shape[i]) for image in images) for i in (-2, -1))
        parts += [f'batch {len(images)}', f'image {width}x{height}']
    objects = [s.gt_instances for s in batch.get('data_samples', []) if 'gt_instances' in s]
    if objects:
        parts.append(f'{sum(map(len, objects))} objects')
    good = last_good(Path(runner.work_dir))
    about = f' ({error})' if isinstance(error, MemoryError) and str(error) else ''
    return MemoryShortage(
        f'out of memory at iteration {runner.iter + 1}{about}: {", ".join(parts)}; last checkpoint '
        f'{good.stem if good else "none"}. Lower train_dataloader.batch_size or the size of the '
        'images, or set activation_checkpointing in the config.'
    )
