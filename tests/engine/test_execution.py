"""Options of how a network runs: `--amp`, `--channels-last`, `--compile`, `--fuse-conv-bn`."""

import argparse
from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from torch import nn

from mmattn.cli.common import add_network_options, make_parser
from mmattn.config import runner_keys
from mmattn.engine import execution
from mmattn.engine.commands import network_flags
from mmattn.engine.execution import amp_dtype, prepare_inference, unsteady_kernels, use_flags
from mmattn.engine.run_config import use_amp
from mmattn.engine.test import TestOptions
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import TrainOptions
from mmattn.errors import UsageError
from mmattn.testing.kill import compare_records
from tests.engine.killing import CONFIG, DETECTOR, SMALL, At, once, record

SHORT = {  # one stage of a ResNet, to be compiled quickly
    'train_cfg.max_iters': 3,
    'train_cfg.val_interval': 99,
    'model.backbone.num_stages': 1,
    'model.backbone.strides': (1,),
    'model.backbone.dilations': (1,),
    'model.backbone.out_indices': (0,),
    'model.decode_head.in_channels': 8,
    'model.decode_head.in_index': 0,
    'model.auxiliary_head.in_channels': 8,
    'model.auxiliary_head.in_index': 0,
}
EAGER = dict(backend='eager')


class Look(Hook):
    """Notes the memory format and precision that the network runs in."""

    def before_train(self, runner):
        self.kernel = runner.model.backbone.layer1[0].conv1.weight
        self.seen = []
        runner.model.backbone.layer1[0].conv1.register_forward_hook(self.see)

    def see(self, module, inputs, output):
        last = output.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((output.dtype, last and not output.is_contiguous()))


@pytest.mark.parametrize(
    'given, options, seen',
    [
        (dict(channels_last=True), {}, (torch.float32, True)),
        (dict(amp='bfloat16'), {}, (torch.bfloat16, False)),
        ({}, dict(compile=EAGER), None),
    ],
    ids=['channels_last', 'bfloat16', 'compile'],
)
def test_resumed_bit_exactly_with_each_option(tiny, tmp_path, given, options, seen):
    options, look = tiny | SHORT | options, Look()
    assert once(tmp_path / 'whole', options, look, rehearsal=not options.get('compile'), **given)
    if seen:
        assert set(look.seen[:2]) == {seen}
    killer, given = At('before_train_iter', 3), dict(given, rehearsal=False)
    assert not once(tmp_path / 'killed', options, killer, **given)
    with pytest.raises(UsageError, match='config differs from the checkpoint: (channels_last|comp|optim)'):  # fmt: skip
        once(tmp_path / 'killed', tiny | SHORT, resume='latest')
    assert once(tmp_path / 'killed', options, resume='latest', **given)
    compare_records(record(tmp_path / 'killed'), record(tmp_path / 'whole'), 'killed')
    saved = torch.load(tmp_path / 'whole' / 'iter_3.pth', weights_only=True)
    assert not [key for key in saved['state_dict'] if '_orig_mod' in key]
    written = Config.fromfile(tmp_path / 'whole' / CONFIG.name)
    assert written.get('channels_last', False) == ('channels_last' in given)
    assert ('BFloat16OptimWrapper' in written.optim_wrapper.type) == ('amp' in given)


def test_a_detector_with_the_options_loses_as_without(tiny, tmp_path):
    """RoIAlign reads maps in channels_last as if they were not, and knows no bfloat16."""
    options = tiny | {
        'train_cfg.max_iters': 1,
        'train_cfg.val_interval': 99,
        'model.backbone.base_channels': 16,
        'model.backbone.stem_channels': 16,
        'model.neck.in_channels': [16, 32, 64, 128],
        'custom_hooks': [],
    }
    losses = []
    for given in {}, dict(amp='bfloat16', channels_last=True):
        folder, given = tmp_path / f'run{len(losses)}', dict(given, rehearsal=bool(given), seed=0)
        assert once(folder, options, config=DETECTOR, **given)
        values = record(folder)['1'][0]
        losses.append({key: float.fromhex(value) for key, value in values.items()})
    plain, fast = losses
    for key in plain.keys() - {'acc'}:
        assert fast[key] == pytest.approx(plain[key], rel=0.01), key


@pytest.fixture(scope='module')
def trained(street, tmp_path_factory):
    from tests.conftest import tiny_options

    folder = tmp_path_factory.mktemp('trained')
    hook = {'custom_hooks': [dict(type='EMAHook', momentum=0.5)]}
    options = tiny_options(street) | {'train_cfg.max_iters': 2, 'train_cfg.val_interval': 9}
    assert once(folder / 'run', options | hook, rehearsal=False)
    return folder / 'run' / 'iter_2.pth'


def test_a_test_with_the_options_scores_as_without(tiny, trained, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(execution, 'print_log', lambda text, **_: said.append(text))
    hook = {'custom_hooks': [dict(type='EMAHook', momentum=0.5)]}
    options = SMALL | tiny | hook
    metrics = [
        evaluate(
            CONFIG, trained, work_dir=tmp_path, cfg_options=deepcopy(options | changes), **given
        )
        for changes, given in [
            ({}, dict(rehearsal=False)),
            (dict(compile=EAGER), dict(channels_last=True, fuse_conv_bn=True)),
            ({}, dict(amp='bfloat16', rehearsal=False)),
        ]
    ]
    assert metrics[0].keys() == metrics[1].keys()
    for key, value in metrics[0].items():
        if value == value:
            assert metrics[1][key] == pytest.approx(value, abs=0.1), key
            assert metrics[2][key] == pytest.approx(value, abs=5), key
    assert said[0].startswith('--fuse-conv-bn: ') and 'batch norms are folded' in said[0]
    assert said[1] == (
        'torch.compile compiles backbone, decode_head, auxiliary_head when each first runs'
    )
    text = (tmp_path / 'metrics' / 'iter_2.json').read_text()
    assert ' --amp bfloat16' in text


@pytest.mark.parametrize(
    'layers, text',
    [
        ([nn.Conv2d(3, 4, 1)], 'Sequential has no batch norm'),
        (
            [nn.ReLU(), nn.BatchNorm2d(3)],
            'none of the 1 batch norms of Sequential directly follows',
        ),
        ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)], '1 of 1 batch norms are folded'),
    ],
)
def test_a_network_without_norms_to_fold_says_so(layers, text, monkeypatch):
    said = []
    monkeypatch.setattr(execution, 'print_log', lambda line, **_: said.append(line))
    prepare_inference(nn.Sequential(*layers), amp=False, fuse_conv_bn=True)
    assert len(said) == 1 and said[0].startswith(f'--fuse-conv-bn: {text}')


# ---- flags ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'words, amp',
    [
        (['c.py'], False),
        (['c.py', '--amp'], True),
        (['--amp', 'c.py'], 'float16'),
        (['--amp', 'bfloat16', 'c.py'], 'bfloat16'),
        (['c.py', '--amp', '--compile'], 'float16'),
    ],
)
def test_amp_takes_the_next_word_only_if_it_is_a_dtype(words, amp):
    parser = make_parser('d')
    parser.add_argument('config')
    add_network_options(parser)
    args = parser.parse_args(words)
    assert (args.config, args.amp) == ('c.py', amp)
    assert isinstance(args, argparse.Namespace) and not args.fuse_conv_bn


@pytest.mark.parametrize(
    'amp, device, message',
    [
        (True, 'cpu', 'float16 needs a GPU.*--amp bfloat16'),
        ('float16', 'cpu', 'float16 needs a GPU'),
        ('float8', 'cuda', 'allowed are float16 and bfloat16'),
        ('bfloat16', 'mps', 'there is none on this mps'),
    ],
)
def test_a_precision_that_is_not_there_is_refused(amp, device, message):
    with pytest.raises(UsageError, match=message):
        amp_dtype(amp, device)


def test_the_wrapper_of_the_optimizer_by_precision(monkeypatch):
    monkeypatch.setattr('mmattn.engine.run_config.get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    optimizer = dict(type='SGD', lr=1.0)

    def wrapper(amp, **settings):
        cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer, **settings)))
        use_amp(cfg, amp)
        return {k: v for k, v in cfg.optim_wrapper.items() if k != 'optimizer'}

    scaled = dict(type=AmpOptimWrapper.__name__, loss_scale='dynamic')
    assert wrapper(True) == wrapper('float16') == scaled
    assert wrapper('float16', dtype='bfloat16') == dict(scaled, dtype='float16')
    assert wrapper('bfloat16', loss_scale=512.0, accumulative_counts=2) == dict(
        type='mmattn.BFloat16OptimWrapper', accumulative_counts=2
    )


def test_without_a_compiler_the_flag_says_so_and_is_left_out(monkeypatch):
    said = []
    monkeypatch.setattr(execution, 'warn', said.append)
    monkeypatch.setattr(runner_keys, 'has_cpp_compiler', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    cfg = Config(dict())
    use_flags(cfg, channels_last=True, compile=True)
    assert cfg.to_dict() == dict(channels_last=True)
    assert said == [
        '--compile: torch.compile needs a C++ compiler on a CPU, and there is none. The network '
        'runs uncompiled.'
    ]
    cfg = Config(dict(compile=EAGER))
    use_flags(cfg, channels_last=False, compile=True)
    assert cfg.compile == EAGER and len(said) == 1


def test_algorithms_that_are_timed_are_a_reason_against_exactness(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert unsteady_kernels() == []
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    assert 'cudnn_benchmark' in unsteady_kernels()[0]


def test_the_command_names_the_options():
    assert network_flags(TrainOptions(amp=True, compile=True)) == ' --amp --compile'
    options = TestOptions(amp='bfloat16', channels_last=True, fuse_conv_bn=True)
    assert network_flags(options) == ' --amp bfloat16 --channels-last --fuse-conv-bn'
