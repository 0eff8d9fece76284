"""A batch without a labelled pixel has loss 0 and gradients of zeros, whatever the losses are."""

import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS as SEG_MODELS
from mmseg.structures import SegDataSample

from mmattn.registry import MODELS

NORM = dict(type='BN')
LOSSES = {
    'ce': dict(type='CrossEntropyLoss'),
    'mean of labelled': dict(type='CrossEntropyLoss', avg_non_ignore=True),
    'weighted ce': dict(type='CrossEntropyLoss', class_weight=[0.0, 1.0, 2.0]),
    'sigmoid': dict(type='CrossEntropyLoss', use_sigmoid=True),
    'dice': dict(type='DiceLoss'),
    'lovasz': dict(type='LovaszLoss', reduction='none'),
    'lovasz per image': dict(type='LovaszLoss', per_image=True),
    'tversky': dict(type='TverskyLoss'),
    'two': [
        dict(type='CrossEntropyLoss', loss_name='loss_a'),
        dict(type='DiceLoss', loss_name='loss_b'),
    ],
}


def network(loss, head='FCNHead', kind='EncoderDecoder', **more) -> dict:
    part = dict(
        type=head,
        in_channels=32,
        channels=8,
        num_classes=3,
        norm_cfg=NORM,
        loss_decode=loss,
        in_index=2,
    )
    if head == 'FCNHead':
        part |= dict(num_convs=1, **more)
    auxiliary = dict(part, in_channels=16, in_index=1)
    return dict(
        type=kind,
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2), norm_cfg=NORM),
        decode_head=part,
        auxiliary_head=auxiliary,
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )  # fmt: skip


def both(cfg: dict):
    init_default_scope('mmseg')
    theirs = SEG_MODELS.build(copy.deepcopy(cfg)).train()
    ours = MODELS.build(dict(copy.deepcopy(cfg), type=f'mmattn.{cfg["type"]}')).train()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def samples(*labels) -> list:
    return [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]


def learn(model, image, *labels) -> dict:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    losses = model.loss(image, samples(*labels))
    total, _ = model.parse_losses(losses)
    total.backward()
    return losses


CASES = [(name, loss, {}) for name, loss in LOSSES.items()] + [
    ('one channel', dict(type='CrossEntropyLoss', use_sigmoid=True), dict(num_classes=2, out_channels=1, threshold=0.5)),
    ('one channel dice', dict(type='DiceLoss', use_sigmoid=True), dict(num_classes=2, out_channels=2)),
    ('ohem', dict(type='CrossEntropyLoss'), dict(sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=9))),
    ('ignored 0', dict(type='CrossEntropyLoss'), dict(ignore_index=0)),
]  # fmt: skip


@pytest.mark.parametrize('loss, more', [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_it_teaches_nothing_and_labelled_batches_are_as_they_were(loss, more):
    cfg = network(loss, **more)
    ours, theirs = both(cfg)
    image = torch.randn(2, 3, 32, 48)
    classes = more.get('num_classes', 3)
    labels = torch.randint(0, classes, (2, 1, 32, 48))
    expected = learn(theirs, image, *labels)
    found = learn(ours, image, *labels)
    assert list(found) == list(expected)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6, msg=key)
    learnt = {n for n, p in ours.named_parameters() if p.grad is not None}
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters()):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            noise = 1e-5 * float(q.grad.abs().max())
            torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=noise, msg=name)

    ignored = torch.full((2, 1, 32, 48), more.get('ignore_index', 255))
    losses = learn(ours, image, *ignored)
    assert set(losses) == {k for k in expected if 'loss' in k}
    assert all(torch.equal(v.detach().sum(), torch.tensor(0.0)) for v in losses.values())
    assert {n for n, p in ours.named_parameters() if p.grad is not None} == learnt
    assert all(
        not p.grad.any() and p.grad.isfinite().all()
        for p in ours.parameters()
        if p.grad is not None
    )

    learn(theirs, image, *labels)  # their norms have seen as many batches
    again, known = learn(ours, image, *labels), learn(theirs, image, *labels)
    for key, value in again.items():
        torch.testing.assert_close(value, known[key], rtol=1e-6, atol=1e-6, msg=key)


def test_a_crop_of_several_leaves_its_batch_as_it_is():
    ours, theirs = both(network(LOSSES['dice']))
    labels = torch.randint(0, 3, (2, 1, 32, 48))
    labels[1] = 255
    image = torch.randn(2, 3, 32, 48)
    found, expected = learn(ours, image, *labels), learn(theirs, image, *labels)
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_heads_in_a_row_are_segmentors_too():
    cfg = network(dict(type='CrossEntropyLoss', use_sigmoid=True))
    cfg |= dict(type='CascadeEncoderDecoder', num_stages=2)
    first = dict(cfg['decode_head'], in_channels=32)
    second = dict(first, type='OCRHead', ocr_channels=8)
    second.pop('num_convs')
    cfg['decode_head'] = [first, second]
    ours, _ = both(cfg)
    image = torch.randn(2, 3, 32, 48)
    learn(ours, image, *torch.randint(0, 3, (2, 1, 32, 48)))
    learnt = {n for n, p in ours.named_parameters() if p.grad is not None}
    losses = learn(ours, image, *torch.full((2, 1, 32, 48), 255))
    assert [float(v) for v in losses.values()] == [0] * 3
    assert {n for n, p in ours.named_parameters() if p.grad is not None} == learnt


def test_the_warning_says_what_is_true(monkeypatch):
    from mmattn.models import ignored_batches

    said = []
    monkeypatch.setattr(ignored_batches, 'warn', said.append)
    image, labels = torch.randn(2, 3, 32, 48), torch.full((2, 1, 32, 48), 255)
    mixed = labels.clone()
    mixed[0] = 1
    for loss, truth, end in [
        ('ce', labels, ': no loss from it'),
        ('ce', mixed, ': no loss from it'),
        ('dice', labels, ': no loss from it'),
        ('dice', mixed, ': DiceLoss may still count it in its batch'),
    ]:
        said.clear()
        learn(both(network(LOSSES[loss]))[0], image, *truth)
        assert said[0].endswith(end) and said[0].startswith('no labelled pixel in 1 of ')
