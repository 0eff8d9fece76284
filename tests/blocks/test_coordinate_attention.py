import pytest
import torch
from torch import nn

from mmattn import CoordinateAttention
from mmattn.zoo import from_author
from tests.blocks.slow import agree, batch_norm, conv, draw, drawn, linear, parameters, sigmoid
from tests.conftest import randomise


def strips(x):
    """-> means of the rows (N, C, H) and of the columns (N, C, W), one at a time."""
    height, width = x.shape[2:]
    rows = [x[:, :, i].sum(2) / width for i in range(height)]
    columns = [x[:, :, :, j].sum(2) / height for j in range(width)]
    return torch.stack(rows, 2), torch.stack(columns, 2)


def times(x, rows, columns):
    """Each pixel times the factor of its row and that of its column."""
    pixels = [
        x[:, :, i, j] * rows[:, :, i] * columns[:, :, j]
        for i in range(x.shape[2])
        for j in range(x.shape[3])
    ]
    return torch.stack(pixels, 2).unflatten(2, x.shape[2:])


def times_mask(x, rows, columns, init):
    pixels = [
        x[:, :, i, j] * sigmoid(rows[:, :, i] + columns[:, :, j], init)
        for i in range(x.shape[2])
        for j in range(x.shape[3])
    ]
    return torch.stack(pixels, 2).unflatten(2, x.shape[2:])


def pointwise(z, layer):
    """A 1x1 convolution at each position of a strip (N, C, L)."""
    return torch.stack([linear(z[:, :, i], layer) for i in range(z.shape[2])], 2)


def depthwise(z, layer):
    """Each channel of a strip (N, C, L) by itself, zeros beyond its ends."""
    length, size = z.shape[2], layer.weight.shape[2]
    places = []
    for i in range(length):
        total = torch.zeros_like(z[:, :, 0])
        for k in range(size):
            j = i + k - size // 2
            if 0 <= j < length:
                total = total + layer.weight[:, 0, k] * z[:, :, j]
        places.append(total if layer.bias is None else total + layer.bias)
    return torch.stack(places, 2)


def silu(z):
    return z / (1 + (-z).exp())


def coordinate(block, x, init='paper'):
    joined = torch.cat(strips(x), 2)[..., None]  # all rows, then all columns
    z = batch_norm(conv(joined, block.reduce.conv), block.reduce.bn)[..., 0]
    u = z * (z + 3).clamp(0, 6) / 6
    height = x.shape[2]
    rows = sigmoid(pointwise(u[:, :, :height], block.rows), init)
    columns = sigmoid(pointwise(u[:, :, height:], block.columns), init)
    return times(x, rows, columns)


def simple(block, x, init='paper'):
    z_h, z_w = strips(x)
    rows = pointwise(silu(pointwise(z_h, block.reduce.conv)), block.rows)
    columns = pointwise(silu(pointwise(z_w, block.reduce.conv)), block.columns)
    return times_mask(x, rows, columns, init)


def local(block, x, init='paper'):
    gates = []
    for z, branch in zip(strips(x), (block.rows, block.columns)):
        images = []
        for t in depthwise(z, branch.conv):  # one group: all channels and positions of an image
            t = t - t.sum() / t.numel()
            t = t / (t.square().sum() / t.numel() + 1e-5).sqrt()
            images.append(t * branch.gn.weight[:, None] + branch.gn.bias[:, None])
        gates.append(sigmoid(silu(torch.stack(images)), init))
    return times(x, *gates)


def strip(block, x, init='paper'):
    z_h, z_w = strips(x)
    logits = depthwise(z_h, block.rows.conv), depthwise(z_w, block.columns.conv)
    return times_mask(x, *logits, init)


SIZES = [(4, 3), (1, 5), (3, 1), (1, 1)]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('options', [{}, dict(reduction=2, min_channels=1, bias=False)])
@pytest.mark.parametrize('size', SIZES)
def test_formula(size, options, train):
    agree(drawn(CoordinateAttention(6, **options), train), coordinate, draw(2, 6, *size))


@pytest.mark.parametrize(
    'mode, options, formula',
    [
        ('simple', {}, simple),
        ('simple', dict(reduction=3, min_channels=2, bias=False), simple),
        ('local', {}, local),
        ('local', dict(kernel_size=3, bias=True), local),
        ('strip', {}, strip),
        ('strip', dict(kernel_size=1, bias=True), strip),
    ],
)
@pytest.mark.parametrize('size', SIZES)
def test_formulas_of_timm(size, mode, options, formula):
    block = drawn(CoordinateAttention(6, mode=mode, **options))
    agree(block, formula, draw(2, 6, *size))


@pytest.mark.parametrize(
    'mode, formula',
    [('coordinate', coordinate), ('simple', simple), ('local', local), ('strip', strip)],
)
def test_gates_of_the_identity_start(mode, formula):
    block = drawn(CoordinateAttention(4, mode=mode, init='identity'))
    agree(block, formula, draw(2, 4, 3, 4), init='identity')


@pytest.mark.parametrize('mode', ['coordinate', 'simple', 'local', 'strip'])
def test_channels_last(mode):
    """Outputs and gradients are those of a contiguous map, in the format of the input."""
    block = drawn(CoordinateAttention(6, mode=mode))
    x = draw(2, 6, 5, 4)
    results = []
    for form in torch.contiguous_format, torch.channels_last:
        given = x.to(memory_format=form).requires_grad_()
        y = block(given)
        assert y.is_contiguous(memory_format=form)
        results.append([y, *torch.autograd.grad(y.sin().sum(), [given, *block.parameters()])])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('mode', ['coordinate', 'simple', 'local', 'strip'])
def test_only_strips_are_saved_for_backward(mode):
    block, x = CoordinateAttention(8, mode=mode), torch.randn(2, 8, 32, 32).requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel() if t.data_ptr() != x.data_ptr() else 0) or t, lambda t: t
    ):
        block(x)
    assert max(sizes) <= x.numel() // 16


def test_one_norm_sees_rows_and_columns_together():
    """In training two norms, one for each, give something else; in eval the same."""
    block, x = drawn(CoordinateAttention(6), train=True), draw(2, 6, 4, 5)

    def apart(block, x):
        z_h, z_w = strips(x)
        gates = []
        for z, head in (z_h, block.rows), (z_w, block.columns):
            z = batch_norm(conv(z[..., None], block.reduce.conv), block.reduce.bn)[..., 0]
            gates.append(sigmoid(pointwise(z * (z + 3).clamp(0, 6) / 6, head)))
        return times(x, *gates)

    with torch.no_grad():
        assert (block(x) - apart(block, x)).abs().max() > 1e-3
        block.eval()
        assert (block(x) - apart(block, x)).abs().max() < 1e-12


def test_keys_and_parameters():
    shapes = {k: tuple(v.shape) for k, v in CoordinateAttention(64).state_dict().items()}
    norm = {f'reduce.bn.{k}': (8,) for k in ('weight', 'bias', 'running_mean', 'running_var')} | {
        'reduce.bn.num_batches_tracked': ()
    }
    assert shapes == norm | {
        'reduce.conv.weight': (8, 64, 1, 1),
        'reduce.conv.bias': (8,),
        'rows.weight': (64, 8, 1, 1),
        'rows.bias': (64,),
        'columns.weight': (64, 8, 1, 1),
        'columns.bias': (64,),
    }
    published = {256: 6680, 512: 25648, 1024: 100448, 2048: 397504}
    assert {c: parameters(CoordinateAttention, c) for c in published} == published
    assert parameters(CoordinateAttention, 256, mode='local') == 2 * 256 * (7 + 2)
    assert parameters(CoordinateAttention, 256, mode='strip') == 2 * 256 * 3


def test_few_channels_have_the_least_width():
    assert CoordinateAttention(16).reduce.conv.out_channels == 8
    assert CoordinateAttention(4, mode='simple').reduce.conv.out_channels == 8


@pytest.mark.parametrize('start', ['paper', 'identity'])
def test_start_of_the_gates(start):
    """x / 4 with the authors' start, but for what the layers draw; x with identity."""
    block = CoordinateAttention(8, init=start).double()
    for layer in block.rows, block.columns:
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    x = draw(2, 8, 3, 4)
    assert torch.equal(block(x), x / 4 if start == 'paper' else x)


def timm_state(mode, bias):
    """timm's tensors, drawn, by their names and shapes; 6 channels."""
    if mode == 'simple':
        shapes = {'fc1': (4, 6), 'fc_h': (6, 4), 'fc_w': (6, 4)}
    else:
        shapes = {'conv_h': (6, 1, 5, 1), 'conv_w': (6, 1, 1, 5)}
    state = {f'{k}.weight': draw(*shape) for k, shape in shapes.items()}
    if bias:
        state |= {f'{k}.bias': draw(shape[0]) for k, shape in shapes.items()}
    if mode == 'local':
        state |= {f'norm_{k}.{part}': draw(6) for k in 'hw' for part in ('weight', 'bias')}
    return state


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize(
    'mode, cls, formula',
    [
        ('simple', 'SimpleCoordAttn', simple),
        ('local', 'EfficientLocalAttn', local),
        ('strip', 'StripAttn', strip),
    ],
)
def test_timms_weights(mode, cls, formula, bias):
    ctor = dict(channels=6, bias=bias)
    state = timm_state(mode, bias)
    block = from_author('coord', cls, ctor, state)
    assert block.mode == mode
    names = 'fc_h' if mode == 'simple' else 'conv_h', 'fc_w' if mode == 'simple' else 'conv_w'
    for name, branch in zip(names, (block.rows, block.columns)):
        layer = branch if mode == 'simple' else branch.conv
        assert torch.equal(layer.weight.flatten(), state[f'{name}.weight'].flatten())
    agree(block, formula, draw(2, 6, 4, 3))


def test_strips_without_convolution():
    """timm's `StripAttn(use_conv=False)` has no weights: the gate is that of the means' sum."""
    block = from_author('coord', 'StripAttn', dict(channels=5, use_conv=False, rd_ratio=0.5), {})
    x = draw(2, 5, 4, 3)
    z_h, z_w = strips(x)
    torch.testing.assert_close(block(x), times_mask(x, z_h, z_w, 'paper'), rtol=0, atol=1e-12)
    block(x.float())


@pytest.mark.parametrize('names', [('conv_h', 'conv_w'), ('conv2', 'conv3')])
def test_weights_of_both_classes_of_the_authors(names):
    """The width follows from the weights; the second class has other names."""
    source = randomise(CoordinateAttention(10, reduction=3, min_channels=1).double()).eval()
    table = {'reduce.conv': 'conv1', 'reduce.bn': 'bn1', 'rows': names[0], 'columns': names[1]}
    state = {}
    for key, value in source.state_dict().items():
        layer, _, kind = key.rpartition('.')
        state[f'{table[layer]}.{kind}'] = value
    argument = 'reduction' if names[0] == 'conv_h' else 'groups'
    block = from_author('coord', 'CoordAtt', {'inp': 10, 'oup': 10, argument: 3}, state)
    x = draw(2, 10, 3, 4)
    assert torch.equal(block(x), source(x))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(mode='ela'), "mode='ela', allowed 'coordinate', 'simple', 'local', 'strip'"),
        (dict(reduction=0), 'reduction=0, allowed whole numbers from 1'),
        (dict(reduction=9), r'reduction=9, allowed 1\.\.in_channels=8'),
        (dict(min_channels=0), 'min_channels=0, allowed whole numbers from 1'),
        (dict(kernel_size=3), "kernel_size=3 without effect with mode='coordinate'"),
        (dict(bias=1.5), 'bias=1.5, allowed True, False'),
        (dict(mode='simple', kernel_size=3), "kernel_size=3 without effect with mode='simple'"),
        (dict(mode='local', reduction=2), "reduction=2 without effect with mode='local'"),
        (dict(mode='strip', min_channels=2), "min_channels=2 without effect with mode='strip'"),
        (dict(mode='local', kernel_size=4), 'kernel_size=4, allowed odd numbers'),
        (dict(mode='strip', kernel_size=0), 'kernel_size=0, allowed whole numbers from 1'),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'CoordinateAttention: {message}'):
        CoordinateAttention(8, **arguments)
