"""Losses on the validation data: what they are, and that the training does not change."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import DefaultSampler
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from torch import nn

from mmattn.datasets.annotation_scale import to_image_scale
from mmattn.engine.hooks import ValidationLossHook
from mmattn.engine.hooks import validation_loss as module
from mmattn.engine.hooks.validation_loss import LossNetwork
from mmattn.engine.network import build_model
from mmattn.engine.train import train
from mmattn.errors import UsageError
from mmattn.visualization.curves import _plot_losses, read_scalars
from tests.conftest import randomise, tiny_options
from tests.engine.killing import DETECTOR
from tests.engine.test_end_to_end import FASTER
from tests.engine.test_rehearsal import CONFIG, end, same, small  # noqa: F401
from tests.test_detection_tools import SCALES

OFTEN = {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 1}


# ---- whole trainings -------------------------------------------------------------------------------
def test_the_losses_are_those_of_the_network_and_the_training_does_not_change(small, tmp_path):  # noqa: F811
    options = small | OFTEN | {'model.decode_head.dropout_ratio': 0.5}
    train(CONFIG, work_dir=tmp_path / 'a', cfg_options=options, seed=1)
    train(CONFIG, work_dir=tmp_path / 'b', cfg_options=options, seed=1, val_loss=True)
    a, b = (end(tmp_path / run) for run in 'ab')
    assert b['meta']['command'].split(' --cfg')[0].endswith(' --seed 1 --val-loss')
    for content in a, b:
        for key in 'time', 'experiment_name', 'cfg', 'command':
            del content['meta'][key]
        for key in 'cfg', 'experiment_name', 'time', 'data_time', 'best_ckpt', 'last_ckpt':
            content['message_hub']['runtime_info'].pop(key, None)
    assert same(a, b)
    scalars = [read_scalars(tmp_path / run) for run in 'ab']
    assert scalars[0]['loss'] == scalars[1]['loss'] and scalars[0]['mIoU'] == scalars[1]['mIoU']
    losses = {name: values for name, values in scalars[1].items() if name.startswith('val/')}
    assert not [name for name in scalars[0] if name.startswith('val/')]
    assert losses['val/loss'].keys() == {1, 2} and losses['val/decode.loss_ce'].keys() == {1, 2}
    assert list((tmp_path / 'b').glob('curves.png'))
    log = next((tmp_path / 'b').rglob('*.log')).read_text()
    assert len(re.findall(r'Iter\(val\).*mIoU: .* val/loss: \d', log)) == 2
    expected = mean_losses(tmp_path / 'b')
    for name, value in expected.items():
        assert losses[f'val/{name}'][2] == pytest.approx(value, rel=1e-5)


def mean_losses(folder) -> dict[str, float]:
    """Of the network in eval mode, image by image: heads of mmseg have one output in both modes."""
    from mmengine.registry import DATASETS

    model, cfg = build_model(folder / CONFIG.name, folder / 'iter_2.pth', device='cpu')
    dataset, sums = DATASETS.build(cfg.val_dataloader.dataset), {}
    for sample in map(dataset.__getitem__, range(len(dataset))):
        data = model.data_preprocessor(
            dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        )
        with torch.no_grad():
            _, losses = model.parse_losses(model(**data, mode='loss'))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + float(value) / len(dataset)
    return sums


def test_a_detector_with_masks_chooses_its_best_checkpoint_by_the_loss(street, tmp_path):
    options = tiny_options(street) | SCALES | FASTER | OFTEN
    options |= {
        'model.roi_head.mask_roi_extractor.out_channels': 16,
        'model.roi_head.mask_head.in_channels': 16,
        'model.roi_head.mask_head.conv_out_channels': 32,
        'model.neck.norm_cfg': None,
        'default_hooks.checkpoint.save_best': 'val/loss',
    }
    work = train(DETECTOR, work_dir=tmp_path, cfg_options=options, seed=1, val_loss=True)
    scalars = read_scalars(work)
    parts = {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'loss_bbox', 'loss_mask', 'acc', 'loss'}
    assert {name for name in scalars if name.startswith('val/')} == {f'val/{p}' for p in parts}
    total = sum(scalars[f'val/{p}'][2] for p in parts if p.startswith('loss_'))
    assert scalars['val/loss'][2] == pytest.approx(total, rel=1e-4)
    best = min(scalars['val/loss'], key=scalars['val/loss'].get)
    assert (work / 'best.pth').resolve().name == f'best_val_loss_iter_{best}.pth'


def test_a_validation_without_annotations_is_named_before_the_first_step(small, tmp_path):  # noqa: F811
    options = small | {
        'val_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'),
            dict(type='PackSegInputs'),
        ]
    }
    fields = dict(work_dir=tmp_path, cfg_options=options, val_loss=True, rehearsal=False)
    with pytest.raises(UsageError, match=r"val_dataloader: .* Add dict\(type='LoadAnnotations'\)"):
        train(CONFIG, **fields)
    with pytest.raises(UsageError, match='--val-loss: the training does not validate'):
        train(CONFIG, validate=False, **fields)
    assert not list(tmp_path.rglob('*.pth'))


# ---- the network -----------------------------------------------------------------------------------
class Counting(BaseModel):
    """Counts its losses in an attribute, and a head that has another output in eval mode."""

    def __init__(self):
        super().__init__(SegDataPreProcessor(size=(8, 8), test_cfg=dict(size_divisor=4)))
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.9)
        self.head = nn.Conv2d(3, 2, 1)
        self.register_buffer('mean', torch.zeros(1))
        self.calls = 0

    def forward(self, inputs, data_samples, mode):
        self.calls += 1
        self.mean += 1
        labels = torch.stack([s.gt_sem_seg.data for s in data_samples])[:, 0]
        out = self.head(self.drop(self.norm(inputs)))
        loss = nn.functional.cross_entropy(out, labels, ignore_index=255)
        return dict(loss_a=loss * (1 if self.training else 100), calls=self.mean.clone())


def seg_sample(height, width, scale):
    labels = torch.arange(height * width).reshape(1, height, width) % 2
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    sample.set_metainfo(dict(scale_factor=scale))
    return sample


def test_a_network_gives_its_losses_and_stays_as_it_is():
    network = randomise(Counting()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = [torch.rand(3, 6, 10) for _ in range(2)]
    samples = [seg_sample(6, 10, (1.0, 1.0)) for _ in images]
    batch = dict(inputs=images, data_samples=samples)
    copy = LossNetwork(network)
    with torch.no_grad():
        first, second = (copy.losses(batch, False) for _ in range(2))
    assert same(first, second)  # nothing of a batch is left for the next
    assert network.calls == 0 and same(before, dict(network.state_dict())) and network.training
    assert samples[0].gt_sem_seg.shape == (6, 10)
    shared = zip(network.parameters(), copy.network.parameters())
    assert all(a is b and a.requires_grad for a, b in shared)
    with torch.no_grad():
        padded = nn.functional.pad(torch.stack(images), (0, 2, 0, 2))
        out = network.head(network.norm.eval()(padded))[:, :, :6, :10]
        labels = torch.stack([s.gt_sem_seg.data for s in samples])[:, 0]
        expected = nn.functional.cross_entropy(out, labels)
    torch.testing.assert_close(first['loss'], expected)


def test_annotations_get_the_scale_of_the_image():
    image, original = (20, 40), (10, 20)
    masks = np.zeros((1, *original), np.uint8)
    masks[:, 2:4, 3:8] = 1
    sample = DetDataSample()
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes([[3.0, 2, 8, 4]]), masks=BitmapMasks(masks, *original)
    )
    sample.ignored_instances = InstanceData(bboxes=torch.tensor([[0.0, 0, 1, 5]]))
    sample.gt_sem_seg = PixelData(sem_seg=torch.arange(200).reshape(1, *original))
    sample.set_metainfo(dict(scale_factor=(2.0, 2.0)))
    to_image_scale(sample, image, boxes=True)
    assert sample.gt_instances.bboxes.tensor.tolist() == [[6, 4, 16, 8]]
    assert sample.ignored_instances.bboxes.tolist() == [[0, 0, 2, 10]]
    assert np.array_equal(sample.gt_instances.masks.masks[0], masks[0].repeat(2, 0).repeat(2, 1))
    labels = torch.arange(200).reshape(original).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(sample.gt_sem_seg.sem_seg[0], labels)
    to_image_scale(sample, image, boxes=False)  # loaded before the image was resized
    assert sample.gt_instances.bboxes.tensor.tolist() == [[6, 4, 16, 8]]


# ---- several ranks, and the log --------------------------------------------------------------------
def test_the_mean_is_over_the_images_of_all_ranks(monkeypatch):
    """Three images on two ranks, of which the second has the first image once more, and a loss less."""
    dataset, hooks, sums = range(3), [], []
    values = {0: 1.0, 1: 2.0, 2: 6.0}
    for rank in range(2):
        monkeypatch.setattr(module, 'get_dist_info', lambda rank=rank: (rank, 2))
        loader = SimpleNamespace(sampler=DefaultSampler(dataset, shuffle=False), dataset=dataset)
        runner = SimpleNamespace(
            val_dataloader=loader, val_loop=None, seed=0, model=nn.Identity(),
            message_hub=MessageHub('losses'),
        )  # fmt: skip
        hook = ValidationLossHook()
        hook.before_val(runner)
        for batch_idx, position in enumerate(range(rank, 4, 2)):
            losses = dict(loss=values[position % 3]) | ({} if rank else dict(acc=3.0))
            hook._network = SimpleNamespace(losses=lambda batch, _, losses=losses: losses)
            hook.before_val_iter(runner, batch_idx, dict(data_samples=[None]))
        hooks.append((hook, runner))
        sums.append(torch.tensor([hook._images, hook._sums['loss'], hook._sums['acc']]))
    assert [s.tolist() for s in sums] == [[2, 7, 6], [1, 2, 0]]

    def all_reduce(values, op='sum'):
        values.copy_(sum(sums) if op == 'sum' else torch.tensor(8))  # bytes of the longer names

    names = [torch.tensor(list(text)) for text in (b'loss\nacc', b'loss\n\n\n\n')]
    monkeypatch.setattr(module, 'all_reduce', all_reduce)
    monkeypatch.setattr(module, 'all_gather', lambda own: names)
    for hook, runner in hooks:
        metrics = dict(mIoU=1.0)
        hook.after_val_epoch(runner, metrics)
        assert metrics == {'mIoU': 1.0, 'val/loss': 3.0, 'val/acc': 2.0}
    hook.after_val_epoch(runner, {})  # an evaluator that returned nothing
    assert runner.message_hub.get_scalar('val/val/loss').current() == 3.0
    hook.before_val(runner)
    assert not runner.message_hub.log_scalars


def test_losses_of_both_are_drawn_at_the_iterations_of_the_validation(tmp_path):
    records = [dict(epoch=1, iter=4, step=4, loss=2.0), {'val/loss': 2.5, 'mIoU': 9.0, 'step': 1}]
    records += [dict(epoch=2, iter=8, step=8, loss=1.0), {'val/loss': 2.0, 'mIoU': 9.5, 'step': 2}]
    log = tmp_path / '1' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(''.join(f'{json.dumps(record)}\n' for record in records))
    scalars = read_scalars(tmp_path)
    assert scalars['val/loss'] == {4: 2.5, 8: 2.0} and scalars['mIoU'] == {4: 9.0, 8: 9.5}
    axes = Figure().subplots()
    _plot_losses(axes, {k: v for k, v in scalars.items() if 'loss' in k})
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {'loss', 'val/loss'} and axes.get_ylabel() == 'loss'
    assert lines['loss'].get_color() == lines['val/loss'].get_color()
    assert lines['val/loss'].get_xydata().tolist() == [[4, 2.5], [8, 2.0]]
