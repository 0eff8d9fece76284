import pytest
import torch

from mmattn import CAM
from tests.blocks.slow import agree, agree_with_peer, draw, drawn, softmax


def formula(block, x, **_):
    out = []
    for image in x:
        rows = image.flatten(1)
        for row in rows:
            energy = [row @ other for other in rows]
            weights = softmax([max(energy) - e for e in energy])  # the least similar weigh most
            out.append(sum(w * other for w, other in zip(weights, rows)))
    return block.gamma.scale * torch.stack(out).reshape(x.shape) + x


@pytest.mark.parametrize('in_channels', [5, None])
@pytest.mark.parametrize('scale', [0.2, 1, 10])
def test_formula(scale, in_channels):
    agree(drawn(CAM(in_channels)), formula, scale * draw(2, 5, 4, 3))


@pytest.mark.openmmlab
@pytest.mark.parametrize('scale', [0.2, 1])
def test_mmseg(scale):
    theirs = pytest.importorskip('mmseg.models.decode_heads.da_head').CAM
    agree_with_peer(CAM(), theirs(), scale * draw(2, 8, 5, 4))


def test_start():
    block, x = CAM(), torch.randn(2, 6, 4, 3)
    assert {k: v.shape for k, v in block.state_dict().items()} == {'gamma.scale': ()}
    assert block.gamma.scale == 0 and torch.equal(block(x), x)


def test_channels_are_checked_where_given():
    x = torch.randn(1, 6, 3, 2)
    assert CAM()(x).shape == x.shape
    with pytest.raises(ValueError, match=r'CAM: input \(1, 6, 3, 2\), allowed \(N, 8, H, W\)'):
        CAM(8)(x)
    with pytest.raises(ValueError, match='CAM: in_channels=0, allowed whole numbers from 1'):
        CAM(0)


@pytest.mark.parametrize('shape', [(2, 6, 4), (6,)])
def test_refused_input(shape):
    with pytest.raises(ValueError, match='CAM: input'):
        CAM()(torch.randn(shape))
