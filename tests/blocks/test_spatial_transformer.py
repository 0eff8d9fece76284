import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmattn import SpatialTransformer
from tests.blocks.slow import agree, conv, draw, drawn, grid_means, linear, sample

FORMS = [(mode, corners) for mode in ('border', 'zeros') for corners in (False, True)]
THETA = [0.9, 0.4, 0.2, -0.3, 1.1, -0.1]  # turns, and reads beyond the map at some places


def bent(block):
    """A drawn block whose transforms stay near THETA, and differ between images."""
    last = drawn(block).localization[-1]
    with torch.no_grad():
        last.weight *= 0.05
        last.bias.copy_(last.bias.new_tensor(THETA))
    return block


def coordinate(index, size, align_corners):
    if align_corners:
        return 2 * index / (size - 1) - 1 if size > 1 else 0
    return (2 * index + 1) / size - 1


def warp(x, theta, padding_mode, align_corners):
    height, width = x.shape[2:]
    pixels = []
    for image, t in zip(x, theta):
        for i in range(height):
            for j in range(width):
                x_t, y_t = coordinate(j, width, align_corners), coordinate(i, height, align_corners)
                x_s, y_s = (row[0] * x_t + row[1] * y_t + row[2] for row in t)
                if align_corners:
                    place = (y_s + 1) / 2 * (height - 1), (x_s + 1) / 2 * (width - 1)
                else:
                    place = ((y_s + 1) * height - 1) / 2, ((x_s + 1) * width - 1) / 2
                pixels.append(sample(image, *place, padding_mode))
    return torch.stack(pixels).unflatten(0, (len(x), height, width)).permute(0, 3, 1, 2)


def formula(block, x, padding_mode='border', align_corners=False):
    layers = block.localization
    grid = grid_means(conv(x, layers[0]).clamp(min=0), 4)  # (N, 32, 16)
    theta = linear(linear(grid.flatten(1), layers[4]).clamp(min=0), layers[6]).unflatten(1, (2, 3))
    return warp(x, theta, padding_mode, align_corners)


@pytest.mark.parametrize('padding_mode, align_corners', FORMS)
@pytest.mark.parametrize('size', [(4, 5), (7, 3), (1, 6), (5, 1)])
def test_formula(size, padding_mode, align_corners):
    arguments = dict(padding_mode=padding_mode, align_corners=align_corners)
    block = bent(SpatialTransformer(3, **arguments))
    agree(block, formula, draw(2, 3, *size), **arguments)


@pytest.mark.parametrize('padding_mode, align_corners', FORMS)
def test_torchs_sampling(padding_mode, align_corners):
    block = bent(SpatialTransformer(3, padding_mode=padding_mode, align_corners=align_corners))
    x = draw(4, 3, 9, 13)
    grid = F.affine_grid(block.theta(x), list(x.shape), align_corners)
    expected = F.grid_sample(x, grid, 'bilinear', padding_mode, align_corners)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-10)


def tutorial():
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 7), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 10, 5), nn.MaxPool2d(2)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(90, 32), nn.ReLU(), nn.Linear(32, 6)),
    )


class Constant(nn.Module):
    """A localization that sees nothing of the map but how many images there are."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 6)

    def forward(self, x):
        return self.linear(x.new_ones(len(x), self.linear.in_features))


def test_a_localization_of_ones_own():
    block = SpatialTransformer(1, localization=tutorial(), padding_mode='zeros')
    layers = {key.split('.')[1] for key in block.state_dict()}
    assert layers == {'0', '3', '7', '9'}
    x = draw(2, 1, 28, 28)
    assert torch.equal(block.double()(x), x)
    theta = bent(block).localization(x).unflatten(1, (2, 3))
    torch.testing.assert_close(block(x), warp(x, theta, 'zeros', False), rtol=0, atol=1e-10)


def test_a_localization_from_a_config():
    block = SpatialTransformer(2, localization=dict(type=Constant, width=3))
    assert block.localization.linear.in_features == 3
    block, x = drawn(block), draw(2, 2, 4, 3)
    theta = block.localization(x).unflatten(1, (2, 3))
    torch.testing.assert_close(block(x), warp(x, theta, 'border', False), rtol=0, atol=1e-10)


@pytest.mark.parametrize('padding_mode, align_corners', FORMS)
def test_start(padding_mode, align_corners):
    block = SpatialTransformer(8, padding_mode=padding_mode, align_corners=align_corners)
    x = torch.randn(2, 8, 31, 57)
    assert torch.equal(block(x), x)
    last = block.localization[6]
    assert (last.weight == 0).all() and last.bias.tolist() == [1, 0, 0, 0, 1, 0]
    keys = {f'localization.{i}.{kind}' for i in (0, 4, 6) for kind in ('weight', 'bias')}
    assert set(block.state_dict()) == keys


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(padding_mode='reflection'), "padding_mode='reflection', allowed 'border', 'zeros'"),
        (
            dict(localization=nn.Conv2d(8, 6, 1)),
            'localization without a last nn.Linear of 6 outputs',
        ),
        (
            dict(localization=nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))),
            'without a last nn.Linear of 6',
        ),
        (dict(localization=nn.Linear(8, 6, bias=False)), 'localization'),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'SpatialTransformer: .*{message}'):
        SpatialTransformer(8, **arguments)
