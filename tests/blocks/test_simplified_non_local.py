import pytest
import torch

from mmattn import SimplifiedNonLocal
from tests.blocks.slow import agree, draw, drawn, parameters, softmax


def formula(block, x, reduction=1, **_):
    w, b = block.conv_mask.weight.flatten(), block.conv_mask.bias[0]
    layers = [block.conv_v] if reduction == 1 else list(block.conv_v)
    out = []
    for image in x:
        pixels = list(image.flatten(1).T)
        weights = softmax([w @ pixel + b for pixel in pixels])
        context = 0
        for weight, value in zip(weights, pixels):  # as eq. 3 has it: W_v inside of the sum
            for layer in layers:
                value = layer.weight[:, :, 0, 0] @ value
            context = context + weight * value
        out.append(torch.stack([pixel + context for pixel in pixels], 1))
    return torch.stack(out).reshape(x.shape)


@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('reduction', [1, 2, 3, 7])
def test_formula(reduction, init):
    arguments = dict(reduction=reduction, init=init)
    agree(drawn(SimplifiedNonLocal(7, **arguments)), formula, draw(2, 7, 4, 3), **arguments)


@pytest.mark.parametrize('reduction, layers', [(1, ['conv_v']), (4, ['conv_v.0', 'conv_v.1'])])
def test_keys(reduction, layers):
    shapes = {
        k: tuple(v.shape)
        for k, v in SimplifiedNonLocal(16, reduction=reduction).state_dict().items()
    }
    values = [(16, 16)] if reduction == 1 else [(4, 16), (16, 4)]
    expected = {f'{layer}.weight': (*s, 1, 1) for layer, s in zip(layers, values)}
    assert shapes == expected | {'conv_mask.weight': (1, 16, 1, 1), 'conv_mask.bias': (1,)}


@pytest.mark.parametrize('reduction', [1, 4])
def test_start(reduction):
    block = SimplifiedNonLocal(256, reduction=reduction)
    last = block.conv_v if reduction == 1 else block.conv_v[-1]
    assert abs(last.weight.std() / 0.01 - 1) < 0.02
    assert abs(block.conv_mask.weight.std() / (2 / 256) ** 0.5 - 1) < 0.2  # Kaiming over fan-in
    assert block.conv_mask.bias == 0


def test_identity_start_zeroes_the_last_layer_alone():
    block = SimplifiedNonLocal(16, reduction=4, init='identity')
    assert (block.conv_v[0].weight != 0).any() and (block.conv_v[1].weight == 0).all()


def test_parameters():
    assert parameters(SimplifiedNonLocal, 1024) == 1024 * 1024 + 1024 + 1


@pytest.mark.parametrize(
    'reduction, allowed', [(9, '1..in_channels=8'), (0, 'whole numbers from 1')]
)
def test_refused_arguments(reduction, allowed):
    with pytest.raises(ValueError, match=f'SimplifiedNonLocal: {reduction=}, allowed {allowed}'):
        SimplifiedNonLocal(8, reduction=reduction)
