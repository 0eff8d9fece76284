import pytest
import torch
from torch import nn

from mmattn import SKConv2d
from tests.blocks.slow import agree, batch_norm, conv, draw, drawn, linear, means, softmax


def both(value):
    return (value, value) if isinstance(value, int) else value


def formula(
    block,
    x,
    kernel_size=3,
    stride=1,
    padding=None,
    dilation=1,
    groups=32,
    branches=2,
    init='paper',
    **_,
):
    step = both(dilation)
    same = [d * (k - 1) // 2 for k, d in zip(both(kernel_size), step)]
    around = same if padding is None else both(padding)
    u = []
    for i in range(branches):
        wider = dict(padding=[p + i * s for p, s in zip(around, same)])
        wider['dilation'] = [(1 + i) * d for d in step]
        c = conv(x, block.convs[i][0], stride=stride, groups=groups, **wider)
        u.append(batch_norm(c, block.convs[i][1]).clamp(min=0))
        if i == 0:
            plain = c
    h = batch_norm(linear(means(sum(u)), block.fc1[0]), block.fc1[1]).clamp(min=0)
    logits, channels = linear(h, block.fc2), u[0].shape[1]
    v = []
    for n in range(len(x)):
        for c in range(channels):  # the first rows of fc2 are those of the first branch
            a = softmax([logits[n, i * channels + c] for i in range(branches)])
            v.append(sum(a[i] * u[i][n, c] for i in range(branches)))
    v = torch.stack(v).reshape(u[0].shape)
    return plain + block.rho.scale * (v - plain) if init == 'identity' else v


FORMS = [
    dict(groups=1),
    dict(groups=4, branches=3),
    dict(groups=2, out_channels=6, stride=2, bias=True),
    dict(groups=4, stride=(1, 2), padding=0),
    dict(groups=2, dilation=2, padding=(3, 1)),
    dict(groups=8, kernel_size=(1, 5), dilation=(1, 2), branches=3),
    dict(groups=8, kernel_size=1, padding=1),
]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('form', FORMS)
def test_formula(form, init, train):
    arguments = dict(reduction=2, min_channels=3, init=init, **form)
    block = drawn(SKConv2d(8, **arguments), train)
    agree(block, formula, draw(3, 8, 6, 5), **arguments)


@pytest.mark.parametrize('form', FORMS)
def test_size_of_a_plain_convolution(form):
    plain = {k: v for k, v in form.items() if k not in ('branches', 'out_channels')}
    kernel, step = both(plain.pop('kernel_size', 3)), both(form.get('dilation', 1))
    plain.setdefault('padding', tuple(d * (k - 1) // 2 for k, d in zip(kernel, step)))
    x = torch.randn(2, 8, 7, 6)
    expected = nn.Conv2d(8, form.get('out_channels', 8), kernel, **plain)(x).shape
    assert SKConv2d(8, **form).eval()(x).shape == expected


@pytest.mark.parametrize('channels, width', [(128, 32), (256, 32), (512, 32), (1024, 64)])
def test_width_of_the_selection(channels, width):
    with torch.device('meta'):
        block = SKConv2d(channels)
    shapes = {k: tuple(v.shape) for k, v in block.state_dict().items() if k.endswith('weight')}
    assert shapes == {
        'convs.0.0.weight': (channels, channels // 32, 3, 3),
        'convs.0.1.weight': (channels,),
        'convs.1.0.weight': (channels, channels // 32, 3, 3),
        'convs.1.1.weight': (channels,),
        'fc1.0.weight': (width, channels, 1, 1),
        'fc1.1.weight': (width,),
        'fc2.weight': (2 * channels, width, 1, 1),
    }


def test_starts_as_the_authors():
    block = SKConv2d(256)
    for layer in block.fc1[0], block.fc2:
        assert abs(layer.weight.std() / 0.01 - 1) < 0.05
    for branch in block.convs:  # Kaiming normal over fan-out
        assert abs(branch[0].weight.std() / (2 / (256 * 9)) ** 0.5 - 1) < 0.05


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('bias', [False, True])
def test_starts_as_the_convolution_whose_weights_it_has(bias, train):
    place = dict(stride=2, padding=3, dilation=2, groups=4, bias=bias)
    plain = nn.Conv2d(8, 12, 3, **place).double()
    block = SKConv2d(8, 12, init='identity', **place).double().train(train)
    x = draw(2, 8, 7, 6)
    assert not torch.equal(block(x), plain(x))
    block.get_submodule(block.plain).load_state_dict(plain.state_dict())
    assert torch.equal(block(x), plain(x))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            dict(in_channels=48),
            'groups=32, but groups must divide in_channels=48; allowed 6, 8, 12, 16, 24, 48',
        ),
        (
            dict(in_channels=8, out_channels=6, groups=4),
            'groups must divide out_channels=6; allowed 1, 2, 3, 6',
        ),
        (dict(kernel_size=4), 'SKConv2d: kernel_size=4, allowed odd numbers'),
        (dict(kernel_size=(3, 2)), r'SKConv2d: kernel_size=\(3, 2\), allowed odd numbers'),
        (dict(branches=1), 'SKConv2d: branches=1, allowed 2 and more'),
        (dict(stride=0), 'SKConv2d: stride=0, allowed whole numbers from 1'),
        (dict(padding=-1), 'SKConv2d: padding=-1, allowed whole numbers from 0'),
        (dict(reduction=0), 'SKConv2d: reduction=0, allowed whole numbers from 1'),
        (dict(min_channels=0), 'SKConv2d: min_channels=0, allowed whole numbers from 1'),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SKConv2d(**(dict(in_channels=32) | arguments))


def test_training_on_one_image():
    block = SKConv2d(32)
    with pytest.raises(ValueError, match=r'SKConv2d: .* batch size 1 .* allowed 2 and more'):
        block(torch.randn(1, 32, 5, 4))
    assert block.eval()(torch.randn(1, 32, 5, 4)).shape == (1, 32, 5, 4)
