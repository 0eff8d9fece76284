import pytest
import torch

from mmattn import ops
from mmattn.benchmarks.timing import saved_bytes
from mmattn.ops import channel_groups
from tests.blocks.slow import draw

FORMS = {
    'contiguous': lambda x: x,
    'channels_last': lambda x: x.to(memory_format=torch.channels_last),
    'sliced': lambda x: x.repeat(1, 2, 1, 2)[:, : x.shape[1], :, : x.shape[3]],
    'transposed': lambda x: x.mT.contiguous().mT,
}
EPS = 1e-2


def plain(x, groups, weight, bias, factor=1):
    parts = x.unflatten(1, (groups, -1)).flatten(3)
    t = (parts * parts.mean(3, keepdim=True)).sum(2)
    t = t - t.mean(2, keepdim=True)
    if t.shape[2] > 1:
        t = t / (t.std(2, keepdim=True) + EPS)
    gate = factor * (t * weight[:, None] + bias[:, None]).sigmoid()
    return (parts * gate[:, :, None]).reshape(x.shape)


def inputs(groups, k=3, size=(3, 4), batch=3, dtype=torch.float64, form='contiguous'):
    x = FORMS[form](draw(batch, groups * k, *size).to(dtype))
    return [t.requires_grad_() for t in (x, *draw(2, groups).unbind())]


def run(x, weight, bias, groups, factor=1):
    return ops.group_enhance(x, groups, weight, bias, EPS, factor)


def same(found, wanted, given, tolerance):
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    weight = torch.randn_like(wanted)
    grads = [torch.autograd.grad(t, given, weight) for t in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('groups, k', [(1, 1), (1, 5), (4, 1), (3, 2)])
@pytest.mark.parametrize('factor', [1, 2])
@pytest.mark.parametrize('part', [1, 50, 1 << 18])
@pytest.mark.parametrize('size', [(1, 1), (1, 2), (3, 4)])
def test_formula(groups, k, size, factor, form, part, monkeypatch):
    monkeypatch.setattr(channel_groups, '_PART', part)
    given = inputs(groups, k, size, form=form)
    x, weight, bias = given
    same(run(*given, groups, factor), plain(x, groups, weight, bias, factor), given, 1e-12)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_gradcheck(form):
    given = inputs(2, 2, (2, 3), 2, form=form)
    assert torch.autograd.gradcheck(lambda *t: run(*t, 2, 2), given)


@pytest.mark.parametrize('value', [0, 3])
def test_a_constant_map(value):
    """It deviates nowhere; its gradients are those of autograd, which gives a root of 0 slope 0."""
    x, weight, bias = inputs(2)
    x = torch.full_like(x, value).requires_grad_()
    y = run(x, weight, bias, 2)
    torch.testing.assert_close(y, x * bias.sigmoid().repeat_interleave(3)[:, None, None])
    grads = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert all(t.isfinite().all() for t in grads)
    t = ops.group_similarity(x.unflatten(1, (2, -1)).flatten(3), EPS)
    gate = (t * weight[:, None] + bias[:, None]).sigmoid()
    wanted = (x.unflatten(1, (2, -1)).flatten(3) * gate[:, :, None]).sum()
    torch.testing.assert_close(grads, torch.autograd.grad(wanted, (x, weight, bias)))


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(form, dtype):
    given = inputs(2, 3, (20, 30), dtype=dtype, form=form)
    wide = [t.detach().float().requires_grad_() for t in given]
    y, wanted = run(*given, 2, 2), run(*wide, 2, 2)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), wanted, rtol=eps, atol=0.01 * eps)
    weight = torch.randn_like(y)
    grads = torch.autograd.grad(y, given, weight), torch.autograd.grad(wanted, wide, weight.float())
    for found, grad, t in zip(*grads, given):
        assert found.dtype == t.dtype
        torch.testing.assert_close(found.to(grad.dtype), grad, rtol=2 * eps, atol=eps)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_memory(form):
    """Result and gradient are in the format of the map, and nothing but the map is saved."""
    given = inputs(4, 2, form=form)
    y = run(*given, 4)
    memory_format = getattr(torch, 'contiguous_format' if form == 'contiguous' else form)
    assert y.is_contiguous(memory_format=memory_format)
    (grad,) = torch.autograd.grad(y.sum(), given[:1])
    assert grad.is_contiguous(memory_format=memory_format)
    x, *weights = (t.detach() for t in given)
    before = x.clone()
    assert saved_bytes(lambda x: run(x, *weights, 4), [x], weights) == 0
    assert torch.equal(x, before)


def test_the_gradient_given_is_not_changed():
    for form in 'contiguous', 'channels_last', 'sliced':
        given, grad = inputs(2, form=form), FORMS[form](draw(3, 6, 3, 4))
        before = grad.clone()
        torch.autograd.grad(run(*given, 2), given, grad)
        assert torch.equal(grad, before)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_no_image(form):
    given = inputs(2, batch=0, form=form)
    y = run(*given, 2)
    grads = torch.autograd.grad(y.sum(), given)
    assert y.shape == given[0].shape and all((t == 0).all() for t in grads)
