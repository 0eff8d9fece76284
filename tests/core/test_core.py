"""Blocks in a network of torch alone: put in, reported, recorded, trained, copied, compiled."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import mmattn
from mmattn.plugins import named_plugins
from mmattn.registry import MODELS
from mmattn.torch_compat import can_compile
from tests.conftest import randomise

PACKAGES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'pycocotools')
BLOCKS = {  # with arguments that fit 16 channels
    'SE': dict(reduction=4),
    'CBAM': dict(reduction=4),
    'SGE': dict(groups=4),
    'CrissCrossAttention': {},
    'NonLocal2d': {},
    'ContextBlock': dict(ratio=0.25),
}


class Unit(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = dict(stem=nn.Conv2d(3, 16, 3, 2, 1))
    layers |= {f'layer{n}': nn.Sequential(Unit(16), Unit(16)) for n in (1, 2)}
    layers |= dict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(16, 4))
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return randomise(model).eval()


@pytest.fixture(params=BLOCKS)
def pair(request):
    """The plain network, and the same with a block at the end of each stage."""
    plain, model = network(), network()
    cfg = dict(type=request.param, init='identity', **BLOCKS[request.param])
    paths = mmattn.insert(model, [dict(cfg=cfg, position='after_stage')])
    assert [path.rpartition('.')[0] for path in paths] == ['layer1', 'layer2']
    return plain, model


def test_the_start_is_the_plain_network(pair):
    plain, model = pair
    x = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-6)
    assert len(dict(named_plugins(model))) == 2
    found = model.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys and len(found.missing_keys) > 0
    assert set(plain.state_dict()) <= set(model.state_dict())


def test_a_step_changes_the_block(pair):
    _, model = pair
    blocks = [plugin for _, plugin in named_plugins(model)]
    before = copy.deepcopy([block.state_dict() for block in blocks])
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
        optimizer.step()
    for block, old in zip(blocks, before):
        assert any(not torch.equal(v, old[k]) for k, v in block.state_dict().items())


def test_copies_compile_and_half(pair):
    _, model = pair
    randomise(model)
    x = torch.randn(2, 3, 32, 32)
    y = model(x)
    for other in copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        assert torch.equal(other(x), y)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend='aot_eager')(x), y)
    assert model.bfloat16()(x.bfloat16()).isfinite().all()


def test_report_and_record(pair):
    _, model = pair
    found = mmattn.report(model, (64, 64))
    assert [row.maps[0][2:] for row in found.rows] == [(32, 32), (32, 32)] and found.macs > 0
    assert 'layer1' in str(found)
    with mmattn.record(model, [(0.5, 0.5)]) as maps:
        model(torch.randn(1, 3, 32, 32))
    assert maps


def test_weights_of_an_author():
    state = {'fc.0.weight': torch.randn(2, 8), 'fc.2.weight': torch.randn(8, 2)}
    block = mmattn.from_author('se', 'SELayer', dict(channel=8, reduction=4), state)
    x = torch.randn(2, 8, 4, 4)
    hidden = (x.mean((2, 3)) @ state['fc.0.weight'].T).relu()
    gate = (hidden @ state['fc.2.weight'].T).sigmoid()
    torch.testing.assert_close(block(x), x * gate[:, :, None, None])


def test_a_block_of_ones_own_is_found_by_name(request):
    @MODELS.register_module()
    class Halved(mmattn.AttentionBlock):
        _abbr_, kind = 'halved', 'channel'

        def __init__(self, in_channels: int, init: str = 'paper') -> None:
            super().__init__(in_channels, init)
            self.start()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 2

    request.addfinalizer(lambda: MODELS.module_dict.pop('Halved'))
    model = network()
    mmattn.insert(model, [dict(cfg=dict(type='Halved'), at='layer1.0')])
    assert isinstance(model.layer1[0].halved, Halved)
    with pytest.raises(ValueError, match='Did you mean .*Halved'):
        mmattn.insert(network(), [dict(cfg=dict(type='Halvd'), at='layer1.0')])


def test_the_catalogue(capsys):
    from mmattn.cli.main import main

    assert {'SE', 'CBAM', 'NonLocal2d'} <= {info.name for info in mmattn.list_blocks()}
    assert main(['list_blocks', 'cbam']) == 0
    assert 'CBAM' in capsys.readouterr().out


@pytest.mark.skipif(
    os.environ.get('MMATTN_ENVIRONMENT') is None, reason='the packages are installed here'
)
def test_nothing_of_openmmlab_is_installed_and_what_needs_it_says_so():
    code = (
        'import sys; from mmattn import *; import torch; SE(32)(torch.ones(1, 32, 4, 4)); '
        f'print(sorted(set(sys.modules) & set({PACKAGES})))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout == '[]\n', done.stderr
    for name in 'train', 'Predictor', 'DAHead', 'load_model':
        with pytest.raises(ImportError, match=rf'mmattn.{name}: .*Run: pip install "mmattn\[det'):
            getattr(mmattn, name)
    done = subprocess.run(
        [sys.executable, '-m', 'mmattn', 'train', 'x.py'], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith('error: '), done.stderr
    assert 'Run: pip install "mmattn[det]"' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.skipif(not can_compile, reason='torch before 2.4 runs blocks eagerly')
def test_a_network_whose_blocks_follow_other_modules_is_compiled_as_one_graph():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).eval()
    mmattn.insert(network, [dict(cfg=dict(type='mmattn.SE', reduction=2), at='0.1')])
    x = torch.randn(1, 3, 9, 8)
    torch.compiler.reset()
    compiled = torch.compile(network, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))


def test_the_probe(capsys):
    from mmattn.cli.main import main

    arguments = ['--blocks', 'none', 'se', '--tasks', 'marker', '--steps', '2', '--jobs', '1']
    assert main(['probe', *arguments, '--seeds', '1']) == 0
    assert '| SE | ' in capsys.readouterr().out
