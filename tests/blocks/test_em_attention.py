import pytest
import torch

from mmattn import EMAttention
from mmattn.benchmarks import authors_operations
from mmattn.benchmarks.timing import saved_bytes
from mmattn.ops import em_attention
from mmattn.visualization import record
from tests.blocks.slow import agree, conv, draw, drawn, means, parameters, sigmoid, softmax

SIZES = [(4, 3), (1, 5), (5, 1), (2, 2), (1, 1)]


def formula(block, x, init='paper'):
    """Both branches as the authors compute them: of the normed map and of the 3x3 convolution."""
    parts = x.unflatten(1, (block.groups, -1)).flatten(0, 1)
    height, width = parts.shape[2:]
    rows = sum(parts[..., j] for j in range(width)) / width
    columns = sum(parts[:, :, i] for i in range(height)) / height
    strips = sigmoid(conv(torch.cat([rows, columns], 2)[..., None], block.conv1x1))
    t = parts * strips[:, :, :height] * strips[:, :, height:].mT
    mean = means(t)[:, :, None, None]
    deviation = (means((t - mean) ** 2)[:, :, None, None] + 1e-5).sqrt()
    weight, bias = (v[:, None, None] for v in (block.gn.weight, block.gn.bias))
    normed = (t - mean) / deviation * weight + bias
    values = conv(parts, block.conv3x3, padding=1)
    gated = []
    for part, n, v in zip(parts, normed, values):
        p, q = (softmax([m.mean() for m in maps]) for maps in (n, v))
        z = sum(p[c] * v[c] + q[c] * n[c] for c in range(len(part)))
        gated.append(part * sigmoid(z, init))
    return torch.stack(gated).reshape(x.shape)


@pytest.mark.parametrize('compiling', [False, True])
@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('channels, groups', [(6, 2), (3, 3), (4, 1)])
@pytest.mark.parametrize('size', SIZES)
def test_formula(size, channels, groups, init, compiling, monkeypatch):
    monkeypatch.setattr(em_attention, 'is_compiling', lambda: compiling)
    block = drawn(EMAttention(channels, groups=groups, init=init))
    agree(block, formula, draw(2, channels, *size), init=init)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('values', [1, 500, 1 << 20])
def test_some_groups_at_a_time(values, layout, monkeypatch):
    monkeypatch.setattr(em_attention, '_PART', values)
    x = draw(3, 6, 4, 5).to(memory_format=layout)
    block = drawn(EMAttention(6, groups=2))
    assert block(x).is_contiguous(memory_format=layout)
    agree(block, formula, x)


@pytest.mark.parametrize('size', [(4, 3), (1, 5)])
def test_authors_operations(size):
    block = drawn(EMAttention(12, groups=3))
    agree(block, lambda twin, x: authors_operations.ema(twin)(x), draw(2, 12, *size))


def test_no_image():
    x = torch.zeros(0, 6, 4, 5, requires_grad=True)
    y = EMAttention(6, groups=2)(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape


@pytest.mark.parametrize('groups', [1, 8, 32])
def test_nothing_of_the_size_of_the_map_is_kept(groups):
    block, x = EMAttention(32, groups=groups), torch.randn(2, 32, 64, 64)
    assert saved_bytes(block, [x], block.parameters()) < 0.25 * x.nbytes


@pytest.mark.parametrize('init', ['paper', 'identity'])
def test_the_recorded_gate_is_the_one_that_is_used(init):
    block, x = drawn(EMAttention(6, groups=2, init=init)), draw(2, 6, 4, 5)
    with record(block) as maps:
        y = block(x)
    (gate,) = maps['']['group']
    assert gate.shape == (2, 2, 4, 5)
    torch.testing.assert_close(y, x * gate.repeat_interleave(3, 1), rtol=1e-12, atol=1e-12)


def test_constant_channels():
    x = draw(2, 6, 4, 5)
    x[:, 1], x[1, 3:] = 3, 0
    agree(drawn(EMAttention(6, groups=2)), formula, x)


def test_a_far_mean_does_not_cancel():
    block, x = drawn(EMAttention(4, groups=2)), draw(2, 4, 8, 9) + 2**10
    with torch.no_grad():
        block.conv3x3.weight.zero_()  # its rounding is of the size of x
        wanted = block(x) / x
        torch.testing.assert_close(block.float()(x.float()) / x, wanted, rtol=0.02, atol=0)


def test_keys_and_parameters():
    assert {k: tuple(v.shape) for k, v in EMAttention(256).state_dict().items()} == {
        'conv1x1.weight': (8, 8, 1, 1),
        'conv1x1.bias': (8,),
        'conv3x3.weight': (8, 8, 3, 3),
        'conv3x3.bias': (8,),
        'gn.weight': (8,),
        'gn.bias': (8,),
    }
    assert parameters(EMAttention, 256) == 672
    assert parameters(EMAttention, 256, groups=8) == 10368


@pytest.mark.parametrize(
    'groups, message',
    [
        (5, 'EMAttention: groups=5, but groups must divide in_channels=48; allowed 6, 8, 12, 16'),
        (32, 'EMAttention: groups=32, but groups must divide in_channels=48; allowed'),
        (0, 'EMAttention: groups=0, allowed whole numbers from 1'),
    ],
)
def test_refused_groups(groups, message):
    with pytest.raises(ValueError, match=message):
        EMAttention(48, groups=groups)


def test_groups_follow_from_the_channels():
    """The authors' 32 where they divide them, else the largest power of 2."""
    for channels, groups in (256, 32), (112, 16), (24, 8), (7, 1):
        assert EMAttention(channels).groups == groups
