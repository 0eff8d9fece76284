"""Fused attention against the definition in fp64; functions named check_* run in `test_kernels`."""

import math
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from mmattn import ops
from mmattn.ops import attention_triton
from mmattn.ops.attention_triton import fused_available, softmax_attention_fused
from mmattn.plugins.flops import flop_counter
from mmattn.torch_compat import HAS_OLD_EXPORT
from tests.ops.triton_checks import DEVICE, INTERPRETED, child, run_checks
from tests.ops.triton_inspect import SHARED_LIMIT, can_compile_kernels, compile_only

non_local = sys.modules['mmattn.ops.non_local']
HALF = [torch.float16, torch.bfloat16]
SCALE = 0.7

# N, P, S, E, C. Where no tile is larger than 16: several tiles of queries or keys, the last with
# one; several slices and chunks of C, the last with one channel.
TILES = [(2, 17, 5, 3, 33), (1, 5, 33, 16, 17)]
SHAPES = [(1, 1, 1, 1, 1), (2, 130, 70, 64, 40), (1, 17, 20, 128, 300), (3, 1, 9, 16, 16)]


def slow(q, k, v, scale):
    """The definition."""
    return (scale * q @ k.mT).softmax(-1) @ v


def draw(n, p, s, e, c, dtype=torch.float16):
    q, k, v, grad = (torch.randn(n, *shape) for shape in ((p, e), (s, e), (s, c), (p, c)))
    return [t.to(dtype).to(DEVICE) for t in (q / e**0.25, k / e**0.25, v, grad)]


def run(function, q, k, v, grad):
    """The result of function and its gradients, in fp64 on the CPU."""
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    out = function(*inputs, SCALE)
    out.backward(grad)
    return [t.detach().double().cpu() for t in (out, *(t.grad for t in inputs))]


def expected(q, k, v, grad):
    return run(slow, *(t.double().cpu() for t in (q, k, v, grad)))


def assert_near(found, wanted, dtype=torch.float16):
    """Apart by a rounding or two, in units of the norm; of 1 where that is less."""
    for name, a, b in zip(('out', 'q', 'k', 'v'), found, wanted, strict=True):
        assert a.shape == b.shape
        error = float((a - b).norm() / b.norm().clamp(min=1))
        # the interpreter cuts bf16 off where a GPU rounds; NaN is red as well
        assert error < 2 * torch.finfo(dtype).eps, f'{name}: {error}'


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=['all channels', 'chunks'])
def small_tiles(request, monkeypatch):
    for limit in 'OWN', 'OTHER', 'SLICE', 'CHUNK':
        monkeypatch.setattr(attention_triton, f'_{limit}', 16)
    if request.param == 'chunks':
        monkeypatch.setattr(attention_triton, '_shared_memory', lambda device: 0)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('shape', SHAPES)
def check_equals_the_definition(shape, dtype):
    inputs = draw(*shape, dtype)
    assert softmax_attention_fused(*inputs[:3]).dtype == dtype
    assert_near(run(softmax_attention_fused, *inputs), expected(*inputs), dtype)


@pytest.mark.parametrize('shape', TILES)
def check_tiles_join(shape, small_tiles):
    inputs = draw(*shape)
    assert_near(run(softmax_attention_fused, *inputs), expected(*inputs))


def check_strides_are_followed():
    q, k, v, grad = draw(2, 6, 6, 5, 18)
    joint = torch.cat([q, k, v], -1).transpose(0, 1).contiguous().transpose(0, 1)
    apart = q.new_zeros(2, 12, 5)
    apart[:, ::2] = k
    turned = grad.transpose(0, 1).contiguous().transpose(0, 1)
    views = [joint[..., :5], apart[:, ::2], joint[..., 10:], turned]
    assert not any(t.is_contiguous() for t in views)
    assert_near(run(softmax_attention_fused, *views), expected(q, k, v, grad))

    same = q[:1].expand(2, -1, -1)  # one image for both: strides of 0
    assert_near(run(softmax_attention_fused, same, k, v, grad), expected(same, k, v, grad))


@pytest.mark.parametrize(
    'change',
    [
        lambda out: out.sum(),  # a gradient of one number, expanded
        lambda out: (out.mean(1) ** 2).sum(),  # channels adjacent, strides of 0 before them
        lambda out: (out.mT.contiguous() ** 2).sum(),  # channels apart
    ],
)
def check_gradients_of_any_strides(change):
    results = []
    q, k, v, _ = draw(2, 7, 4, 5, 6)
    for function in (softmax_attention_fused, slow):
        inputs = [t.detach().requires_grad_() for t in (q, k, v)]
        if function is slow:
            inputs = [t.detach().double().cpu().requires_grad_() for t in inputs]
        out = function(*inputs, SCALE)
        change(out).backward()
        results.append([t.double().cpu() for t in (out.detach(), *(t.grad for t in inputs))])
    assert_near(*results)


@pytest.mark.parametrize('needed', [(0,), (1,), (2,), (0, 2), (1, 2)])
def check_some_gradients_alone(needed):
    inputs = draw(1, 9, 7, 5, 6)
    wanted = run(softmax_attention_fused, *inputs)[1:]
    for i in needed:
        inputs[i].requires_grad_()
    softmax_attention_fused(*inputs[:3], SCALE).backward(inputs[3])
    assert [t.grad is not None for t in inputs[:3]] == [i in needed for i in range(3)]
    for i in needed:
        assert torch.equal(inputs[i].grad.double().cpu(), wanted[i])


def check_large_logits_stay_finite():
    inputs = draw(1, 9, 20, 64, 5)
    inputs[:3] = [(t * 1e3 / t.abs().max()) for t in inputs[:3]]  # logits beyond 1e5, fp16's end
    found = run(softmax_attention_fused, *inputs)
    assert all(t.isfinite().all() for t in found)
    assert_near(found[:1] * 4, expected(*inputs)[:1] * 4)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('where', [0, 1, 2])
@pytest.mark.parametrize('keys', ['drawn', 'negative'])
def check_what_is_not_finite_reaches_what_it_should(value, where, keys, small_tiles):
    inputs = draw(1, 20, 18, 3, 4)
    if keys == 'negative':  # with an infinite query all its logits are -infinity
        inputs[1] = -inputs[1].abs()
    inputs[where][0, 4, 1] = value
    found, wanted = run(softmax_attention_fused, *inputs), expected(*inputs)
    assert torch.equal(found[0].isfinite(), wanted[0].isfinite())
    for ours, exact in zip(found, wanted):
        assert not (ours.isfinite() & ~exact.isfinite()).any()


def check_no_map_is_saved():
    saved = []
    q, k, v, _ = (t.requires_grad_() for t in draw(1, 63, 50, 2, 3))

    def save(t):
        saved.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(save, lambda t: t):
        out = softmax_attention_fused(q, k, v)
    assert sorted(saved) == sorted([q.numel(), k.numel(), v.numel(), out.numel(), 63])


@pytest.mark.parametrize('shape', [(0, 4, 7, 5, 6), (2, 0, 7, 5, 6)])
def check_nothing_to_compute(shape):
    found = run(softmax_attention_fused, *draw(*shape))
    assert [t.shape[:2] for t in found] == [(shape[0], shape[i]) for i in (1, 1, 2, 2)]
    assert not any(t.any() for t in found)


def check_inputs_stay_as_they_were():
    inputs = draw(1, 6, 4, 5, 6)
    copies = [t.clone() for t in inputs]
    run(softmax_attention_fused, *inputs)
    assert all(torch.equal(t, c) for t, c in zip(inputs, copies))


def check_each_run_is_the_same():
    inputs = draw(*((2, 9409, 9409, 64, 512) if DEVICE == 'cuda' else (1, 6, 4, 5, 6)))
    first, second = (run(softmax_attention_fused, *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def check_a_second_derivative_is_refused():
    q, k, v, grad = (t.requires_grad_() for t in draw(1, 2, 2, 2, 2))
    out = softmax_attention_fused(q, k, v)
    (first,) = torch.autograd.grad(out, v, grad, create_graph=True)
    with pytest.raises(RuntimeError, match='softmax_attention_backward'):
        first.sum().backward()


def check_available_by_dtype_and_width():
    def available(e, c, *dtypes, keys=3):
        shapes = (1, 2, e), (1, keys, e), (1, keys, c)
        return fused_available(
            *(torch.zeros(s, dtype=t, device=DEVICE) for s, t in zip(shapes, dtypes))
        )

    half, wide = torch.float16, torch.float32
    assert available(128, 1024, half, half, half)
    assert not available(129, 1024, half, half, half)
    assert not available(128, 1025, half, half, half)
    assert not available(16, 16, wide, wide, wide)
    assert not available(16, 16, half, torch.bfloat16, half)
    assert not available(16, 16, half, half, half, keys=0)


@pytest.mark.skipif(HAS_OLD_EXPORT, reason='compiled programs hold the attention of torch there')
def check_it_is_one_operator_of_a_compiled_graph(monkeypatch):
    operators = []

    def backend(graph, _):
        operators.extend(node.target for node in graph.graph.nodes if node.op == 'call_function')
        return graph

    monkeypatch.setattr(non_local, '_wide', lambda q, k, v: True)

    def attention(q, k, v, scale):
        return ops.softmax_attention(q.mT, k.mT, v.mT, scale).mT

    inputs = draw(2, 9, 7, 5, 6)
    compiled = torch.compile(attention, fullgraph=True, backend=backend)
    for a, b in zip(run(compiled, *inputs), run(softmax_attention_fused, *inputs), strict=True):
        assert torch.equal(a, b)
    assert operators.count(torch.ops.mmattn.softmax_attention) == 1
    assert not {torch.matmul, F.scaled_dot_product_attention} & set(operators)


def check_the_operator():
    """Its shapes without values, its gradient, and both under torch.compile of any sizes."""
    tensors = [t.requires_grad_(i != 1) for i, t in enumerate(draw(2, 9, 7, 5, 6)[:3])]
    torch.library.opcheck(torch.ops.mmattn.softmax_attention.default, (*tensors, SCALE))


def check_operations_are_counted_without_running():
    inputs = draw(2, 9, 7, 5, 6)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, flop_counter() as counter:
        q, k, v, grad = map(mode.from_tensor, inputs)
        out = softmax_attention_fused(q, k, v)
        assert out.shape == grad.shape
        assert counter.get_total_flops() == 2 * 2 * 9 * 7 * (5 + 6)
        run(softmax_attention_fused, q, k, v, grad)
        # 2 x forward, and backward with the logits once again
    assert counter.get_total_flops() == 2 * 2 * 9 * 7 * (2 * (5 + 6) + 3 * 5 + 2 * 6)


@pytest.mark.slow
@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_kernels(device):
    run_checks(__file__, device)


def test_triton_is_optional():
    child(
        '-c',
        'import sys; sys.modules["triton"] = None\n'
        'import torch\n'
        'from mmattn.ops.attention_triton import fused_available, softmax_attention_fused\n'
        'x = torch.zeros(1, 2, 4).half()\n'
        'assert not fused_available(x, x, x)\n'
        'try: softmax_attention_fused(x, x, x)\n'
        'except RuntimeError as e: assert "no Triton" in str(e)\n'
        'else: raise AssertionError',
    )


@pytest.mark.skipif(INTERPRETED, reason='the interpreter takes the CPU')
def test_the_cpu_is_refused():
    x = torch.zeros(1, 2, 4).half()
    assert not fused_available(x, x, x)
    with pytest.raises(RuntimeError, match='float16 on cpu, E=4, C=4, 2 keys'):
        softmax_attention_fused(x, x, x)


def test_inputs_that_do_not_fit_are_named():
    x = torch.zeros(1, 2, 4).half()
    with pytest.raises(ValueError, match=r'v \(1, 1, 4\) on cpu'):
        softmax_attention_fused(x, x, x[:, :1])
    with pytest.raises(ValueError, match='k .* on meta'):
        softmax_attention_fused(x, x.to('meta'), x)
    with pytest.raises(ValueError, match='strides of k'):
        softmax_attention_fused(x, x.mT.contiguous().mT, x)


@pytest.mark.slow
@pytest.mark.parametrize('e, c, dtype', [(64, 512, torch.bfloat16), (128, 1024, torch.float16)])
@pytest.mark.skipif(not can_compile_kernels(), reason="needs Triton and NVIDIA's assembler")
def test_compiled_for_sm_90(monkeypatch, e, c, dtype):
    """All kernels run on tensor cores, spill nothing and fit into shared memory."""
    limit = SHARED_LIMIT[90]
    monkeypatch.setattr(attention_triton, '_shared_memory', lambda device: limit)
    q, k = (torch.empty(2, n, e, dtype=dtype, device='meta') for n in (9409, 8000))
    v = torch.empty(2, 8000, c, dtype=dtype, device='meta')
    with compile_only(90) as launches:
        out, lse = attention_triton._forward(q, k, v, SCALE)
        attention_triton._backward(out, q, k, v, out, lse, SCALE, [True] * 3)
    names = [launch.name for launch in launches]
    assert names == ['attend', 'delta', 'pair_grad', 'pair_grad', 'value_grad']
    for launch in launches:
        assert not launch.spills, launch
        assert launch.shared <= limit, launch
        assert (launch.matrix > 0) == (launch.name != 'delta'), launch
        assert launch.fma <= 256, launch  # 16384 products per thread of a tile are not among them


def test_on_gpus_wide_values_in_half_precision_take_the_kernel(monkeypatch):
    def taken(n, e, c, positions, dtype=torch.float16, device='cuda'):
        taken = []
        monkeypatch.setattr(
            attention_triton,
            'softmax_attention_fused',
            lambda q, k, v, s: taken.append('ours') or v,
        )
        monkeypatch.setattr(
            non_local, '_fused_attention', lambda q, k, v, scale: taken.append('torch') or v
        )
        with FakeTensorMode():
            q, v = (torch.empty(n, positions, w, dtype=dtype, device=device) for w in (e, c))
            ops.softmax_attention(q.mT, q.mT, v.mT)
        return taken

    monkeypatch.setattr(attention_triton, 'runs_kernels', lambda device: device.type == 'cuda')
    monkeypatch.setattr(non_local, '_fused', lambda q, k, v, scale: True)
    assert taken(1, 64, 512, 97 * 97) == ['ours']
    assert taken(1, 64, 512, 97 * 97, torch.bfloat16) == ['ours']
    assert taken(64, 64, 512, 256) == ['ours']
    assert taken(1, 64, 512, 97 * 97, torch.float32) == ['torch']
    assert taken(1, 64, 512, 1000) == ['torch']
    assert taken(1, 64, 128, 97 * 97) == ['torch']
    assert taken(1, 256, 256, 97 * 97) == ['torch']
    assert taken(1, 40, 320, 97 * 97) == ['torch']
    monkeypatch.setattr(attention_triton, 'runs_kernels', lambda device: False)
    assert taken(1, 64, 512, 97 * 97) == ['torch']
