import sys

import pytest
import torch
from torch import nn

from mmattn import MHSA, insert
from mmattn.ops import Pairs
from mmattn.visualization import record
from mmattn.zoo import from_author
from tests.blocks.slow import agree, conv, draw, drawn, parameters, resize, softmax


def tables(block, height, width):
    """Resampled by interpolating between neighbouring rows."""
    sides = (block.position.height, height), (block.position.width, width)
    return [resize(t.T[None, :, :, None], (2 * n - 1, 1), False)[0, :, :, 0].T for t, n in sides]


def formula(block, x):
    """One query and one key after the other, then means of 2 x 2."""
    (count, _, height, width), d = x.shape, block.head_channels
    qkv = conv(x, block.qkv)
    q, k, v = qkv.split([block.heads * d, block.heads * d, block.out_channels], 1)
    q, k, v = (t.unflatten(1, (block.heads, -1)) for t in (q, k, v))  # (N, heads, d, H, W)
    factor = d**-0.5 if block.scale_position else 1
    rows, columns = tables(block, height, width) if block.position else (None, None)
    places = [(i, j) for i in range(height) for j in range(width)]
    y = x.new_zeros(count, block.out_channels, height, width)
    y = y.unflatten(1, (block.heads, -1))
    for n in range(count):
        for head in range(block.heads):
            for i, j in places:
                query, logits = q[n, head, :, i, j], []
                for row, column in places:
                    logit = d**-0.5 * query @ k[n, head, :, row, column]
                    if block.position:
                        distance = rows[row - i + height - 1] + columns[column - j + width - 1]
                        logit = logit + factor * query @ distance
                    logits.append(logit)
                weights = softmax(logits)
                values = [v[n, head, :, row, column] for row, column in places]
                y[n, head, :, i, j] = sum(w * value for w, value in zip(weights, values))
    y = y.flatten(1, 2)
    if block.stride == 2:
        dy, dx = min(2, height), min(2, width)
        tops, lefts = range(max(height // 2, 1)), range(max(width // 2, 1))
        means = [
            y[:, :, 2 * i : 2 * i + dy, 2 * j : 2 * j + dx].mean((2, 3))
            for i in tops
            for j in lefts
        ]
        y = torch.stack(means, 2).unflatten(2, (len(tops), len(lefts)))
    return x + block.rho.scale * y if block.init == 'identity' else y


@pytest.mark.parametrize(
    'arguments',
    [
        dict(in_channels=8, size=(4, 3)),
        dict(in_channels=12, out_channels=10, heads=1, bias=True, size=(4, 3)),
        dict(in_channels=6, heads=3, head_channels=5, size=(4, 3), scale_position=False),
        dict(in_channels=6, heads=2, size=(4, 3), init='identity'),
        dict(in_channels=6, heads=2, position='none', bias=True),
        dict(in_channels=3, out_channels=4, heads=4, head_channels=1, position='none'),
    ],
)
def test_formula(arguments):
    agree(drawn(MHSA(**arguments)), formula, draw(2, arguments['in_channels'], 4, 3))


@pytest.mark.parametrize('table', [(5, 4), (1, 3), (2, 9)])
@pytest.mark.parametrize('size', [(3, 5), (6, 2), (1, 4), (4, 1), (1, 1)])
def test_any_size_by_resampled_tables(table, size):
    agree(drawn(MHSA(4, heads=2, size=table)), formula, draw(2, 4, *size))


@pytest.mark.parametrize('size', [(4, 4), (5, 3), (1, 4), (3, 1), (1, 1)])
def test_stride(size):
    block = drawn(MHSA(4, 6, heads=2, size=4, stride=(2, 2)))
    agree(block, formula, draw(2, 4, *size))
    assert block(draw(1, 4, *size)).shape[2:] == tuple(max(n // 2, 1) for n in size)


@pytest.mark.parametrize('rows', [1, 60, 160])
def test_blocks_of_queries(monkeypatch, rows):
    """Of 1, 3 and 8, which do not end with a row of the map."""
    block, x = drawn(MHSA(4, heads=2, size=5)), draw(2, 4, 5, 4)
    monkeypatch.setattr(sys.modules['mmattn.ops.relative'], '_ROWS', rows)
    agree(block, formula, x)


def test_distance_0_keeps_its_vector():
    position = drawn(MHSA(4, size=(6, 3))).position
    for size in (1, 1), (2, 9), (6, 3), (17, 5):
        for table, own, n in zip(position(*size), (position.height, position.width), size):
            assert len(table) == 2 * n - 1
            torch.testing.assert_close(table[n - 1], own[len(own) // 2], rtol=0, atol=1e-15)
    for table, own in zip(position(6, 3), (position.height, position.width)):
        assert torch.equal(table, own)


def test_tables_of_zeros_are_no_position():
    block, none = drawn(MHSA(8, size=4)), drawn(MHSA(8, position='none'))
    nn.init.zeros_(block.position.height)
    nn.init.zeros_(block.position.width)
    none.load_state_dict({'qkv.weight': block.qkv.weight})
    x = draw(2, 8, 3, 5)
    torch.testing.assert_close(block(x), none(x), rtol=0, atol=1e-12)


def test_keys():
    keys = dict(MHSA(8, bias=True, init='identity', size=(3, 5), heads=2).named_parameters())
    assert {k: tuple(v.shape) for k, v in keys.items()} == {
        'qkv.weight': (24, 8, 1, 1),
        'qkv.bias': (24,),
        'position.height': (5, 4),
        'position.width': (9, 4),
        'rho.scale': (),
    }
    assert set(MHSA(8, position='none').state_dict()) == {'qkv.weight'}


@pytest.mark.parametrize(
    'arguments, count',
    [
        (dict(in_channels=256, position='none'), 3 * 256**2),
        (dict(in_channels=256, size=64), 3 * 256**2 + 2 * 127 * 64),
        (dict(in_channels=512), 3 * 512**2 + 2 * 27 * 128),
        (dict(in_channels=20, heads=1, position='none'), 20 * (2 * 24 + 20)),  # d is 24
        (dict(in_channels=16, out_channels=12, heads=3, position='none'), 16 * (2 * 15 + 12)),
    ],
)
def test_parameters(arguments, count):
    assert parameters(MHSA, **arguments) == count


def test_start():
    block = MHSA(256, bias=True)
    assert block.qkv.weight.std().item() * 256**0.5 == pytest.approx(1, abs=0.05)
    assert not block.qkv.bias.any()
    assert block.position.height.std().item() * 64**0.5 == pytest.approx(1, abs=0.1)
    assert MHSA(16, init='identity').rho.scale == 0


@pytest.mark.parametrize(
    'ctor, ours',
    [
        (dict(dim=6, num_heads=3, dim_head=5, feat_size=[1, 4]), dict(heads=3, head_channels=5)),
        (dict(dim=8, feat_size=4, qk_ratio=0.5), dict(head_channels=2)),
        (dict(dim=20, feat_size=(3, 2), num_heads=1, scale_pos_embed=True), dict(heads=1)),
        (dict(dim=8, dim_out=12, feat_size=(3, 5), stride=2, qkv_bias=True), dict(stride=2)),
    ],
)
def test_timms_arguments(ctor, ours):
    size, scaled = ctor['feat_size'], ctor.get('scale_pos_embed', False)
    size = (size, size) if isinstance(size, int) else tuple(size)
    options = dict(size=size, bias=ctor.get('qkv_bias', False), scale_position=scaled)
    block = drawn(MHSA(ctor['dim'], ctor.get('dim_out'), **options, **ours))
    names = {f'position.{side}': f'pos_embed.{side}_rel' for side in ('height', 'width')}
    state = {names.get(key, key): value for key, value in block.state_dict().items()}
    found, x = from_author('mhsa', 'BottleneckAttn', ctor, state), draw(2, ctor['dim'], *size)
    assert torch.equal(found(x), block(x))
    agree(found, formula, x)


def test_each_head_is_recorded():
    block, x = drawn(MHSA(8, heads=2, size=4)), draw(3, 8, 4, 5)
    with record(block, [(0, 0), (0.5, 0.99)]) as maps:
        block(x)
    (weights,) = maps['']['pairwise']
    assert weights.shape == (3, 2, 2, 4, 5)
    torch.testing.assert_close(weights.sum((3, 4)), torch.ones(3, 2, 2).double())
    v = block.qkv(x)[:, -8:].unflatten(1, (2, 4)).flatten(3)  # (N, heads, C, P)
    found = (v @ weights.flatten(3).mT).flatten(1, 2)  # (N, C, Q)
    torch.testing.assert_close(found, block(x).flatten(2)[..., [0, 2 * 5 + 4]])


def test_pairs_of_a_head():
    q, k = draw(6, 3, 2, 4), draw(6, 3, 2, 4)
    pairs, at = Pairs('softmax', q, k, heads=2), torch.tensor([1, 7])
    every = pairs.weights(at)
    assert every.shape == (3, 2, 2, 2, 4)
    for i, head in enumerate(pairs._replace(q=q[:2], k=k[:2]).each_head()):
        assert torch.equal(head.weights(at)[0], every[0, i])


class Network(nn.Module):
    trains_plugins = True

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        return self.conv(x)


def test_it_replaces_a_convolution():
    network = Network()
    insert(network, [dict(cfg=dict(type='MHSA', heads=2), replace='conv', learn=True)])
    assert isinstance(network.conv, MHSA) and network.conv.stride == 2
    assert network(torch.randn(1, 6, 6, 4)).shape == (1, 8, 3, 2)


def test_in_place_of_a_convolution_it_cannot_start_as_the_identity():
    cfg = dict(type='MHSA', init='identity')
    with pytest.raises(ValueError, match=r"MHSA.*init='identity'.*init='paper'"):
        insert(Network(), [dict(cfg=cfg, replace='conv')])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(heads=3), r'heads=3, but heads must divide out_channels=16; allowed 1, 2, 4, 8, 16'),
        (dict(heads=0), 'heads=0, allowed whole numbers from 1'),
        (dict(head_channels=0), 'head_channels=0, allowed whole numbers from 1'),
        (dict(out_channels=1.5), 'out_channels=1.5, allowed whole numbers from 1'),
        (dict(position='absolute'), "position='absolute', allowed 'relative', 'none'"),
        (dict(size=(3, 0)), 'size=0, allowed whole numbers from 1'),
        (dict(size=(3, 4, 5)), r'size=\(3, 4, 5\), allowed one number or \(height, width\)'),
        (dict(size=7, position='none'), "size=7 with position='none', allowed None"),
        (
            dict(scale_position=False, position='none'),
            "scale_position=False with position='none', allowed True",
        ),
        (dict(stride=3), r'stride=\(3, 3\), allowed \(1, 1\), \(2, 2\)'),
        (dict(stride=(1, 2)), r'stride=\(1, 2\), allowed \(1, 1\), \(2, 2\)'),
        (
            dict(out_channels=8, init='identity'),
            "out_channels=8 and stride=1 with init='identity', allowed out_channels=16 and stride=1",
        ),
        (dict(stride=2, init='identity'), "out_channels=16 and stride=2 with init='identity'"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'MHSA: {message}'):
        MHSA(16, **arguments)
