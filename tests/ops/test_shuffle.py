import pytest
import torch

from mmattn import ops
from mmattn.benchmarks.timing import saved_bytes
from mmattn.ops import shuffle as module
from tests.blocks.slow import draw

FORMS = {
    'contiguous': lambda x: x,
    'channels_last': lambda x: x.to(memory_format=torch.channels_last),
    'sliced': lambda x: x.repeat(1, 2, 1, 2)[:, : x.shape[1], :, : x.shape[3]],
    'transposed': lambda x: x.mT.contiguous().mT,
}
EPS = 1e-5


def plain(x, groups, channel, spatial, factor, shuffle):
    """By the formula, one channel after another."""
    k, maps = x.shape[1] // (2 * groups), []
    for c in range(x.shape[1]):
        i, mean = c % k, x[:, c].mean((1, 2), keepdim=True)
        if c // k % 2 == 0:
            z = channel[0][i] * mean + channel[1][i]
        else:
            t = (x[:, c] - mean) / (x[:, c].var((1, 2), correction=0, keepdim=True) + EPS).sqrt()
            z = spatial[0][i] * t + spatial[1][i]
        maps.append(x[:, c] * factor * z.sigmoid())
    y = torch.stack(maps, 1)
    return ops.channel_shuffle(y, 2) if shuffle else y


def inputs(groups, k, size=(3, 4), batch=3, dtype=torch.float64, form='contiguous'):
    x = FORMS[form](draw(batch, 2 * groups * k, *size).to(dtype))
    return [t.requires_grad_() for t in (x, *draw(4, k).unbind())]


def run(x, a, b, c, d, groups, factor=1, shuffle=True):
    return ops.shuffle_attention(x, groups, (a, b), (c, d), EPS, factor, shuffle)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('groups, k', [(1, 3), (2, 2), (3, 2), (4, 1), (5, 3)])
@pytest.mark.parametrize('factor, shuffle', [(1, True), (2, False)])
@pytest.mark.parametrize('part', [1, 40, 100, 1 << 17])
def test_formula(groups, k, factor, shuffle, form, part, monkeypatch):
    monkeypatch.setattr(module, '_PART', part)
    given = inputs(groups, k, form=form)
    x, a, b, c, d = given
    y = run(*given, groups, factor, shuffle)
    expected = plain(x, groups, (a, b), (c, d), factor, shuffle)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, given, weight)
    for found, grad in zip(torch.autograd.grad(y, given, weight), wanted):
        torch.testing.assert_close(found, grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('size', [(1, 1), (2, 3)])
def test_gradcheck(form, size):
    given = inputs(2, 2, size, form=form)
    assert torch.autograd.gradcheck(lambda *t: run(*t, 2, 2), given, fast_mode=True)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shuffle', [True, False])
def test_half_precision(form, dtype, shuffle):
    given = inputs(3, 2, (20, 30), dtype=dtype, form=form)
    wide = [t.detach().float().requires_grad_() for t in given]
    y, wanted = run(*given, 3, 2, shuffle), run(*wide, 3, 2, shuffle)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), wanted, rtol=eps, atol=0.01 * eps)
    weight = torch.randn_like(y)
    grads = torch.autograd.grad(y, given, weight), torch.autograd.grad(wanted, wide, weight.float())
    assert [t.dtype for t in grads[0]] == [t.dtype for t in given]
    for found, grad in zip(*grads):
        torch.testing.assert_close(found.to(grad.dtype), grad, rtol=2 * eps, atol=0.1 * eps)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_far_mean(form):
    """In fp32, of channels far from 0."""
    given = inputs(2, 3, (9, 7), form=form)
    with torch.no_grad():
        given[0] += 2**10
    narrow = [t.detach().float().requires_grad_() for t in given]
    y, wanted = run(*narrow, 2), run(*given, 2)
    torch.testing.assert_close(y, wanted.float(), rtol=1e-3, atol=0)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_memory_format(form):
    """Result and gradient are in the format of the map, and only numbers a channel are saved."""
    given = inputs(4, 2, form=form)
    y = run(*given, 4)
    memory_format = getattr(torch, 'contiguous_format' if form == 'contiguous' else form)
    assert y.is_contiguous(memory_format=memory_format)
    (grad,) = torch.autograd.grad(y.sum(), given[:1])
    assert grad.is_contiguous(memory_format=memory_format)
    x, *weights = (t.detach() for t in given)
    saved = saved_bytes(lambda x: run(x, *weights, 4), [x], weights)
    assert saved == (2 * 3 + 3) * x.shape[1] * x.element_size()  # mean, deviation; 3 parameters


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_no_image(form):
    given = inputs(2, 2, batch=0, form=form)
    y = run(*given, 2)
    grads = torch.autograd.grad(y.sum(), given)
    assert y.shape == given[0].shape and all((t == 0).all() for t in grads)
