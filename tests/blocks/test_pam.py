import pytest
import torch

from mmattn import PAM
from tests.blocks.slow import agree, agree_with_peer, conv, draw, drawn, parameters, softmax


def formula(block, x, **_):
    q, k, v = (
        conv(x, layer) for layer in (block.query_project, block.key_project, block.value_project)
    )
    out = []
    for n in range(len(x)):
        keys, values = k[n].flatten(1).T, v[n].flatten(1).T
        for query in q[n].flatten(1).T:
            weights = softmax([query @ key for key in keys])
            out.append(sum(w * value for w, value in zip(weights, values)))
    context = torch.stack(out).unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)
    return block.gamma.scale * context + x


@pytest.mark.parametrize('arguments', [(16,), (9,), (6, 3), (2, 5)])
def test_formula(arguments):
    agree(drawn(PAM(*arguments)), formula, draw(2, arguments[0], 4, 3))


@pytest.mark.openmmlab
@pytest.mark.parametrize('arguments', [(16, 2), (8, 8)])
def test_mmseg(arguments):
    theirs = pytest.importorskip('mmseg.models.decode_heads.da_head').PAM
    agree_with_peer(PAM(*arguments), theirs(*arguments), draw(2, arguments[0], 5, 4))


def test_start():
    block, x = PAM(64), torch.randn(2, 64, 4, 3)
    assert block.gamma.scale == 0 and torch.equal(block(x), x)
    for layer in block.query_project, block.key_project, block.value_project:
        assert 0.8 < layer.weight.abs().max() * 64**0.5 <= 1
        assert 0 < layer.bias.abs().max() * 64**0.5 <= 1


@pytest.mark.parametrize(
    'channels, count', [(256, 82241), (512, 328321), (1024, 1312001), (2048, 5245441)]
)
def test_parameters(channels, count):
    assert parameters(PAM, channels) == count


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((7,), 'PAM: in_channels=7 without channels, allowed 8 and more, or give channels'),
        ((16, 0), 'PAM: channels=0, allowed whole numbers from 1'),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PAM(*arguments)
