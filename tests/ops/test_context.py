import pytest
import torch

from mmattn.benchmarks.timing import saved_bytes
from mmattn.ops import context_pool
from tests.blocks.slow import draw

FORMS = {
    'contiguous': lambda x: x.contiguous(),
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'sliced': lambda x: x.repeat(1, 2, 1, 2)[:, : x.shape[1], :, : x.shape[3]],
    'transposed': lambda x: x.mT.contiguous().mT,
}
SIZES = [(2, 6, 5, 7), (3, 4, 1, 1), (1, 1, 3, 1), (0, 3, 4, 5)]


def plain(x, weight, bias):
    logits = torch.einsum('nchw,ic->nihw', x, weight[:, :, 0, 0]) + bias[:, None, None]
    weights = logits.flatten(2).softmax(2).view_as(logits)
    return (x * weights).sum((2, 3)), weights


def arguments(size, form='contiguous'):
    values = FORMS[form](draw(*size)), draw(1, size[1], 1, 1), draw(1)
    return [t.requires_grad_() for t in values]


def same(outputs, wanted, inputs, tolerance=1e-12):
    """The same values and gradients."""
    close = dict(rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(outputs, wanted, **close)
    factors = [torch.randn_like(t) for t in wanted]
    grads = [torch.autograd.grad(results, inputs, factors) for results in (outputs, wanted)]
    torch.testing.assert_close(*grads, **close)


@pytest.mark.parametrize('which', [[0], [1], [0, 1]])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('size', SIZES)
def test_equals_the_formula(size, form, which):
    """Each of the results alone has a gradient, too."""
    inputs = arguments(size, form)
    found, wanted = context_pool(*inputs), plain(*inputs)
    assert torch.equal(found[0].isfinite(), wanted[0].isfinite())
    same([found[k] for k in which], [wanted[k] for k in which], inputs)


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_the_gradient_is_in_the_format_of_x(form):
    inputs = arguments((2, 6, 5, 7), form)
    (grad,) = torch.autograd.grad(context_pool(*inputs)[0].sum(), inputs[0])
    assert grad.stride() == inputs[0].stride()


@pytest.mark.parametrize('number', range(3))
def test_one_gradient_alone(number):
    inputs = arguments((2, 3, 4, 5))
    for k, value in enumerate(inputs):
        value.requires_grad_(k == number)
    same(context_pool(*inputs), plain(*inputs), inputs[number])


def test_gradcheck():
    assert torch.autograd.gradcheck(context_pool, arguments((2, 3, 2, 4)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_half_precision(form, dtype):
    """The context is in the dtype of x, weights in fp32; fp32 parameters of a half map are taken."""
    inputs = [t.detach().to(dtype).requires_grad_() for t in arguments((2, 16, 20, 30), form)]
    wide = [t.detach().float().requires_grad_() for t in inputs]
    wanted = plain(*wide)
    for values in inputs, [inputs[0], *wide[1:]]:
        found = context_pool(*values)
        assert found[0].dtype == dtype and found[1].dtype == torch.float32
        for a, b in zip(found, wanted):
            torch.testing.assert_close(a.float(), b, rtol=0.1, atol=0.05)
        ours, theirs = (
            torch.autograd.grad(t[0].float().sum(), v[:2], retain_graph=True)
            for t, v in ((found, values), (wanted, wide))
        )
        for a, b in zip(ours, theirs):
            assert (a.float() - b).norm() < 0.1 * b.norm()


@pytest.mark.parametrize('form', ['contiguous', 'channels_last'])
def test_saves_x_and_the_weights(form):
    x, *parameters = (t.detach() for t in arguments((2, 8, 9, 10), form))
    saved = saved_bytes(lambda t: context_pool(t, *parameters)[0], [x], parameters)
    assert saved == 2 * 9 * 10 * x.element_size()
