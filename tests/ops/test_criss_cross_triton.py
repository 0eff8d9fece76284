"""Fused criss-cross attention; functions named check_* run in `test_kernels`, in a child process."""

import contextlib
import sys

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

from mmattn.ops import criss_cross, criss_cross_triton
from mmattn.ops.criss_cross_triton import criss_cross_fused, fused_available
from mmattn.torch_compat import HAS_OLD_EXPORT, has_cpp_compiler
from tests.ops.triton_checks import DEVICE, INTERPRETED, child, run_checks

# N, H, W, E, C. Where no block is larger than 16, the first has two slices of C, the others two
# tiles of a row or column, one of them with one pixel, and three blocks and slices of E or C.
BLOCKS = [(2, 5, 7, 3, 20), (1, 17, 2, 35, 1), (1, 2, 18, 1, 35)]
SHAPES = [
    (1, 1, 6, 3, 4),
    (1, 6, 1, 3, 4),
    (2, 1, 1, 2, 3),
    (1, 17, 19, 16, 40),
    (1, 2, 3, 66, 130),
]
HALF = [torch.float16, torch.bfloat16]


def slow(q, k, v):
    """The definition, pixel by pixel: softmax over row and column, the pixel itself once."""
    height, width = q.shape[1:3]
    out = []
    for n in range(len(v)):
        for i in range(height):
            for j in range(width):
                cross = [(i, b) for b in range(width)] + [(a, j) for a in range(height) if a != i]
                rows, columns = torch.tensor(cross).T
                logits = k[n, rows, columns] @ q[n, i, j]
                out.append(logits.softmax(0) @ v[n, rows, columns])
    return torch.stack(out).view(v.shape)


def draw(n, height, width, e, c, dtype=torch.float32):
    q, k = torch.randn(2, n, height, width, e) / e**0.25
    v, grad = torch.randn(2, n, height, width, c)
    return [t.to(dtype).to(DEVICE) for t in (q, k, v, grad)]


def run(function, q, k, v, grad):
    """The result of function and its gradients, in fp64 on the CPU."""
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    out = function(*inputs)
    out.backward(grad)
    return [t.detach().double().cpu() for t in (out, *(t.grad for t in inputs))]


def expected(q, k, v, grad):
    return run(slow, *(t.double().cpu() for t in (q, k, v, grad)))


def assert_near(found, wanted, tolerance):
    """Apart by tolerance, in units of the norm; of 1 where that is less, as with a single key."""
    for name, a, b in zip(('out', 'q', 'k', 'v'), found, wanted, strict=True):
        assert a.shape == b.shape
        error = float((a - b).norm() / b.norm().clamp(min=1))
        assert error < tolerance, f'{name}: {error}'  # NaN is red as well


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def small_blocks(monkeypatch):
    for blocks in criss_cross_triton.BLOCKS.values():
        for kernel in blocks:
            monkeypatch.setitem(blocks, kernel, criss_cross_triton.Blocks(16, 16, 16, 4))


@pytest.fixture
def kernels_everywhere(monkeypatch):
    """`criss_cross` takes the kernels in the interpreter, too."""
    module = sys.modules['mmattn.ops.criss_cross']
    monkeypatch.setattr(module, '_KERNEL_DEVICES', (DEVICE,))
    torch._dynamo.reset()


@pytest.mark.parametrize('shape', SHAPES)
def check_fp32_equals_the_definition(shape):
    inputs = draw(*shape)
    assert_near(run(criss_cross_fused, *inputs), expected(*inputs), 1e-6)


@pytest.mark.parametrize('shape', BLOCKS)
def check_blocks_join(shape, small_blocks):
    inputs = draw(*shape)
    assert_near(run(criss_cross_fused, *inputs), expected(*inputs), 1e-6)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('shape', [*BLOCKS[:2], (1, 3, 2, 66, 130)])
def check_half_precision_follows_float64(shape, dtype):
    inputs = draw(*shape, dtype)
    assert criss_cross_fused(*inputs[:3]).dtype == dtype
    # the interpreter cuts bf16 off where a GPU rounds
    assert_near(run(criss_cross_fused, *inputs), expected(*inputs), 3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize('dtype', [torch.float32, *HALF] if DEVICE == 'cuda' else [torch.float32])
def check_equals_criss_cross(dtype):
    def plain(q, k, v):
        out = criss_cross(*(t.permute(0, 3, 1, 2) for t in (q, k, v)))
        return out.permute(0, 2, 3, 1)

    inputs = draw(*((2, 97, 65, 64, 512) if DEVICE == 'cuda' else (2, 4, 3, 8, 12)), dtype)
    wanted = run(plain, *(t.double() for t in inputs))
    assert_near(run(criss_cross_fused, *inputs), wanted, max(1e-6, 3 * torch.finfo(dtype).eps))


MIXED = [  # of q, k, v
    (torch.float32, torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16, torch.float16),
    (torch.bfloat16, torch.float32, torch.float32),
]


@pytest.mark.parametrize('dtypes', MIXED)
@pytest.mark.parametrize('on_kernels', [False, True])
def check_dtypes_of_their_own(dtypes, on_kernels, monkeypatch):
    """q, k and v each in its dtype, with and without the kernels."""
    devices = (DEVICE,) if on_kernels else ()
    monkeypatch.setattr(sys.modules['mmattn.ops.criss_cross'], '_KERNEL_DEVICES', devices)
    q, k, v, grad = draw(1, 5, 7, 6, 20)
    q, k, v = (t.to(dtype) for t, dtype in zip((q, k, v), dtypes))
    grad = grad.to(v.dtype)
    reached, forward = [], criss_cross_triton._forward

    def spy(q, k, v):
        reached.append(q.dtype == k.dtype)  # the interpreter would multiply any two
        return forward(q, k, v)

    monkeypatch.setattr(criss_cross_triton, '_forward', spy)

    def joined(q, k, v):
        out = criss_cross(*(t.permute(0, 3, 1, 2) for t in (q, k, v)))
        return out.permute(0, 2, 3, 1)

    inputs = [t.requires_grad_() for t in (q, k, v)]
    out = joined(*inputs)
    out.backward(grad)
    assert out.dtype == v.dtype and [t.grad.dtype for t in inputs] == list(dtypes)
    assert 'CrissCross' in graph_of(out) and reached == ([True] if on_kernels else [])
    tolerance = 3 * max(torch.finfo(dtype).eps for dtype in dtypes)
    assert_near(run(joined, q, k, v, grad), expected(q, k, v, grad), tolerance)


def graph_of(out):
    """Modules and names of the nodes of autograd."""
    names, nodes = '', [out.grad_fn]
    while nodes:
        node = nodes.pop()
        names += (
            f' {type(node).__module__}.{type(node).__name__} {getattr(node, "_forward_cls", "")}'
        )
        nodes += [following for following, _ in node.next_functions if following]
    return names


def check_strides_are_followed():
    q, k, v, grad = draw(2, 3, 2, 5, 18)
    joint = torch.cat([q, k, v], -1).transpose(1, 2).contiguous().transpose(1, 2)
    apart = q.new_zeros(2, 6, 2, 5)
    apart[:, ::2] = k
    turned = grad.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)
    views = [joint[..., :5], apart[:, ::2], joint[..., 10:], turned]
    assert not any(t.is_contiguous() for t in views)
    assert_near(run(criss_cross_fused, *views), expected(q, k, v, grad), 1e-6)

    same = q[:1].expand(2, -1, -1, -1)  # one image for both: strides of 0
    assert_near(run(criss_cross_fused, same, k, v, grad), expected(same, k, v, grad), 1e-6)


@pytest.mark.parametrize(
    'change',
    [
        lambda out: out.sum(),  # a gradient of one number, expanded
        lambda out: (out.mean((1, 2)) ** 2).sum(),  # channels adjacent, strides of 0 before them
        lambda out: (out.permute(0, 3, 1, 2).contiguous() ** 2).sum(),  # channels apart
    ],
)
def check_gradients_of_any_strides(change):
    results = []
    q, k, v, _ = draw(2, 2, 3, 5, 6)
    for function in (criss_cross_fused, slow):
        inputs = [t.detach().requires_grad_() for t in (q, k, v)]
        if function is slow:
            inputs = [t.detach().double().cpu().requires_grad_() for t in inputs]
        out = function(*inputs)
        change(out).backward()
        results.append([t.double().cpu() for t in (out.detach(), *(t.grad for t in inputs))])
    assert_near(*results, 1e-6)


@pytest.mark.parametrize('needed', [0, 1, 2])
def check_one_gradient_alone(needed):
    inputs = draw(1, 2, 3, 5, 6)
    wanted = run(criss_cross_fused, *inputs)[1 + needed]
    alone = inputs[needed].requires_grad_()
    criss_cross_fused(*inputs[:3]).backward(inputs[3])
    assert torch.equal(alone.grad.double().cpu(), wanted)
    assert [t.grad is not None for t in inputs[:3]] == [i == needed for i in range(3)]


def check_large_logits_stay_finite():
    inputs = draw(1, 3, 4, 64, 5, torch.float16)
    inputs[:3] = [(t * 1e3 / t.abs().max()) for t in inputs[:3]]  # logits beyond 1e5, fp16's end
    assert all(t.isfinite().all() for t in run(criss_cross_fused, *inputs))


def check_row_and_column_cancel_in_fp32():
    """Gradient of a query whose keys have much in common, with 32 weights that fp16 can hold."""
    q = torch.zeros(1, 16, 17, 4, dtype=torch.float16, requires_grad=True)
    k = (30 + torch.randn(q.shape)).half()
    v, grad = -torch.ones(1, 16, 17, 1).half(), torch.zeros(1, 16, 17, 1).half()
    v[:, 0] = grad[:, 0, 0] = 1
    criss_cross_fused(*(t.to(DEVICE) for t in (q, k, v))).backward(grad.to(DEVICE))
    row, column = k[0, 0].double(), k[0, 1:, 0].double()
    wanted = ((1 - 1 / 16) * row.sum(0) - (1 + 1 / 16) * column.sum(0)) / 32
    torch.testing.assert_close(q.grad[0, 0, 0].double(), wanted, rtol=1e-3, atol=1e-3)


def check_no_map_is_kept():
    kept = []
    q, k, v, _ = (t.requires_grad_() for t in draw(1, 7, 9, 2, 3))

    def keep(t):
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = criss_cross_fused(q, k, v)
    assert sorted(kept) == sorted([q.numel(), k.numel(), v.numel(), out.numel(), 7 * 9])


def check_no_image_at_all():
    found = run(criss_cross_fused, *draw(0, 3, 4, 5, 6))
    assert [tuple(t.shape) for t in found] == [(0, 3, 4, c) for c in (6, 5, 5, 6)]


def check_inputs_stay_as_they_were():
    inputs = draw(1, 2, 3, 5, 6)
    copies = [t.clone() for t in inputs]
    run(criss_cross_fused, *inputs)
    assert all(torch.equal(t, c) for t, c in zip(inputs, copies))


def check_each_run_is_the_same():
    inputs = draw(*((2, 97, 65, 64, 512) if DEVICE == 'cuda' else (1, 2, 3, 4, 5)))
    first, second = (run(criss_cross_fused, *inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def check_a_second_derivative_is_refused():
    q, k, v, grad = (t.requires_grad_() for t in draw(1, 2, 2, 2, 2))
    out = criss_cross_fused(q, k, v)
    (first,) = torch.autograd.grad(out, v, grad, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        first.sum().backward()


def maps(n=1, height=5, width=6, e=4, c=8, dtype=torch.float32):
    """q, k, v as `criss_cross` takes them, and a gradient."""
    return [t.permute(0, 3, 1, 2).contiguous() for t in draw(n, height, width, e, c, dtype)]


COMPILERS = [('aot_eager', True)]
if DEVICE == 'cuda' or has_cpp_compiler():
    COMPILERS.append(('inductor', False))


@pytest.mark.parametrize(('backend', 'dynamic'), COMPILERS)
def check_compiled_equals_eager(backend, dynamic, kernels_everywhere):
    def step(q, k, v):
        return criss_cross(q * 2, k, v).relu()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=backend)
    sizes = [(1, 5, 6), (2, 4, 7)] if dynamic else [(1, 5, 6)]
    for size in sizes:
        inputs = maps(*size)
        wanted, found = run(step, *inputs), run(compiled, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted))


@pytest.mark.parametrize('needed', [0, 1, 2])
def check_compiled_with_one_gradient(needed, kernels_everywhere):
    *inputs, grad = maps()
    wanted = run(criss_cross, *inputs, grad)[1 + needed]
    inputs[needed].requires_grad_()
    torch.compile(criss_cross, fullgraph=True, backend='aot_eager')(*inputs).backward(grad)
    assert torch.equal(inputs[needed].grad.double().cpu(), wanted)


def check_compiled_under_autocast(kernels_everywhere):
    *inputs, grad = maps(dtype=torch.bfloat16)

    def step(q, k, v):
        with torch.autocast(DEVICE, torch.bfloat16):
            return criss_cross(q, k, v)

    compiled = torch.compile(step, fullgraph=True, backend='aot_eager')
    wanted, found = run(step, *inputs, grad), run(compiled, *inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


def check_graphs_hold_the_operators_and_no_map(kernels_everywhere):
    height, width = 9, 11
    *inputs, grad = maps(1, height, width)
    nodes = []

    def keep(module, _):
        nodes.extend(module.graph.nodes)
        return make_boxed_func(module.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    run(torch.compile(criss_cross, fullgraph=True, backend=backend), *inputs, grad)
    targets = {str(node.target) for node in nodes}
    assert {'mmattn.criss_cross.default', 'mmattn.criss_cross_backward.default'} <= targets
    assert_no_map(nodes, height, width)


def assert_no_map(nodes, height, width):
    values = [node.meta.get('val') for node in nodes]
    flat = [t for value in values for t in (value if isinstance(value, list | tuple) else [value])]
    sizes = [t.numel() for t in flat if isinstance(t, torch.Tensor)]
    assert sizes and max(sizes) < height * width * (height + width)


def check_the_operators_keep_what_they_declare():
    """Schema, fake results and autograd, by torch's own check; also with one gradient alone."""
    q, k, v, _ = draw(1, 3, 4, 2, 5)
    for needed in (q, k, v), (v,):
        for t in needed:
            t.requires_grad_()
        torch.library.opcheck(torch.ops.mmattn.criss_cross.default, (q, k, v))
        for t in needed:
            t.requires_grad_(False)


def check_exported_is_plain(kernels_everywhere):
    """Programs run where there are no kernels."""

    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return criss_cross(q, k, v)

    *inputs, _ = maps()
    program = torch.export.export(Module(), tuple(inputs))
    code = str(program.graph_module.print_readable(print_output=False))
    assert 'mmattn' not in code.replace('/mmattn/', '') and 'softmax' in code


def check_other_dtypes_go_without_kernels(kernels_everywhere):
    *inputs, _ = maps(dtype=torch.float64)
    assert 'triton' not in graph_of(criss_cross(*(t.requires_grad_() for t in inputs)))
    compiled = torch.compile(criss_cross, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(*inputs), criss_cross(*inputs))


def check_available_by_dtype():
    x = torch.zeros(1, device=DEVICE)
    assert [fused_available(x.to(t)) for t in (torch.half, torch.float64)] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_kernels(device):
    run_checks(__file__, device)


def test_triton_is_optional_and_imported_late():
    child('-c', 'import sys, mmattn.ops; assert "triton" not in sys.modules')
    child(
        '-c',
        'import sys; sys.modules["triton"] = None\n'
        'import torch\n'
        'from mmattn.ops.criss_cross_triton import criss_cross_fused, fused_available\n'
        'x = torch.zeros(1, 2, 3, 4)\n'
        'assert not fused_available(x)\n'
        'try: criss_cross_fused(x, x, x)\n'
        'except RuntimeError as e: assert "no Triton" in str(e)\n'
        'else: raise AssertionError',
    )


@pytest.mark.skipif(INTERPRETED, reason='the interpreter takes the CPU')
def test_the_cpu_is_refused():
    x = torch.zeros(1, 2, 3, 4)
    assert not fused_available(x)
    with pytest.raises(RuntimeError, match='tensors on cpu'):
        criss_cross_fused(x, x, x)


def test_inputs_that_do_not_fit_are_named():
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r'v \(1, 2, 2, 4\)'):
        criss_cross_fused(x, x, x[:, :, :2])
    with pytest.raises(ValueError, match='float64'):
        criss_cross_fused(x.double(), x.double(), x.double())
    with pytest.raises(ValueError, match='strides of k'):
        criss_cross_fused(x, x.mT.contiguous().mT, x)


@pytest.mark.skipif(HAS_OLD_EXPORT, reason='torch.compile takes the plain operations there')
@pytest.mark.skipif(INTERPRETED, reason='the interpreter takes the CPU')
@pytest.mark.parametrize('device', ['cuda', 'cpu'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_compiled_for_a_gpu_without_one(device, dtype, monkeypatch):
    """The graph holds the operator on a GPU; on a CPU the map over all pairs."""
    on_gpu = torch.compiler.assume_constant_result(lambda device: device.type == 'cuda')
    monkeypatch.setattr(criss_cross_triton, 'runs_kernels', on_gpu)
    nodes = []

    def keep(module, _):
        nodes.extend(module.graph.nodes)
        return make_boxed_func(module.forward)

    torch._dynamo.reset()
    with FakeTensorMode():
        options = dict(dtype=dtype, device=device, memory_format=torch.channels_last)
        q, k, v = (torch.empty(2, c, 9, 11, **options) for c in (4, 4, 8))
        backend = aot_autograd(fw_compiler=keep)
        out = torch.compile(criss_cross, fullgraph=True, backend=backend)(q, k, v)
    assert out.shape == v.shape and out.dtype == dtype and out.device.type == device
    has_operator = 'mmattn.criss_cross.default' in {str(node.target) for node in nodes}
    assert has_operator == (device == 'cuda')
    with contextlib.nullcontext() if has_operator else pytest.raises(AssertionError):
        assert_no_map(nodes, 9, 11)
