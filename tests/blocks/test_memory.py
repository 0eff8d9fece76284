"""No pairwise block allocates or keeps a map over all pairs of positions."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmattn.benchmarks.timing import saved_bytes
from tests.blocks import contract

SIZE = 40, 50
PAIRS = (SIZE[0] * SIZE[1]) ** 2
LAYOUTS = dict(NCHW=torch.contiguous_format, NHWC=torch.channels_last)
PAIRWISE = {k: v for k, v in contract.registered().items() if 'pairwise' in v.kind}


class Largest(TorchDispatchMode):
    """The largest result of any operation, in elements."""

    def __init__(self):
        super().__init__()
        self.elements, self.by = 0, ''

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().nbytes():
                elements = t.untyped_storage().nbytes() // t.element_size()
                if elements > self.elements:
                    self.elements, self.by = elements, func._schema.name
        return out


def kept(block, inputs):
    """Bytes that autograd keeps between forward and backward."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = block(*inputs)
    return y, sum(storages.values())


def in_layout(inputs, layout):
    format_ = LAYOUTS[layout]
    return [t.contiguous(memory_format=format_).detach().requires_grad_() for t in inputs]


@pytest.mark.parametrize(
    'cls, example', [(c, i) for c, v in PAIRWISE.items() for i in range(len(v.examples))]
)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_map_over_pairs(monkeypatch, cls, example, layout):
    for module in 'non_local', 'criss_cross', 'relative':  # what is at work at a time
        for name in '_ROWS', '_BLOCK':
            monkeypatch.setattr(sys.modules[f'mmattn.ops.{module}'], name, 1 << 14, raising=False)
    cls = PAIRWISE[cls]
    block = contract.randomised(cls.build(**cls.examples[example])).train()
    inputs = in_layout(contract.draw(block, 2, SIZE), layout)
    with Largest() as largest:
        y, nbytes = kept(block, inputs)
        y.backward(torch.randn_like(y))
    assert largest.elements < PAIRS / 8, f'{largest.by} makes {largest.elements} elements'
    assert nbytes < PAIRS, f'{nbytes} bytes are kept'


def test_it_would_be_seen():
    """The plain formula fails on both counts."""

    def plain(x):
        x = x.flatten(2)
        return x @ (x.mT @ x).softmax(-1).mT

    with Largest() as largest:
        _, nbytes = kept(plain, [torch.randn(2, 8, *SIZE, requires_grad=True)])
    assert largest.elements >= PAIRS and nbytes >= 4 * PAIRS


# maps of the size of the input that are saved in addition to it
SAVED_MAPS = dict.fromkeys(['ECA', 'CMPESE', 'LSK', 'SE', 'SGE', 'ShuffleAttention', 'SimAM'], 0.01)
SAVED_MAPS |= dict.fromkeys(['ContextBlock', 'SCSE', 'SimplifiedNonLocal'], 0.02)  # one channel
SAVED_MAPS |= dict(CAM=0.04, CBAM=1.1, CoordinateAttention=0.12, EMAttention=0.12, LSKA=1.01)
SAVED_MAPS |= dict(TripletAttention=0.4)  # strips along all three axes


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('cls', SAVED_MAPS)
def test_what_gates_save(cls, layout):
    """The same in both layouts: no copy in the other one is saved."""
    block = contract.registered()[cls].build(64)
    contract.randomised(block).train()
    inputs = in_layout([torch.randn(shape) for shape in block.input_shapes(2, 48, 40)], layout)
    excluded = [*block.parameters(), *block.buffers()]
    nbytes = saved_bytes(block, inputs, excluded)
    assert nbytes <= SAVED_MAPS[cls] * inputs[0].nbytes
