"""A rehearsal names what the config says wrong before the first step, and leaves nothing behind."""

import re

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS, METRICS
from torch.utils.data import Sampler

from mmattn.engine.rehearsal import rehearse as module
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from mmattn.errors import UsageError
from tests.conftest import ROOT
from tests.engine.test_end_to_end import COURSES, detection
from tests.engine.test_resume import EPOCHS

CONFIG = ROOT / 'configs' / 'fcn_r18_street.py'
HEAD = 'model.decode_head'
POOLED = dict(  # a norm over a map of one pixel
    _delete_=True, type='PSPHead', in_channels=64, in_index=3, channels=16, num_classes=19,
    norm_cfg=dict(type='SyncBN', requires_grad=True),
)  # fmt: skip


def two_losses(avg_non_ignore: bool) -> list[dict]:
    """The stock path of MMSegmentation, as one of them is not over classes of pixels."""
    return [
        dict(
            type='CrossEntropyLoss', class_weight=[1.0] * 19, avg_non_ignore=avg_non_ignore
        ),
        dict(type='DiceLoss', loss_name='loss_dice'),
    ]  # fmt: skip


@pytest.fixture
def small(tiny):
    """Options of a run of two steps on a narrow network."""
    return tiny | {
        'model.backbone.base_channels': 8,
        'model.backbone.stem_channels': 8,
        f'{HEAD}.in_channels': 64,
        f'{HEAD}.channels': 16,
        'model.auxiliary_head.in_channels': 32,
        'model.auxiliary_head.channels': 8,
        'model.data_preprocessor.size': (64, 64),
        'train_dataloader.dataset.pipeline.2.scale': (128, 64),
        'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
        'train_cfg.max_iters': 2,
        'param_scheduler.0.end': 1,
        'param_scheduler.1.begin': 1,
        'param_scheduler.1.end': 2,
    }


def epochs(small: dict) -> dict:
    """The same by epochs, without a schedule."""
    options = {k: v for k, v in small.items() if not k.startswith(('train_cfg', 'param_sch'))}
    return options | EPOCHS | {'param_scheduler': []}


def end(folder, name='iter_2.pth') -> dict:
    return torch.load(folder / name, weights_only=True)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def names(folder) -> list[str]:
    """Files of a run, without what is named by the time."""
    files = (str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())
    return sorted(re.sub(r'\d{8}_\d{6}|tfevents.*', '*', name) for name in files)


# ---- nothing is left -------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['iterations', 'epochs'])
def test_a_run_with_a_rehearsal_is_bit_for_bit_one_without(kind, small, tmp_path):
    options, last = (
        (small, 'iter_2.pth') if kind == 'iterations' else (epochs(small), 'iter_12.pth')
    )
    options = options | {f'{HEAD}.dropout_ratio': 0.5}  # which draws random numbers
    train(CONFIG, work_dir=tmp_path / 'a', cfg_options=options, seed=1)
    train(CONFIG, work_dir=tmp_path / 'b', cfg_options=options, seed=1, rehearsal=False)
    a, b = (end(tmp_path / run, last) for run in 'ab')
    hubs = [content.pop('message_hub')['runtime_info'] for content in (a, b)]
    for key in 'iter', 'epoch', 'best_score', 'max_iters', 'loss', 'lr':
        assert hubs[0].get(key) == hubs[1].get(key)
    for content in a, b:
        for key in 'time', 'experiment_name', 'cfg', 'command':
            content['meta'].pop(key, None)
    assert same(a, b)
    assert names(tmp_path / 'a') == names(tmp_path / 'b')
    lines = [next((tmp_path / run).rglob('scalars.json')).read_text() for run in 'ab']
    lines = [re.sub(r'"(data_)?time": [^,}]*', '', text) for text in lines]
    assert lines[0] == lines[1] and '"loss"' in lines[0]


def test_activation_checkpointing_does_not_lead_back_to_the_network(small, tmp_path):
    """Its wrapper holds the forward of the network that it was made for."""
    options = small | {'activation_checkpointing': ['backbone.layer1']}
    train(CONFIG, work_dir=tmp_path / 'a', cfg_options=options, seed=1)
    train(CONFIG, work_dir=tmp_path / 'b', cfg_options=options, seed=1, rehearsal=False)
    assert same(*(end(tmp_path / run)['state_dict'] for run in 'ab'))


def test_hooks_of_others_are_not_rehearsed(small, tmp_path):
    seen = []

    @HOOKS.register_module(force=True)
    class CountsSteps(Hook):
        def after_train_iter(self, runner, *args, **kwargs):
            seen.append(runner.iter)

    train(
        CONFIG, work_dir=tmp_path, cfg_options=small | {'custom_hooks': [dict(type='CountsSteps')]}
    )
    assert seen == [0, 1]


# ---- what it finds ---------------------------------------------------------------------------------
FAULTS = {
    'name of the best': (
        {'default_hooks.checkpoint.save_best': 'miou'},
        r"default_hooks.checkpoint.save_best='miou': val_evaluator gives aAcc, mIoU, .*mean mIoU",
        {'default_hooks.checkpoint.save_best': 'mIoU'},
    ),
    'a metric whose rule is not known': (
        {'default_hooks.checkpoint': dict(type='CheckpointHook', save_best='IoU.road', interval=2)},
        "Cannot infer the rule for key IoU.road.* Write rule='greater'",
        {
            'default_hooks.checkpoint': dict(
                type='CheckpointHook', save_best='IoU.road', interval=2, rule='greater',
                by_epoch=False,
            )
        },
    ),
    'another metric': (
        {'val_evaluator.iou_metrics': ['mDice']},
        r"save_best='mIoU': val_evaluator gives aAcc, mDice",
        {'default_hooks.checkpoint.save_best': 'mDice'},
    ),
    'a prefix': (
        {'val_evaluator.prefix': 'val'},
        r"save_best='mIoU': val_evaluator gives val/aAcc, val/mIoU.*mean val/mIoU",
        {'default_hooks.checkpoint.save_best': 'val/mIoU'},
    ),
    'what stops early': (
        {'custom_hooks': [dict(type='EarlyStoppingHook', monitor='IoU.rood', rule='greater')]},
        r"monitor \(EarlyStoppingHook\)='IoU.rood': val_evaluator gives .*mean IoU.road",
        {'custom_hooks': [dict(type='EarlyStoppingHook', monitor='IoU.road', rule='greater')]},
    ),
    'weights of classes and ignored pixels': (
        {f'{HEAD}.loss_decode': two_losses(avg_non_ignore=True)},
        r'IndexError: too many indices.*class_weight works with .*avg_non_ignore=False',
        {f'{HEAD}.loss_decode': two_losses(avg_non_ignore=False)},
    ),
    'weights of too few classes': (
        {f'{HEAD}.loss_decode.class_weight': [1.0, 2.0]},
        r'decode_head.loss_decode.class_weight, which has 2 values',
        {f'{HEAD}.loss_decode.class_weight': None},
    ),
    'padding without a size': (
        {'model.data_preprocessor.size': None},
        'fails in the first training step: AssertionError: only one of size and size_divisor',
        {'model.data_preprocessor.size': (64, 64)},
    ),
    'channels of a head': (
        {f'{HEAD}.in_channels': 2048},
        r'to have 2048 .*model.decode_head: convs.0.conv\). Set model.decode_head.in_channels=64,',
        {f'{HEAD}.in_channels': 64},
    ),
    'nothing packed': (
        {'train_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(64, 64)),
        ]},
        "KeyError: 'inputs' .*Let the pipeline of train_dataloader end in PackSegInputs",
        {'train_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(64, 64)), dict(type='PackSegInputs'),
        ]},
    ),
    'a batch of one under a pooled norm': (
        {HEAD: POOLED, 'train_dataloader.batch_size': 1},
        r'Expected more than 1 value per channel.*set train_dataloader.batch_size=2',
        {'train_dataloader.batch_size': 2},
    ),
    'an option of a metric': (
        {'val_evaluator.iou_metrics': ['mFoo']},
        "iou_metrics=.'mFoo'., allowed: mIoU",
        {'val_evaluator.iou_metrics': ['mIoU']},
    ),
    'no such backend': (
        {'visualizer.vis_backends': [dict(type='WandbVisBackend')]},
        'vis_backends.0.: WandbVisBackend needs wandb: .*pip install wandb',
        {'visualizer.vis_backends': [dict(type='LocalVisBackend')]},
    ),
    'no such module': (
        {'activation_checkpointing': ['backbone.layer9']},
        "activation_checkpointing: EncoderDecoder has no module 'backbone.layer9'",
        {'activation_checkpointing': ['backbone.layer1']},
    ),
    'a schedule that ends before it begins': (
        {'param_scheduler.1.begin': 5},
        r'param_scheduler\[1\] \(PolyLR\): end should be larger than begin.*2 steps',
        {'param_scheduler.1.begin': 1},
    ),
    'a schedule by epochs': (
        {'param_scheduler': [dict(type='ReduceOnPlateauLR', monitor='loss', by_epoch=False)]},
        r'param_scheduler\[0\] \(ReduceOnPlateauLR\): Now ReduceOnPlateauLR only support by_epoch',
        {'param_scheduler': []},
    ),
    'no interval': (
        {'train_cfg.val_interval': 0},
        'train_cfg.val_interval=0: allowed are 1 and more',
        {'train_cfg.val_interval': 1},
    ),
    'no step': (
        {'train_cfg.max_iters': 0},
        'train_cfg.max_iters=0: allowed are 1 and more',
        {'train_cfg.max_iters': 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_named_before_the_first_step_and_its_remedy_holds(name, small, tmp_path):
    wrong, message, remedy = FAULTS[name]
    with pytest.raises(UsageError, match=message):
        train(CONFIG, work_dir=tmp_path, cfg_options=small | wrong)
    assert not list(tmp_path.rglob('*.pth'))
    train(CONFIG, work_dir=tmp_path, cfg_options=small | wrong | remedy)
    assert (tmp_path / 'iter_2.pth').is_file()


def test_the_best_of_one_class_needs_no_rule(small, tmp_path):
    """Of an IoU more is better."""
    best = {'default_hooks.checkpoint.save_best': 'IoU.road'}
    train(CONFIG, work_dir=tmp_path, cfg_options=small | best)
    assert (tmp_path / 'best_IoU.road_iter_2.pth').is_file()


def test_a_last_batch_of_one_is_met_before_the_epoch_ends(small, tmp_path):
    """Four images in batches of three."""
    options = epochs(small) | {HEAD: POOLED, 'train_dataloader.batch_size': 3}
    with pytest.raises(
        UsageError, match='4 images in batches of 3 leave a last batch of one.*drop_'
    ):
        train(CONFIG, work_dir=tmp_path, cfg_options=options)
    train(CONFIG, work_dir=tmp_path, cfg_options=options | {'train_dataloader.drop_last': True})


def test_a_group_norm_over_pooled_values_is_tried_on_two_images(small, tmp_path):
    """It has one value per group of an image, and torch wants two of the batch."""
    norm = dict(type='GN', num_groups=16)
    options = {k: v for k, v in small.items() if 'auxiliary_head' not in k}
    options |= {HEAD: POOLED | dict(norm_cfg=norm), 'model.auxiliary_head': None}
    options |= {'model.backbone.norm_eval': True}
    train(CONFIG, work_dir=tmp_path, cfg_options=options, validate=False)
    assert (tmp_path / 'iter_2.pth').is_file()


def test_one_map_for_two_classes_wants_its_loss(small, tmp_path):
    """`out_channels=1` with a loss over classes."""
    options = small | {f'{HEAD}.out_channels': 1, f'{HEAD}.loss_decode.avg_non_ignore': False}
    with pytest.raises(UsageError) as caught:
        train(CONFIG, work_dir=tmp_path, cfg_options=options)
    assert 'config' in str(caught.value)


def test_a_metric_that_needs_a_whole_set_is_left(small, tmp_path, caplog):
    @METRICS.register_module(force=True)
    class NeedsTwo(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results += data_samples

        def compute_metrics(self, results):
            assert len(results) == 2, 'two images are needed'
            return dict(mIoU=1.0)

    options = small | {'val_evaluator': dict(_delete_=True, type='NeedsTwo')}
    train(CONFIG, work_dir=tmp_path, cfg_options=options)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert 'the metrics are not rehearsed' in log and 'best_mIoU_iter_2' in log


@pytest.mark.parametrize('copies', [True, False])
def test_a_sampler_of_its_own_gives_the_batch(copies, small, tmp_path):
    """Which images may be together is its business; one that cannot be copied is let be."""

    @DATA_SAMPLERS.register_module(force=True)
    class Backwards(Sampler):
        def __init__(self, dataset, seed=None):
            self.dataset = dataset
            self.held = None if copies else iter(())

        def __iter__(self):
            while True:
                yield from (3, 2, 1, 0)

        def __len__(self):
            return 4

        def __getstate__(self):
            if self.held is None:
                return self.__dict__
            raise TypeError('a generator cannot be copied')

    options = small | {'train_dataloader.sampler': dict(_delete_=True, type='Backwards')}
    train(CONFIG, work_dir=tmp_path, cfg_options=options)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert ('a step on 2 images' in log) is copies
    assert ('no step is rehearsed: the sampler cannot be copied' in log) is not copies


def test_a_detector_that_finds_nothing_yet_has_metrics(street, tmp_path):
    from tests.test_configs import detector_options

    path = ROOT / 'configs' / 'retinanet_r18_bccd.py'
    options = detector_options(path, street, tmp_path) | {
        'default_hooks.checkpoint.save_best': 'mAP'
    }
    with pytest.raises(
        UsageError, match="save_best='mAP': val_evaluator gives .*mean coco/bbox_mAP"
    ):
        train(path, work_dir=tmp_path / 'run', cfg_options=options)


DETECTION = {
    'channels of a head': (
        {'model.bbox_head.in_channels': 32},
        r'to have 32 .*Set model.bbox_head.in_channels=16, as its input has',
        {'model.bbox_head.in_channels': 16},
    ),
    'channels of several maps': (
        {'model.neck.in_channels': [64, 128, 256, 512]},
        r'to have 128 .*Set model.neck.in_channels=\[8, 16, 32, 64\]',
        {'model.neck.in_channels': [8, 16, 32, 64]},
    ),
    'no boxes': (
        {'train_dataloader.dataset.pipeline.1.with_bbox': False},
        "no attribute 'bboxes' .*Set with_bbox=True in LoadAnnotations of the pipeline of train_",
        {'train_dataloader.dataset.pipeline.1.with_bbox': True},
    ),
    'a fact of the image': (
        {'val_dataloader.dataset.pipeline.3.meta_keys': ('img_id', 'ori_shape', 'img_shape')},
        r"assert .*'scale_factor'.*Add 'scale_factor' to the meta_keys of PackDetInputs in the pipe",
        {'val_dataloader.dataset.pipeline.3.meta_keys': (
            'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'
        )},
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', DETECTION)
def test_a_fault_of_a_detector_is_named_with_its_key(name, street, tmp_path):
    config, network, _ = COURSES['one stage']
    options = network | detection(street) | {'train_cfg.max_epochs': 1}
    wrong, message, remedy = DETECTION[name]
    with pytest.raises(UsageError, match=message):
        train(config, work_dir=tmp_path, cfg_options=options | wrong)
    train(config, work_dir=tmp_path, cfg_options=options | wrong | remedy)
    assert (tmp_path / 'epoch_1.pth').is_file()


def test_most_of_a_batch_being_padding_is_said(small, tmp_path):
    crop = {'train_dataloader.dataset.pipeline.3.crop_size': (16, 16)}
    train(CONFIG, work_dir=tmp_path, cfg_options=small | crop)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert '94 % of a training batch is padding: images of 16x16 are padded to 64x64' in log
    train(CONFIG, work_dir=tmp_path / 'b', cfg_options=small)
    assert 'padding' not in next((tmp_path / 'b').rglob('*.log')).read_text()


def test_no_memory_for_it_is_no_error(small, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError('no memory')

    monkeypatch.setattr(module, '_step', full)
    train(CONFIG, work_dir=tmp_path, cfg_options=small)
    assert 'ran out of memory and was skipped' in next(tmp_path.rglob('*.log')).read_text()


def test_a_test_rehearses_one_image(small, tmp_path):
    train(CONFIG, work_dir=tmp_path, cfg_options=small)
    wrong = small | {'test_evaluator.iou_metrics': ['mFoo']}
    with pytest.raises(UsageError, match='mFoo'):
        evaluate(CONFIG, tmp_path / 'iter_2.pth', work_dir=tmp_path, cfg_options=wrong)
    log = max((tmp_path / 'test').rglob('*.log')).read_text()
    assert 'Iter(test)' not in log


# ---- lengths ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'plan, warning',
    [
        ((1, 1, 2, 4), 'the learning rate ends at step 2 of 4: from there on it stays 0'),
        ((9, 9, 20, 4), 'still in warm-up when the run ends at step 4'),
        ((1, 1, 20, 4), r'does not come down: the run ends at step 4, .* at step 20'),
        ((1, 1, 4, 4), None),
    ],
)
def test_a_schedule_of_another_length_is_said(plan, warning, small, tmp_path):
    warm, begin, until, steps = plan
    options = small | {
        'param_scheduler.0.end': warm,
        'param_scheduler.1.begin': begin,
        'param_scheduler.1.end': until,
        'train_cfg.max_iters': steps,
        'train_cfg.val_interval': 99,
    }
    train(CONFIG, work_dir=tmp_path, cfg_options=options, validate=False)
    log = next(tmp_path.rglob('*.log')).read_text()
    assert bool(re.search(warning, log)) if warning else 'the learning rate' not in log


def rates(folder) -> dict[int, float]:
    """Step -> learning rate, of all logs of a run."""
    import json

    lines = [json.loads(s) for f in folder.rglob('scalars.json') for s in f.open()]
    return {line['step']: line['lr'] for line in lines if 'lr' in line}


def test_a_longer_run_follows_the_schedule_of_its_config(small, tmp_path):
    def run(folder, length, **changes):
        end = {'param_scheduler.1.end': length, 'train_cfg.max_iters': length}
        train(CONFIG, work_dir=folder, cfg_options=small | end, validate=False, **changes)

    run(tmp_path / 'whole', 6)
    run(tmp_path / 'longer', 3)
    run(tmp_path / 'longer', 6, resume='latest', allow_config_change=True)
    whole, longer = rates(tmp_path / 'whole'), rates(tmp_path / 'longer')
    assert [longer[k] for k in (4, 5, 6)] == [whole[k] for k in (4, 5, 6)]
    assert whole[4] > whole[5] > whole[6] and longer[3] != whole[3]


def test_a_schedule_with_a_function_of_its_own_is_saved_and_resumed(small, tmp_path):
    cycle = dict(type='OneCycleLR', eta_max=0.02, total_steps=4, by_epoch=False)
    options = {k: v for k, v in small.items() if not k.startswith('param_scheduler')} | {
        'param_scheduler': [cycle],
        'train_cfg.max_iters': 4,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.checkpoint.max_keep_ckpts': 2,
    }
    train(CONFIG, work_dir=tmp_path / 'a', cfg_options=options, validate=False, seed=1)
    start = tmp_path / 'a' / 'iter_2.pth'
    train(CONFIG, work_dir=tmp_path / 'b', cfg_options=options, validate=False, resume=str(start))
    whole, resumed = end(tmp_path / 'a', 'iter_4.pth'), end(tmp_path / 'b', 'iter_4.pth')
    for part in 'state_dict', 'optimizer', 'param_schedulers':
        assert same(whole[part], resumed[part]), part
    whole, resumed = rates(tmp_path / 'a'), rates(tmp_path / 'b')
    assert [resumed[k] for k in (3, 4)] == [whole[k] for k in (3, 4)]
    assert whole[1] == pytest.approx(0.02 / 25) and whole[4] == pytest.approx(0.02 / 25 / 1e4)


@pytest.mark.parametrize('kind', ['iterations', 'epochs'])
def test_fewer_images_than_a_batch_are_no_training(kind, small, tmp_path):
    options = small if kind == 'iterations' else epochs(small)
    options = options | {
        'train_dataloader.batch_size': 8,
        'train_dataloader.drop_last': True,
        'train_dataloader.sampler': dict(_delete_=True, type='DefaultSampler', shuffle=True),
    }
    with pytest.raises(
        UsageError, match='no batch: 4 images make none of batch_size=8 with drop_l'
    ):
        train(CONFIG, work_dir=tmp_path, cfg_options=options)
    train(CONFIG, work_dir=tmp_path, cfg_options=options | {'train_dataloader.batch_size': 4})


def test_a_batch_size_may_stand_in_the_batch_sampler(street, tmp_path):
    from tests.test_configs import detector_options

    path = ROOT / 'configs' / 'retinanet_r18_bccd.py'
    options = detector_options(path, street, tmp_path)
    options['train_dataloader.batch_sampler'] = dict(type='AspectRatioBatchSampler', batch_size=2)
    del options['train_dataloader.batch_size']
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = '{path}'\n_kept = {{k: v for k, v in _base_.train_dataloader.items() "
        "if k != 'batch_size'}\ntrain_dataloader = dict(_kept, _delete_=True)\ndel _kept\n"
    )
    train(child, work_dir=tmp_path / 'run', cfg_options=options, validate=False)
    assert (tmp_path / 'run' / 'iter_1.pth').is_file()
