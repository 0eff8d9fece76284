"""What every registered block promises, as one function a promise: check(block, inputs)."""

import copy
import functools
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from mmattn.blocks import AttentionBlock
from mmattn.compat import is_installed
from mmattn.registry import MODELS
from mmattn.visualization import record
from tests.conftest import randomise

SIZES = ((1, 1), (1, 6), (6, 1), (5, 7), (9, 4))
HALVES = (torch.float16, torch.bfloat16)


def registered() -> dict[str, type]:
    MODELS.import_from_location()
    return {k: v for k, v in MODELS.module_dict.items() if v.__module__.startswith('mmattn.blocks')}


def draw(block, batch=2, size=(5, 7), dtype=torch.float32, limit=None):
    """Inputs for a block: normal, or uniform within +-limit."""
    shapes = block.input_shapes(batch, *size)
    if limit is None:
        return [torch.randn(shape, dtype=dtype) for shape in shapes]
    return [((2 * torch.rand(shape) - 1) * limit).to(dtype) for shape in shapes]


def randomised(block):
    """All parameters and statistics at random, scaled so that layers keep the size of values."""
    randomise(block)
    with torch.no_grad():
        for value in block.parameters():
            if value.dim() > 1 and value[0].numel() > 1:
                value.div_(0.3 * value[0].numel() ** 0.5)
    return block


def awake(block):
    """A fresh block whose constant parameters are moved a little, so that none hides a fault."""
    with torch.no_grad():
        for value in block.parameters():
            if (value == value.flatten()[0]).all():
                value.add_(0.1 * torch.randn_like(value))
    return block


def close(a, b, tolerance):
    scale = max(1, b.float().abs().max().item())
    error = (a.float() - b.float()).abs().max().item() / scale
    assert error <= tolerance, f'differs by {error:.1e} of the largest value'


def finite_gradients(block, inputs):
    """The output; it and all gradients are finite."""
    inputs = [t.clone().requires_grad_() for t in inputs]
    y = block(*inputs)
    assert y.isfinite().all(), 'the output is not finite'
    values = [*inputs, *block.parameters()]
    # of the mean, so that in half precision the sum over a large map is no reason to overflow
    for grad in torch.autograd.grad(y.float().mean(), values, allow_unused=True):
        assert grad is None or grad.isfinite().all(), 'a gradient is not finite'
    return y.detach()


def step(block, inputs, lr=0.05, target=None):
    """One step of SGD towards a random target."""
    y = block(*inputs)
    target = torch.randn_like(y) if target is None else target
    block.zero_grad()
    (y - target).square().mean().backward()
    with torch.no_grad():
        for value in block.parameters():
            if value.grad is not None:
                value -= lr * value.grad


# -- the promises ---------------------------------------------------------------------------------


def any_size(build):
    for batch in 1, 3:
        for size in SIZES:
            block = randomised(build()).eval()
            x = draw(block, batch, size)
            before = [t.clone() for t in x]
            y = finite_gradients(block, x)
            wanted = block.identity(*x)
            assert y.shape[:2] == (batch, y.shape[1]) and y.dtype == torch.float32
            if y.shape[1] == wanted.shape[1]:
                assert y.shape == wanted.shape
            assert y.isfinite().all(), f'not finite at {size}'
            assert all(torch.equal(a, b) for a, b in zip(x, before)), 'the input was changed'
            for value in 0.0, 3.0:  # nothing to normalise: neither variance nor norm
                finite_gradients(block, [torch.full_like(t, value) for t in x])


def training_on_one_image(build):
    for size in (9, 12), (17, 20):
        block = randomised(build()).train()
        y = block(*[t.requires_grad_() for t in draw(block, 1, size)])
        assert y.isfinite().all()
        y.sum().backward()
        assert all(v.grad.isfinite().all() for v in block.parameters() if v.grad is not None)


def train_one_pixel(build):
    """Where a batch norm would see one value, the error says so; else it works."""
    block = randomised(build()).train()
    if 'any_size' in block.limits:
        return
    before = copy.deepcopy(block.state_dict())
    try:
        y = block(*[t[:, :, :1, :1] for t in draw(block, 1, (1, 1))])
    except ValueError as error:
        assert f'{type(block).__name__}: ' in str(error) and 'sees batch size 1' in str(error)
        assert all(torch.equal(before[k], v) for k, v in block.state_dict().items())
    else:
        assert y.isfinite().all()


def train_batch_2(build):
    for size in (4, 3), (7, 9):
        block = randomised(build()).train()
        x = [t.requires_grad_() for t in draw(block, 2, size)]
        y = block(*x)
        (y * torch.randn_like(y)).sum().backward()
        for t in (*x, *(v for v in block.parameters())):
            assert t.grad is not None and t.grad.isfinite().all()


def half(build):
    for dtype in HALVES:
        for limit in 1, 1000:
            block = awake(build()).eval()
            x = draw(block, dtype=dtype, limit=limit)
            floats = [t.float() for t in x]
            wide = block(*floats)
            with torch.autocast('cpu', dtype):
                mixed, pure = block(*floats), block(*x)
                assert mixed.dtype == block.identity(*floats).dtype
            alone = block.to(dtype)(*x)
            assert pure.dtype == dtype and alone.dtype == dtype
            for y in mixed, pure, alone:
                assert y.isfinite().all(), f'{dtype} at |x| up to {limit}'
                if limit == 1:
                    close(y, wide, 0.05)
            finite_gradients(block, x)


def gradcheck(build):
    for training in False, True:
        for size in (4, 3), (2, 5):
            block = randomised(build()).double().train(training)
            x = [t.requires_grad_() for t in draw(block, 2, size, torch.float64)]
            call = functools.partial(_call, block, len(x))
            assert torch.autograd.gradcheck(call, (*x, *block.parameters()), fast_mode=True)


def _call(block, count, *tensors):
    """The block as a function of its inputs and parameters."""
    names = [name for name, _ in block.named_parameters()]
    parameters = dict(zip(names, tensors[count:]))
    return torch.func.functional_call(block, parameters, tensors[:count])


def compile(build, backend='aot_eager'):
    torch._dynamo.reset()
    block = randomised(build()).train()
    other = copy.deepcopy(block)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    _computes_the_same(compiled, block, draw(block))


def _computes_the_same(program, block, x):
    """Values and gradients of the inputs."""
    a, b = ([t.clone().requires_grad_() for t in x] for _ in range(2))
    y, z = block(*a), program(*b)
    close(z, y, 1e-5)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    for s, t in zip(a, b):
        close(t.grad, s.grad, 1e-5)


def trace(build):
    block = randomised(build()).eval()
    x = draw(block)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(block, tuple(x), check_trace=False), file)
    file.seek(0)
    _computes_the_same(torch.jit.load(file), block, x)


def _shapes(block):
    """Dynamic H and W of every input; inputs whose sizes differ get dimensions of their own."""
    found, named = [], {}
    shapes = (block.input_shapes(1, n, m) for n, m in ((18, 20), 2 * (block.dynamic_from,)))
    for (_, _, *size), (_, _, *least) in zip(*shapes):
        axes = {}
        for axis, (letter, n, low) in enumerate(zip('hw', size, least), start=2):
            key = f'{letter}{n}'
            named[key] = named.get(key) or torch.export.Dim(key, min=low, max=256)
            axes[axis] = named[key]
        found.append(axes)
    return tuple(found)


@functools.lru_cache(maxsize=1)
def _exported(build):
    """A block and its program, which two checks in a row want."""
    block = randomised(build()).eval()
    x = tuple(draw(block, 2, (18, 20)))
    return block, torch.export.export(block, x, dynamic_shapes=_shapes(block))


def export(build):
    block, program = _exported(build)
    n = block.dynamic_from
    for size in (18, 20), (n, n + 3), (n + 9, n), (31, 17):
        x = draw(block, 2, size)
        close(program.module()(*x), block(*x), 1e-5)


def onnx(build):
    import onnxruntime

    block, program = _exported(build)
    program = torch.onnx.export(program, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    n = block.dynamic_from
    for size in (18, 20), (n, n + 3), (31, 17):
        # smooth, as features are: positions in fp32 are as exact as the map is smooth
        x = [nn.functional.avg_pool2d(t, 3, 1, 1) * 3 for t in draw(block, 2, size)]
        names = [i.name for i in session.get_inputs()]
        y = session.run(None, dict(zip(names, (t.numpy() for t in x))))[0]
        close(torch.from_numpy(y), block(*x), 1e-5)


def copies(build):
    block = randomised(build()).eval()
    x = draw(block)
    y = block(*x)
    twin = build()
    twin.load_state_dict(block.state_dict())
    for other in copy.deepcopy(block), pickle.loads(pickle.dumps(block)), twin.eval():
        assert torch.equal(other(*x), y)
        assert repr(other) == repr(block)
    assert torch.equal(block(*x), y), 'a second call differs'


def layouts(build):
    block = randomised(build()).double().eval()
    x = draw(block, dtype=torch.float64)
    y = block(*x)
    close(block(*[t.to(memory_format=torch.channels_last) for t in x]), y, 1e-12)
    close(block(*[t.mT.contiguous().mT for t in x]), y, 1e-12)
    close(block(*[t.repeat(1, 2, 1, 1)[:, : t.shape[1]] for t in x]), y, 1e-12)
    last = copy.deepcopy(block).to(memory_format=torch.channels_last)
    close(last(*[t.to(memory_format=torch.channels_last) for t in x]), y, 1e-12)


def seeds(build):
    """The start is drawn from the global generator alone, and in training nothing else is drawn."""
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        block = build()
        block.train()(*draw(block))
        states.append((block.state_dict(), torch.get_rng_state()))
    assert all(torch.equal(v, states[1][0][k]) for k, v in states[0][0].items())
    assert torch.equal(states[0][1], states[1][1])


def starts(build):
    """Both starts survive the host's initialisation, twice, and a pretrained checkpoint wins."""

    from mmengine.model import BaseModule, Sequential

    class Host(BaseModule):
        def __init__(self, init_cfg):
            super().__init__(init_cfg)
            self.stem = nn.Conv2d(4, 4, 1)
            self.body = Sequential(build())

    constant = dict(type='Constant', layer=['Conv2d', 'Linear', 'BatchNorm2d', 'Scale'], val=7)
    kaiming = [dict(type='Kaiming', layer='Conv2d'), constant]
    host = Host(kaiming)
    host.init_weights()
    assert (host.stem.weight == 7).all(), 'the host was not initialised'
    block, one, two = host.body[0], build().state_dict(), build().state_dict()
    for key, value in block.state_dict().items():
        assert not (value == 7).any(), key
        if torch.equal(one[key], two[key]):  # a constant of the start
            assert torch.equal(value, one[key]), key
        elif value.numel() > 50:
            assert 0.5 < value.std() / one[key].std() < 2, key
    before = copy.deepcopy(block.state_dict())
    host.init_weights()
    assert all(torch.equal(before[k], v) for k, v in block.state_dict().items())


def pretrained(build, folder: Path):
    from mmengine.model import BaseModule, Sequential

    class Host(BaseModule):
        def __init__(self, init_cfg=None):
            super().__init__(init_cfg)
            self.body = Sequential(build())

    trained = randomise(Host())
    path = folder / 'host.pth'
    torch.save(trained.state_dict(), path)
    host = Host(dict(type='Pretrained', checkpoint=str(path)))
    host.init_weights()
    host.init_weights()
    for key, value in trained.state_dict().items():
        assert torch.equal(host.state_dict()[key], value), key


def inits(build):
    """The starts that a block has."""
    return ('paper',) if 'identity' in build().limits else ('paper', 'identity')


def learns(build):
    """Within three steps every parameter has had a gradient, but for those without effect.

    In training or in eval: what only shifts a channel is removed by a batch norm in training.
    """
    for init in inits(build):
        _learns(functools.partial(build, init=init))


def _learns(build):
    largest = {}
    if not dict(build().named_parameters()):
        return
    for training in True, False:
        block = build().double().train(training)
        x = draw(block, 2, (6, 7), torch.float64)
        target = torch.randn_like(block(*x))
        for _ in range(3):
            step(block, x, target=target)
            for name, value in block.named_parameters():
                assert value.grad is not None, f'{name} is not used'
                largest[name] = max(largest.get(name, 0), value.grad.abs().max().item())
    scale = max(largest.values())
    for name, value in largest.items():
        if name in block.without_effect:
            assert value < 1e-12 * max(1, scale), f'{name} has an effect'
        else:
            assert value > 1e-12 * scale, f'{name} does not learn'


def identity(build):
    for dtype in torch.float32, torch.float64, *HALVES:
        for training in False, True:
            block = build(init='identity').to(dtype).train(training)
            x = draw(block, 2, (5, 7), dtype)
            wanted, y = block.identity(*x), block(*x)
            assert torch.equal(y, wanted), f'differs in {dtype}, training={training}'


def forms(build):
    """Where the two starts share their weights, `form` says whether they share the function."""
    if 'identity' not in inits(build):
        return
    paper, identity = (build(init=init).double().eval() for init in ('paper', 'identity'))
    if set(paper.state_dict()) != set(identity.state_dict()):
        return
    identity.load_state_dict(randomised(paper).state_dict())
    x = draw(paper, dtype=torch.float64)
    assert torch.equal(paper(*x), identity(*x)) == (paper.form == identity.form)
    assert "init='identity'" in repr(identity)


def recording(build):
    """The maps that are recorded are those that were used, and recording changes nothing."""
    block = randomised(build()).double().eval()
    x = draw(block, 2, (5, 7), torch.float64)
    y = block(*x)
    places, at = [(0.5, 0.2), (0.0, 0.99)], torch.tensor([2 * 7 + 1, 6])
    used = []
    with record(block, places) as maps:
        for part in block.modules():
            if isinstance(part, AttentionBlock):
                _spy(part, used)
        assert torch.equal(block(*x), y)
    assert maps, 'nothing was recorded'
    assert all(m._recorder is None for m in block.modules() if isinstance(m, AttentionBlock))
    for by_name in maps.values():
        for name, uses in by_name.items():
            for found in uses:
                assert not found.requires_grad and found.isfinite().all()
                if name in ('channel', 'spatial', 'group', 'mask', 'rows', 'columns', 'selection'):
                    high = 2 if block.init == 'identity' else 1
                    assert found.min() >= 0 and found.max() <= high, f'{name} is no gate'
                if name in ('context', 'branches'):
                    axis = 1 if name == 'branches' else (2, 3)
                    close(found.sum(axis), torch.ones(()), 1e-12)
    for found, out, args in used:
        if len(args) > 2:  # (q, k, v) -> the map times v is the result at the queries
            values = args[2]
            found = found.reshape(len(values), len(at), -1)  # heads folded into the batch
            wanted = values.flatten(2) @ found.mT
            close(out.flatten(2)[..., at], wanted, 1e-12)
        elif found.dim() == 3:  # channel pairs: (x, gamma) -> gamma times the map times x, plus x
            x, gamma = args
            close(out, gamma * found @ x + x, 1e-12)


def _spy(part, used):
    """Beside the recorder, keep map, result and arguments of pairwise attention."""
    watch = part._recorder

    def both(block, name, result, by, args):
        watch(block, name, result, by, args)
        if by is not None and name != 'context':
            used.append((by(torch.tensor([2 * 7 + 1, 6]), *args), result, args))

    part._recorder = both


def refusals(build):
    block = build()
    cls, name = type(block), type(block).__name__
    good = [torch.randn(shape) for shape in block.input_shapes(1, 4, 4)]
    for k, x in enumerate(good):
        for bad in x[0], x[:, :-1], x[None]:
            with pytest.raises(ValueError, match=rf'{name}: .*\(N, \w+, H, W\)'):
                block(*good[:k], bad, *good[k + 1 :])
    first, *_ = block.arguments
    for bad in 0, -8, '64', True, 2.0:
        with pytest.raises(ValueError, match=f'{name}: .*{bad!r}.*allowed'):
            cls(**(block.arguments | {first: bad}))
    with pytest.raises(ValueError, match=f"{name}: init='zero', allowed 'paper', 'identity'"):
        cls(**(block.arguments | dict(init='zero')))


_NEEDS = dict(starts='mmengine', onnx='onnxruntime')  # elsewhere these promises mean nothing
CHECKS = {
    check.__name__: check
    for check in (
        any_size,
        training_on_one_image,
        train_batch_2,
        train_one_pixel,
        half,
        gradcheck,
        compile,
        trace,
        export,
        onnx,
        copies,
        layouts,
        seeds,
        starts,
        learns,
        identity,
        forms,
        recording,
        refusals,
    )
    if is_installed(_NEEDS.get(check.__name__, 'torch'))
}
