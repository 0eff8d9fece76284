"""The hook that computes the losses of the network on the validation data."""

import copy
from collections import Counter

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import all_gather, all_reduce, get_dist_info
from mmengine.hooks import Hook
from mmengine.runner import Runner, autocast
from torch import Tensor, nn

from mmattn.config.leaves import dataset_leaves
from mmattn.datasets.annotation_scale import loads_after_resize, pad_label_maps, to_image_scale
from mmattn.datasets.build import trains_masks
from mmattn.engine.model_wrappers import copy_model, unwrap_model
from mmattn.engine.resume.rng import derive_seed, seeded
from mmattn.errors import UsageError
from mmattn.evaluation.output_names import leaf_datasets
from mmattn.registry import HOOKS

_PREFIX = 'val/'  # of the metrics; without it they would have the names of the training losses
_EVALUATED = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.MultiheadAttention,
    nn.RReLU,
)
_EVALUATED_NAMES = ('BatchNorm', 'Drop')  # of mmcv and timm: SyncBatchNorm, DropPath, DropBlock


@HOOKS.register_module()
class ValidationLossHook(Hook):
    """Adds the losses on the validation data to the metrics of each validation.

    `val/loss` and its parts, such as `val/loss_cls`, are means over all images. They are computed
    for the batches of the validation, after its pipeline and without augmentation. Norms use their
    running statistics and nothing is dropped, but heads run as in training, because some of them
    have other outputs in eval mode. A segmentor that predicts by sliding windows gets the whole
    image. The training does not change: the losses are those of a copy of the network that shares
    its parameters, and random generators are seeded for each batch and restored.

    Raises:
        UsageError: before the training, if the validation loads no annotations, or the network
            cannot be copied.
    """

    priority = 'HIGHEST'  # other hooks read the metrics after a validation

    def __init__(self) -> None:
        self._network: LossNetwork | None = None
        self._scales_boxes = False
        self._sums: Counter[str] = Counter()
        self._images = self._batches_images = 0

    @property
    def metric_names(self) -> list[str]:
        """Names of the losses of this validation, or of the last one."""
        return [f'{_PREFIX}{name}' for name in self._sums]

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is None:
            return
        dataset = runner.val_dataloader.dataset
        self._scales_boxes = _scales_boxes(dataset)
        with seeded(0):
            sample = dataset[0]
        _check_annotations(sample, runner.cfg)
        LossNetwork(unwrap_model(runner.model))

    def before_val(self, runner: Runner) -> None:
        self._network, self._images, self._batches_images = None, 0, 0
        self._sums.clear()
        scalars = runner.message_hub.log_scalars
        # those of the last validation, which the log would average with these
        for name in [name for name in scalars if name.startswith(f'val/{_PREFIX}')]:
            del scalars[name]

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if self._network is None:  # now, as weight averages are in place
            self._network = LossNetwork(unwrap_model(runner.model))
        rank, _ = get_dist_info()
        seed = derive_seed(runner.seed, 'validation loss', rank, batch_idx)
        fp16 = getattr(runner.val_loop, 'fp16', False)
        with torch.no_grad(), autocast(enabled=fp16), seeded(seed, gpu=True):
            losses = self._network.losses(data_batch, self._scales_boxes)
        count = self._count_images(runner, len(data_batch['data_samples']))
        self._images += count
        for name, value in losses.items():
            self._sums[name] += count * float(value)

    def _count_images(self, runner: Runner, batch_size: int) -> int:
        """Images of a batch, without those that pad the ranks to equal numbers."""
        first, self._batches_images = self._batches_images, self._batches_images + batch_size
        loader = runner.val_dataloader
        if not isinstance(loader.sampler, DefaultSampler):
            return batch_size
        rank, world = get_dist_info()
        positions = range(rank + world * first, rank + world * (first + batch_size), world)
        return sum(position < len(loader.dataset) for position in positions)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._network = None
        images, sums = self._over_ranks()
        losses = {f'{_PREFIX}{name}': value / images for name, value in sums.items() if images}
        if metrics:
            metrics.update(losses)
            return
        # the best checkpoint is not chosen by a loss because the evaluator returned nothing
        for name, value in losses.items():
            runner.message_hub.update_scalar(f'val/{name}', value)

    def _over_ranks(self) -> tuple[int, dict[str, float]]:
        """Images and sums of losses of all ranks, which may have different losses."""
        text = torch.tensor(list('\n'.join(self._sums).encode()), dtype=torch.uint8)
        length = torch.tensor(len(text))
        all_reduce(length, 'max')
        text = nn.functional.pad(text, (0, int(length) - len(text)), value=ord('\n'))
        lines = '\n'.join(bytes(part.tolist()).decode() for part in all_gather(text)).split('\n')
        names = [name for name in dict.fromkeys(lines) if name]
        values = torch.tensor(
            [self._images, *(self._sums[name] for name in names)], dtype=torch.float64
        )
        all_reduce(values)
        return int(values[0]), dict(zip(names, values[1:].tolist()))


class LossNetwork:
    """A copy of a network that computes losses for validation; it shares the parameters.

    Args:
        network: network without wrappers.

    Raises:
        UsageError: the network cannot be copied.
    """

    def __init__(self, network: nn.Module) -> None:
        try:
            self.network = copy_model(network, shared=network.parameters())
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UsageError(
                f'the loss of the validation needs a copy of the network, and '
                f'{type(network).__name__} cannot be copied: {error}. Leave --val-loss out.'
            ) from error
        self._set_mode()
        if getattr(self.network.data_preprocessor, 'batch_augments', None) is not None:
            self.network.data_preprocessor.batch_augments = None
        self._buffers = [(buffer, buffer.clone()) for buffer in self.network.buffers()]

    def _set_mode(self) -> None:
        """Training mode for heads; norms and dropout evaluate."""
        self.network.train()
        for module in self.network.modules():
            named = any(name in type(module).__name__ for name in _EVALUATED_NAMES)
            if named or isinstance(module, _EVALUATED):
                module.training = False

    def losses(self, batch: dict, scales_boxes: bool) -> dict[str, Tensor]:
        """Loss, and its parts, of a batch of the validation data loader.

        Args:
            batch: inputs and data samples; unchanged.
            scales_boxes: whether boxes are at the original scale of the images.
        """
        images, samples = batch['inputs'], copy.deepcopy(batch['data_samples'])
        for sample, image in zip(samples, images):
            to_image_scale(sample, tuple(image.shape[-2:]), scales_boxes)
        preprocessor = self.network.data_preprocessor
        fill = getattr(preprocessor, 'seg_pad_val', None)  # mmseg's
        # mmseg pads to the training crop; mmdet pads masks
        data = preprocessor(dict(inputs=images, data_samples=samples), training=fill is None)
        if fill is not None:
            for sample in data['data_samples']:
                pad_label_maps(sample, tuple(data['inputs'].shape[-2:]), fill)
        losses = self.network._run_forward(data, mode='loss')
        for buffer, value in self._buffers:
            buffer.copy_(value)
        return self.network.parse_losses(losses)[1]


def _scales_boxes(dataset) -> bool:
    """Whether the data sets load boxes at the original scale of the images.

    Raises:
        UsageError: some do, others do not.
    """
    kinds = {loads_after_resize(leaf) for leaf in leaf_datasets(dataset)}
    if len(kinds) > 1:
        raise UsageError(
            'val_dataloader: some of its data sets load annotations before Resize, others after '
            'it. For a loss of the validation, write the steps of all pipelines in one order.'
        )
    return kinds.pop()


def _check_annotations(sample, cfg: dict) -> None:
    """Refuse a validation whose samples have no annotations that a loss needs."""
    data = sample.get('data_samples') if isinstance(sample, dict) else None
    if data is None:
        raise UsageError(
            'val_dataloader: its samples have no data_samples, which a loss of the validation '
            'needs. End its pipeline with PackDetInputs or PackSegInputs.'
        )
    missing = ''
    instances = data.get('gt_instances')
    if instances is None:
        missing = '' if data.get('gt_sem_seg') is not None else 'LoadAnnotations'
    elif 'bboxes' not in instances:
        missing = 'LoadAnnotations, with_bbox=True'
    elif 'masks' not in instances and _trains_masks(cfg):
        missing = 'LoadAnnotations, with_bbox=True, with_mask=True'
    if missing:
        kind, _, arguments = missing.partition(', ')
        step = f"dict(type='{kind}'{', ' if arguments else ''}{arguments})"
        raise UsageError(
            f'val_dataloader: its pipeline does not load the annotations that a loss of the '
            f'validation needs. Add {step} before the last step, or leave --val-loss out.'
        )


def _trains_masks(cfg: dict) -> bool:
    """Whether a training pipeline of the config loads masks."""
    return any(trains_masks(leaf) for leaf in dataset_leaves(cfg['train_dataloader']['dataset']))
