import pytest
import torch

from mmattn import TripletAttention
from mmattn.zoo import from_author
from tests.blocks.slow import agree, batch_norm, conv, draw, drawn, parameters, sigmoid
from tests.conftest import randomise


def pooled(slices):
    """Maximum first, then the mean: a list of images (N, A, B) -> (N, 2, A, B)."""
    total, largest = slices[0], slices[0]
    for t in slices[1:]:
        total, largest = total + t, torch.where(t > largest, t, largest)  # the first of equals
    return torch.stack([largest, total / len(slices)], 1)


def gate(image, layers, init):
    z = conv(image, layers.conv, padding=layers.conv.weight.shape[-1] // 2)
    return sigmoid(batch_norm(z, layers.bn, momentum=0.01), init)[:, 0]


def formula(block, x, init='paper', spatial=True):
    _, channels, height, width = x.shape
    by_height = gate(pooled([x[:, :, i] for i in range(height)]), block.cw, init)  # (N, C, W)
    columns = [x[:, :, :, j].mT for j in range(width)]
    by_width = gate(pooled(columns), block.hc, init)  # (N, H, C)
    if spatial:
        by_channel = gate(pooled([x[:, c] for c in range(channels)]), block.hw, init)  # (N, H, W)
    pixels = []
    for i in range(height):
        for j in range(width):
            gates = by_height[:, :, j] + by_width[:, i]
            if spatial:
                gates = gates + by_channel[:, i, j, None]
            pixels.append(x[:, :, i, j] * gates / (3 if spatial else 2))
    return torch.stack(pixels, 2).unflatten(2, (height, width))


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('spatial', [True, False])
@pytest.mark.parametrize('kernel_size', [1, 3, 7])
@pytest.mark.parametrize('size', [(4, 3), (1, 5), (3, 1)])
def test_formula(size, kernel_size, spatial, train):
    block = drawn(TripletAttention(5, kernel_size=kernel_size, spatial=spatial), train)
    agree(block, formula, draw(2, 5, *size), spatial=spatial)


@pytest.mark.parametrize('spatial', [True, False])
def test_gates_of_the_identity_start(spatial):
    block = drawn(TripletAttention(4, kernel_size=3, spatial=spatial, init='identity'))
    agree(block, formula, draw(2, 4, 3, 4), init='identity', spatial=spatial)


def test_one_pixel():
    agree(drawn(TripletAttention(5)), formula, draw(1, 5, 1, 1))


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_a_maximum_goes_to_the_first_of_equals(form):
    x = torch.randint(0, 3, (2, 5, 4, 6)).double().to(memory_format=form)
    agree(drawn(TripletAttention(5, kernel_size=3)), formula, x)


def test_the_maximum_comes_first():
    """The two channels of a kernel exchanged is another function."""
    block, x = drawn(TripletAttention(5, kernel_size=3)), draw(2, 5, 4, 6)
    y = block(x)
    for name in 'cw', 'hc', 'hw':
        twin = drawn(TripletAttention(5, kernel_size=3))
        twin.load_state_dict(block.state_dict())
        weight = getattr(twin, name).conv.weight
        weight.data = weight.data.flip(1)
        assert (twin(x) - y).abs().max() > 1e-3


def test_channels_have_an_order():
    """Two of the convolutions slide over the channels."""
    block, x = drawn(TripletAttention(6, kernel_size=3)), draw(2, 6, 4, 5)
    assert (block(x.flip(1)).flip(1) - block(x)).abs().max() > 1e-3


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
def test_only_strips_are_saved_for_backward(form):
    block = TripletAttention(32)
    x = torch.randn(2, 32, 32, 32).to(memory_format=form).requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel() if t.data_ptr() != x.data_ptr() else 0) or t, lambda t: t
    ):
        assert block(x).is_contiguous(memory_format=form)
    assert max(sizes) <= x.numel() // 8


def test_keys_and_parameters():
    block = TripletAttention(64)
    kinds = 'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'
    norms = {f'{name}.bn.{kind}' for name in ('cw', 'hc', 'hw') for kind in kinds}
    assert set(block.state_dict()) == norms | {'cw.conv.weight', 'hc.conv.weight', 'hw.conv.weight'}
    assert block.cw.conv.weight.shape == (1, 2, 7, 7) and block.cw.bn.momentum == 0.01
    # 16 blocks of ResNet-50: 4800, and 960 with kernels of 3
    assert [parameters(TripletAttention, 256, kernel_size=k) for k in (7, 3)] == [300, 60]
    assert parameters(TripletAttention, 256, spatial=False) == 200


def test_the_authors_start_holds_the_spatial_gate_at_a_half():
    block = TripletAttention(8)
    assert (block.hw.bn.weight == 0).all() and (block.cw.bn.weight == 1).all()
    assert (block.spatial_gate(*torch.randn(2, 2, 1, 4, 5)) == 0.5).all()
    block = TripletAttention(8, init='identity')
    assert all((layers.bn.weight == 0).all() for layers in (block.cw, block.hc, block.hw))


@pytest.mark.parametrize(
    'channels, size, gate',
    [(1, (3, 1), 'C and W'), (1, (1, 3), 'H and C'), (2, (1, 1), 'H and W')],
)
def test_one_value_in_training(channels, size, gate):
    message = f'TripletAttention: the batch norm of the gate over {gate} sees batch size 1 with one'
    block, x = TripletAttention(channels).train(), torch.randn(1, channels, *size)
    before = {k: v.clone() for k, v in block.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        block(x)
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())
    assert block.eval()(x).isfinite().all()


ROOT = {'cw': 'cw.conv', 'hc': 'hc.conv', 'hw': 'hw.conv'}
MODELS = {'cw': 'ChannelGateH.spatial', 'hc': 'ChannelGateW.spatial', 'hw': 'SpatialGate.spatial'}


@pytest.mark.parametrize('size', [(3, 4), (1, 5), (1, 1)])
@pytest.mark.parametrize('spatial', [True, False])
@pytest.mark.parametrize('kernel_size', [3, 7])
@pytest.mark.parametrize('names', [ROOT, MODELS], ids=['root', 'MODELS'])
def test_the_authors_weights(names, kernel_size, spatial, size):
    source = TripletAttention(6, kernel_size=kernel_size, spatial=spatial)
    source = randomise(source.double()).eval()
    state = {f'{names[k[:2]]}{k[2:]}': v for k, v in source.state_dict().items()}
    ctor = {} if spatial else dict(no_spatial=True)
    if names is MODELS:
        ctor |= dict(gate_channels=6, reduction_ratio=16, pool_types=['avg', 'max'])
    block = from_author('triplet', 'TripletAttention', ctor, state, in_channels=6)
    assert block.kernel_size == kernel_size and block.has_spatial == spatial
    agree(block, formula, draw(2, 6, *size), spatial=spatial)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kernel_size=4), 'kernel_size=4, allowed odd numbers'),
        (dict(kernel_size=0), 'kernel_size=0, allowed whole numbers from 1'),
        (dict(spatial='no'), "spatial='no', allowed True, False"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'TripletAttention: {message}'):
        TripletAttention(8, **arguments)
