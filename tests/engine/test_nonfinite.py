"""What is not finite, or does not fit into memory, ends a training before it changes a weight."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmattn.engine import late_values
from mmattn.engine.hooks.guard import GuardHook
from mmattn.engine.nonfinite import NonFiniteDetector
from mmattn.errors import MemoryShortage, NonFiniteError, UsageError, explain
from tests.engine.killing import At, once

OPTIONS = {'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 1}
kept = {}


def keep(runner):
    kept['model'] = runner.model
    kept['weights'] = {k: v.clone() for k, v in runner.model.named_parameters()}


def unchanged():
    return all(torch.equal(v, kept['weights'][k]) for k, v in kept['model'].named_parameters())


def spoil_output(runner):
    """The class scores are nan from here on."""
    keep(runner)
    layer = runner.model.decode_head.conv_seg
    layer.register_forward_hook(lambda module, args, output: output * float('nan'))


def spoil_gradient(runner):
    keep(runner)
    runner.model.backbone.layer1[0].conv1.weight.register_hook(lambda g: g * float('nan'))


@pytest.mark.parametrize(
    'spoil, text',
    [
        (
            spoil_output,
            r'loss is nan at iteration 3: .*decode.loss_ce=nan.*aux.loss_ce=\d.*; first non-finite '
            r'output: decode_head.conv_seg; samples street_.*png, .*No weight was changed',
        ),
        (
            spoil_gradient,
            r'gradient norm is nan at iteration 3: .*; first in backbone.layer1.0.conv1.weight; '
            r'samples street_',
        ),
    ],
)
def test_a_step_that_is_not_finite(tiny, tmp_path, spoil, text):
    options = tiny | OPTIONS
    with pytest.raises(NonFiniteError, match=text) as error:
        once(tmp_path / 'run', options, At('before_train_iter', 3, spoil))
    assert unchanged() and explain(error.value)[0] == 5
    assert sorted(p.name for p in (tmp_path / 'run').glob('iter_*.pth')) == ['iter_2.pth']
    dump = json.loads((tmp_path / 'run' / 'nonfinite.json').read_text())
    assert dump['iteration'] == 3 and len(dump['samples']) == 2


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Numbers are read one step late, and optimizers skip steps themselves."""
    monkeypatch.setattr(late_values, '_READ_AT_ONCE', ())


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW'])
@pytest.mark.parametrize(
    'spoil, text',
    [
        (spoil_output, 'loss is nan at iteration 2: .*first non-finite output: decode_head.conv_s'),
        (spoil_gradient, 'gradient norm is not finite at iteration 2: .*; first in backbone.layer'),
    ],
)
def test_a_step_that_is_read_late(tiny, tmp_path, as_on_a_gpu, optimizer, spoil, text):
    steps = []
    options = tiny | OPTIONS | {'default_hooks.checkpoint.interval': 4}
    options['optim_wrapper.optimizer'] = dict(type=optimizer, lr=0.01, _delete_=True)
    hooks = (
        At('before_train_iter', 2, spoil),
        At('after_train_iter', 2, lambda runner: steps.append(unchanged())),
        At('before_train_iter', 3, lambda runner: steps.append(unchanged())),
    )
    with pytest.raises(NonFiniteError, match=text):
        once(tmp_path / 'run', options, *hooks, validate=False)
    assert steps == [True, True] and unchanged()
    assert not list((tmp_path / 'run').glob('iter_*.pth'))
    assert json.loads((tmp_path / 'run' / 'nonfinite.json').read_text())['iteration'] == 2


@pytest.mark.parametrize('options', [{}, {'train_cfg.val_interval': 3}])
def test_nothing_is_saved_or_validated_after_it(tiny, tmp_path, as_on_a_gpu, options):
    options = tiny | OPTIONS | {'default_hooks.checkpoint.interval': 2, **options}
    step = options['train_cfg.val_interval']
    with pytest.raises(NonFiniteError, match=f'loss is nan at iteration {step}'):
        once(tmp_path / 'run', options, At('before_train_iter', step, spoil_output))
    assert unchanged()
    saved = [p.name for p in (tmp_path / 'run').glob('iter_*.pth')]
    assert saved == (['iter_2.pth'] if step == 3 else [])


def test_late_checks_change_no_weight(tiny, tmp_path, monkeypatch):
    weights = []
    options = tiny | OPTIONS | {'optim_wrapper.clip_grad': dict(max_norm=1.0)}
    options |= {'optim_wrapper.optimizer.fused': True, 'train_cfg.max_iters': 3}
    for devices in ('cpu',), ():
        monkeypatch.setattr(late_values, '_READ_AT_ONCE', devices)
        folder = tmp_path / f'run{len(devices)}'
        once(folder, options, At('after_train_iter', 3, keep), validate=False)
        weights.append(kept['weights'])
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


def test_a_scaler_skips_steps_of_losses_that_are_not_finite(as_on_a_gpu):
    weight = nn.Parameter(torch.ones(2))
    wrapper = OptimWrapper(torch.optim.SGD([weight], lr=1.0, fused=True))
    scaler = wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0)
    wrapper.backward = lambda loss: scaler.scale(loss).backward()
    wrapper.step = lambda: (scaler.step(wrapper.optimizer), scaler.update())
    found = []
    detector = NonFiniteDetector(wrapper, lambda *what: found.append(what))
    wrapper.backward(weight.sum() + float('inf'))  # its gradient is finite
    wrapper.step()
    assert torch.equal(weight.data, torch.ones(2))
    detector.poll()
    assert found == []
    detector.flush()
    assert found[0] == ('loss', float('inf'), 1)


def spoil_image(runner):
    """A batch whose image is nan: its statistics go no further than this process."""
    keep(runner)
    for image in runner.guard.batch['inputs']:
        image.fill_(0)
    runner.model.data_preprocessor.std.fill_(0)


def test_an_image_that_is_not_finite_leaves_no_checkpoint(tiny, tmp_path):
    with pytest.raises(NonFiniteError, match='loss is nan at iteration 2'):
        once(tmp_path / 'run', tiny | OPTIONS, At('before_train_iter', 2, spoil_image, 'LOWEST'))
    (path,) = (tmp_path / 'run').glob('iter_*.pth')
    weights = torch.load(path, weights_only=True)['state_dict']
    assert path.name == 'iter_1.pth' and all(v.isfinite().all() for v in weights.values())


def test_a_scaler_that_skips_for_ever():
    scaler = torch.amp.GradScaler('cpu', growth_interval=10**6)
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1)
    said = []
    runner = SimpleNamespace(
        optim_wrapper=SimpleNamespace(loss_scaler=scaler),
        iter=0,
        nonfinite=None,
        logger=SimpleNamespace(info=said.append),
    )
    hook = GuardHook()
    hook.signal_handler.started = True
    with pytest.raises(NonFiniteError, match='gradient scaler skipped 50 steps in a row at iter'):
        for _ in range(99):
            hook.before_train_iter(runner, 0)
            scaler.scale(weight.sum() * float('inf')).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            hook._count_skips(runner)
    assert len(said) == 50 and torch.equal(weight.data, torch.ones(2))


def test_several_optimizers_are_refused(tiny, tmp_path):
    class Two:
        def __init__(self, optim_wrapper_cfg, paramwise_cfg):
            pass

        def __call__(self, model):
            parts = dict(backbone=model.backbone, head=model.decode_head)
            return OptimWrapperDict(
                **{k: OptimWrapper(torch.optim.SGD(v.parameters(), 0.1)) for k, v in parts.items()}
            )

    OPTIM_WRAPPER_CONSTRUCTORS.register_module('Two', module=Two)
    try:
        with pytest.raises(UsageError, match='optim_wrapper makes 2 optimizers'):
            once(tmp_path / 'run', tiny | {'optim_wrapper.constructor': 'Two'})
    finally:
        del OPTIM_WRAPPER_CONSTRUCTORS._module_dict['Two']


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory.'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError('the map of pairs needs 9 GB'),
    ],
)
def test_out_of_memory_says_what_to_change(tiny, tmp_path, monkeypatch, error):
    def full(self, *args, **kwargs):
        raise error

    def fill(runner):
        monkeypatch.setattr(type(runner.model), 'train_step', full)

    with pytest.raises(MemoryShortage) as raised:
        once(tmp_path / 'run', tiny | OPTIONS, At('before_train_iter', 2, fill), validate=False)
    monkeypatch.undo()
    text = str(raised.value)
    assert text.startswith('out of memory at iteration 2') and explain(raised.value)[0] == 6
    assert (
        'batch 2, image 256x128; last checkpoint iter_1. Lower train_dataloader.batch_size' in text
    )
