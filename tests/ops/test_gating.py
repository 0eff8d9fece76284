import pytest
import torch
from torch.autograd import gradcheck

from mmattn.ops import project_gated


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
def test_equals_its_parts(form, bias, dtype, tolerance):
    x = draw(2, 5, 3, 4, dtype=dtype).detach().contiguous(memory_format=form).requires_grad_()
    values = [x, draw(2, 1, 3, 4, dtype=dtype), draw(7, 5, dtype=dtype)]
    values += [draw(7, dtype=dtype)] if bias else []
    found = project_gated(*values)
    wanted = torch.einsum('nchw,nihw,oc->nohw', *values[:3])
    wanted = wanted + values[3][:, None, None] if bias else wanted
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    weight = torch.randn_like(wanted)
    pairs = [torch.autograd.grad(y, values, weight) for y in (found, wanted)]
    for ours, theirs in zip(*pairs):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
def test_memory_format(form):
    x = draw(2, 5, 3, 4).detach().contiguous(memory_format=form).requires_grad_()
    y = project_gated(x, draw(2, 1, 3, 4), draw(7, 5))
    y.sum().backward()
    assert y.is_contiguous(memory_format=form) and x.grad.is_contiguous(memory_format=form)


def test_views_and_an_empty_batch():
    values = [draw(2, 6, 4, 5), draw(2, 1, 4, 5), draw(7, 6), draw(7)]
    pairs = []
    for x, gate in (values[0].mT, values[1].mT), (values[0].mT.contiguous(), values[1].mT):
        y = project_gated(x, gate, *values[2:])
        pairs.append([y, *torch.autograd.grad(y.square().sum(), values)])
    for ours, theirs in zip(*pairs):
        torch.testing.assert_close(ours, theirs)
    empty = [draw(0, 6, 4, 5), draw(0, 1, 4, 5)]
    y = project_gated(*empty, *values[2:])
    assert y.shape == (0, 7, 4, 5)
    y.sum().backward()
    assert all(t.grad.shape == t.shape for t in empty) and not values[2].grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
def test_half_precision(form, dtype):
    shapes = (2, 16, 5, 4), (2, 1, 5, 4), (8, 16), (8,)
    values = [draw(*shape, dtype=dtype) for shape in shapes]
    values[0] = values[0].detach().contiguous(memory_format=form).requires_grad_()
    wide = [value.detach().float().requires_grad_() for value in values]
    found, wanted = (project_gated(*each) for each in (values, wide))
    assert found.dtype == dtype
    weight = torch.randn_like(found)
    pairs = (
        (y, *torch.autograd.grad(y, each, weight.to(y.dtype)))
        for y, each in ((found, values), (wanted, wide))
    )
    for a, b in zip(*pairs):
        assert (a.float() - b).abs().max() <= 8 * torch.finfo(dtype).eps * b.abs().max()


def test_gradients():
    assert gradcheck(project_gated, (draw(2, 3, 2, 3), draw(2, 1, 2, 3), draw(4, 3), draw(4)))


@pytest.mark.parametrize('number', range(4))
def test_one_gradient_alone(number):
    values = [draw(2, 3, 2, 3), draw(2, 1, 2, 3), draw(4, 3), draw(4)]
    whole = torch.autograd.grad(project_gated(*values).sum(), values)[number]
    for k, value in enumerate(values):
        value.requires_grad_(k == number)
    project_gated(*values).sum().backward()
    torch.testing.assert_close(values[number].grad, whole)


def test_only_its_inputs_are_kept():
    values, kept = [draw(2, 3, 2, 3), draw(2, 1, 2, 3), draw(4, 3), draw(4)], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        project_gated(*values)
    known = {value.data_ptr() for value in values}
    assert {t.data_ptr() for t in kept} <= known
