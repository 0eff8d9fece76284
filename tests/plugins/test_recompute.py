"""Plugins that keep nothing: the same bits as those that keep, and nothing kept."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmattn import insert
from mmattn.benchmarks.timing import kept_bytes
from mmattn.blocks import AttentionBlock
from mmattn.plugins import named_plugins
from mmattn.torch_compat import fake_tensor_mode
from mmattn.visualization import record
from tests.blocks.contract import randomise, registered

GATES = [
    name
    for name, cls in registered().items()
    if cls.plugin_memory == 'recompute' and 'plugin' not in cls.build(**cls.examples[0]).limits
]
GROUPS = dict(SGE=dict(groups=8), EMAttention=dict(groups=4), ShuffleAttention=dict(groups=4))
NORMS = dict(batch=nn.BatchNorm2d, group=functools.partial(nn.GroupNorm, 4), none=None)


class Branch(nn.Module):
    """A residual block: convolution, norm, the place of the plugin, addition, activation."""

    def __init__(self, channels, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = NORMS[norm](channels) if NORMS[norm] else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        y += x
        return self.relu(y)


class Network(nn.Module):
    def __init__(self, channels=16, norm='batch', depth=2):
        super().__init__()
        self.layer1 = nn.Sequential(*(Branch(channels, norm) for _ in range(depth)))
        self.layer2 = nn.Sequential(nn.Sequential(Branch(channels, norm)))

    def forward(self, x):
        return self.layer2(self.layer1(x))


def pair(name, channels=16, place=None, **options):
    """Two networks of the same weights, whose plugins keep and run again."""
    cls = registered()[name]
    arguments = {k: v for k, v in cls.examples[0].items() if k not in ('in_channels', 'norm_cfg')}
    torch.manual_seed(0)
    network, networks = Network(channels, **options), []
    place = place or dict(at='layer1.*.bn1')
    for memory in 'keep', 'recompute':
        twin = copy.deepcopy(network)
        cfg = dict(type=cls, **cls.typical | arguments | GROUPS.get(name, {}))
        insert(twin, [dict(cfg=cfg, memory=memory, **place)])
        networks.append(twin)
    randomise(networks[0])
    networks[1].load_state_dict(networks[0].state_dict())
    assert {b.plugin.memory for _, b in named_plugins(networks[1])} == {'recompute'}
    return networks


def step(network, x, run=None):
    """Output, gradients and buffers of a step."""
    x = x.clone().requires_grad_()
    y = (network if run is None else run)(x)
    torch.manual_seed(1)
    (y * torch.randn_like(y)).sum().backward()
    grads = {key: value.grad for key, value in network.named_parameters()}
    return y.detach(), x.grad, grads, dict(network.named_buffers())


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key, value in a.items():
                assert value is b[key] is None or torch.equal(value, b[key]), key
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('name', GATES)
def test_the_same_bits(name, norm, training):
    keep, recompute = pair(name, norm=norm)
    x = torch.randn(2, 16, 9, 11)
    for network in keep, recompute:
        network.train(training)
    assert_same(step(recompute, x), step(keep, x))


@pytest.mark.parametrize(
    'place',
    [dict(position='after_stage'), dict(position='after_add'), dict(position='before_add'),
     dict(at='layer1.1.conv1'), dict(at='layer1.0.relu')],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize('name', ['SE', 'CBAM', 'BAM'])
def test_the_same_bits_anywhere(name, place):
    keep, recompute = pair(name, place=place)
    x = torch.randn(2, 16, 9, 11)
    assert_same(step(recompute, x), step(keep, x))
    again = copy.deepcopy(recompute)  # whose blocks are its own
    for block in dict(named_plugins(recompute)).values():
        block.requires_grad_(False)
        for value in block.parameters():
            value.data.zero_()
    again.zero_grad()
    assert_same(step(again, x)[:2], step(copy.deepcopy(keep), x)[:2])


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', GATES)
def test_nothing_is_kept(name, training):
    keep, recompute = pair(name, channels=32, depth=3)
    plain = Network(32, depth=3)
    x = torch.randn(2, 32, 48, 64, requires_grad=True)
    for network in keep, recompute, plain:
        network.train(training)
    least, found, most = (
        kept_bytes(lambda n=network: n(x)) for network in (plain, recompute, keep)
    )
    of_map = x.numel() * x.element_size()
    assert found - least < 0.15 * of_map, (found - least) / of_map
    assert most - least > 2.9 * of_map  # one map for each block, at least


def freeze(network):
    """Freeze the first stage but for its plugins, as `frozen_stages` does."""
    network.layer1.eval().requires_grad_(False)
    for _, block in named_plugins(network.layer1):
        block.train().requires_grad_(True)


@pytest.mark.parametrize('name', ['SE', 'BAM', 'SGE'])
def test_a_frozen_stage_keeps_its_input_alone(name):
    keep, recompute = pair(name, channels=32, depth=3)
    plain = Network(32, depth=3)
    x = torch.randn(2, 32, 48, 64)
    for network in keep, recompute, plain:
        freeze(network.train())
    results = []
    for network in recompute, keep:
        network(x).square().sum().backward()
        grads = {key: value.grad for key, value in network.named_parameters()}
        results.append((grads, dict(network.named_buffers())))
    assert_same(*results)
    least, found, most = (
        kept_bytes(lambda n=network: n(x)) for network in (plain, recompute, keep)
    )
    of_map = x.numel() * x.element_size()
    assert found - least < 0.15 * of_map  # the input is ours
    assert most - least > 5.9 * of_map
    recompute.layer1[0].conv1.requires_grad_(True)  # now the stage keeps what it learns from
    assert kept_bytes(lambda: recompute(x)) - least > 2.9 * of_map


@pytest.mark.parametrize('name', ['SE', 'BAM', 'CBAM'])
def test_twice_backward_and_two_forward_passes(name):
    keep, recompute = pair(name)
    x = torch.randn(2, 16, 9, 11)
    results = []
    for network in keep, recompute:
        first, second = network(x), network(2 * x)
        (first * second).sum().backward(retain_graph=True)
        (first + second).square().sum().backward()
        results.append(({k: v.grad for k, v in network.named_parameters()},))
    assert_same(*results)


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('name', ['SE', 'BAM', 'ShuffleAttention'])
def test_under_activation_checkpointing(name, reentrant):
    keep, recompute = pair(name)
    x = torch.randn(2, 16, 9, 11)
    found, wanted = (
        step(network, x, lambda x, n=network: checkpoint(n, x, use_reentrant=reentrant))
        for network in (recompute, keep)
    )
    assert_same(found, wanted)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['SE', 'CBAM', 'SGE'])
def test_under_autocast(name, dtype):
    keep, recompute = pair(name)
    x = torch.randn(2, 16, 9, 11)

    def run(network, x):
        with torch.autocast('cpu', dtype=dtype):
            return network(x)

    found, wanted = (
        step(network, x, functools.partial(run, network)) for network in (recompute, keep)
    )
    assert_same(found, wanted)


def test_in_channels_last():
    keep, recompute = pair('CBAM')
    x = torch.randn(2, 16, 9, 11).contiguous(memory_format=torch.channels_last)
    assert_same(step(recompute, x), step(keep, x))


@pytest.mark.parametrize('name', ['SE', 'CBAM'])
def test_compiled_and_exported(name):
    keep, recompute = pair(name)
    x = torch.randn(2, 16, 9, 11)
    compiled = torch.compile(recompute, backend='aot_eager', fullgraph=True)
    for a, b in zip(step(recompute, x, compiled)[:2], step(keep, x)[:2], strict=True):
        torch.testing.assert_close(a, b)
    program = torch.export.export(recompute.eval(), (x,)).module()
    torch.testing.assert_close(program(x), keep.eval()(x))


def test_attention_is_recorded_once():
    _, recompute = pair('SE')
    with record(recompute) as recording:
        recompute(torch.randn(2, 16, 9, 11)).sum().backward()
    assert recording


def test_a_map_that_changed_since_is_named():
    _, recompute = pair('SE', depth=1)

    class Spoil(nn.Module):
        def forward(self, x):
            self.y = x
            return x

    branch = recompute.layer1[0]
    branch.conv1 = nn.Sequential(branch.conv1, spoil := Spoil())
    loss = recompute(torch.randn(2, 16, 9, 11)).sum()
    with torch.no_grad():
        spoil.y.add_(1)
    with pytest.raises(RuntimeError, match="memory='keep'|modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    'plugin, message',
    [
        (dict(at='layer1.0.bn1', memory='less'), "memory='less', allowed are keep and recompute"),
        (dict(replace='layer1.0.conv1', memory='keep'), 'memory goes with position and at'),
    ],
)
def test_refused(plugin, message):
    with pytest.raises(ValueError, match=message):
        insert(Network(), [dict(cfg=dict(type='mmattn.SE'), **plugin)])


def test_defaults():
    """Gates run again; what takes longer, and modules of others, keep."""
    network = Network()
    insert(
        network,
        [dict(cfg=dict(type=kind), at=f'layer1.{k}.bn1')
         for k, kind in enumerate(('mmattn.SE', 'mmattn.NonLocal2d'))]
        + [dict(cfg=dict(type=Own), at='layer1.0.conv1')],
    )  # fmt: skip
    found = {type(block).__name__: block.plugin.memory for _, block in named_plugins(network)}
    assert found == dict(SE='recompute', NonLocal2d='keep', Own='keep')


class Own(nn.Module):
    _abbr_ = 'own'

    def __init__(self, in_channels):
        super().__init__()
        assert not isinstance(self, AttentionBlock)

    def forward(self, x):
        return 2 * x


@pytest.mark.filterwarnings('error')
def test_with_fake_tensors():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    insert(network, [dict(cfg=dict(type='SE'), at='1')])
    with fake_tensor_mode(None):
        y = network(torch.randn(2, 3, 8, 8))
    assert tuple(y.shape) == (2, 16, 6, 6)
