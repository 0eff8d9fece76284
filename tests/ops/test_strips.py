import pytest
import torch

from mmattn.ops import (
    max_mean_strips,
    scale_by_product,
    scale_by_sigmoid,
    scale_by_sum,
    strip_means,
)
from tests.blocks.slow import draw

FORMS = {
    'contiguous': lambda x: x,
    'channels_last': lambda x: x.to(memory_format=torch.channels_last),
    'sliced': lambda x: x.repeat(1, 2, 1, 2)[:, : x.shape[1], :, : x.shape[3]],
    'transposed': lambda x: x.mT.contiguous().mT,
}
SIZES = [(4, 3, 5, 6), (1, 1, 1, 1), (2, 3, 1, 4), (2, 3, 4, 1), (1, 1, 3, 4)]


def same(found, wanted, inputs):
    """The same values and gradients."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    grads = [
        torch.autograd.grad(sum((t * (t.detach() + 1).cos()).sum() for t in results), inputs)
        for results in (found, wanted)
    ]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', SIZES)
def test_means(size, form):
    x = FORMS[form](draw(*size)).requires_grad_()
    same(list(strip_means(x)), [x.mean(3, keepdim=True), x.mean(2, keepdim=True)], [x])


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('axes', [(2, 3, 1), (2, 3), (1, 3)])
@pytest.mark.parametrize('size', SIZES)
def test_maxima_and_means(size, axes, form):
    x = FORMS[form](draw(*size)).requires_grad_()
    wanted = [(x.max(a, keepdim=True).values, x.mean(a, keepdim=True)) for a in axes]
    found = max_mean_strips(x, axes)
    same([t for pair in found for t in pair], [t for pair in wanted for t in pair], [x])


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('axis', [1, 2, 3])
def test_the_first_of_equals(axis, form):
    x = FORMS[form](torch.randint(0, 3, (2, 6, 5, 7)).double()).requires_grad_()
    maximum, _ = max_mean_strips(x, (axis, axis % 3 + 1))[0]
    (grad,) = torch.autograd.grad(maximum.sum(), x)
    for line, its_grad in zip(
        x.movedim(axis, 3).flatten(0, 2), grad.movedim(axis, 3).flatten(0, 2)
    ):
        places = its_grad.nonzero().flatten().tolist()
        assert places == [line.tolist().index(max(line))] and its_grad.sum() == 1


def test_nan_is_a_maximum_and_has_a_gradient():
    x = draw(1, 2, 3, 4)
    x[0, 0, 1, 1] = float('nan')
    x.requires_grad_()
    maximum, _ = max_mean_strips(x, (2, 3))[0]
    assert maximum.isnan().sum() == 1
    maximum.nansum().backward()


def rules(rows, columns, images):
    return {
        'product': (scale_by_product, (rows, columns), rows * columns),
        'sum': (scale_by_sum, (rows, columns, images), rows + columns + images),
        'sum of two': (scale_by_sum, (rows, columns), rows + columns),
        'sigmoid': (scale_by_sigmoid, (rows, columns), (rows + columns).sigmoid()),
        'twice': (
            lambda x, *strips: scale_by_sigmoid(x, *strips, 2),
            (rows, columns),
            2 * (rows + columns).sigmoid(),
        ),
    }


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('rule', rules(*torch.zeros(3)))
@pytest.mark.parametrize('size', SIZES)
def test_scaling(size, rule, form):
    x = FORMS[form](draw(*size)).requires_grad_()
    n, c, h, w = size
    strips = [draw(*s).requires_grad_() for s in ((n, c, h, 1), (n, c, 1, w), (n, 1, h, w))]
    scale, given, factor = rules(*strips)[rule]
    same([scale(x, *given)], [x * factor], [x, *given])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_half_precision(form, dtype):
    """Results are in the dtype of the map, strips and their gradients in fp32."""
    x = FORMS[form]((1000 * torch.rand(2, 3, 200, 150)).to(dtype)).requires_grad_()
    rows, columns = strip_means(x)
    assert rows.dtype == columns.dtype == torch.float32
    strips = [(t.detach() / 1000).requires_grad_() for t in (rows, columns)]
    y = scale_by_product(x, *strips)
    assert y.dtype == dtype
    grads = torch.autograd.grad(y, strips, torch.full_like(y, 10))  # sums beyond 65504
    twins = [t.detach().requires_grad_() for t in strips]
    wide = x.detach().float() * (twins[0] * twins[1])
    torch.testing.assert_close(y.float(), wide, rtol=1e-2, atol=1e-2)
    wanted = torch.autograd.grad(wide, twins, torch.full_like(wide, 10))
    torch.testing.assert_close(grads, wanted, rtol=1e-4, atol=1)
