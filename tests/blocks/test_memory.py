"""No pairwise block allocates or keeps a map over all pairs of positions."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.blocks import contract

SIZE = 40, 50
PAIRS = (SIZE[0] * SIZE[1]) ** 2
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


@pytest.mark.parametrize(
    'cls, example', [(c, i) for c, v in PAIRWISE.items() for i in range(len(v.examples))]
)
def test_no_map_over_pairs(monkeypatch, cls, example):
    for module in 'non_local', 'criss_cross', 'relative':  # what is at work at a time
        for name in '_ROWS', '_BLOCK':
            monkeypatch.setattr(sys.modules[f'mmattn.ops.{module}'], name, 1 << 14, raising=False)
    cls = PAIRWISE[cls]
    block = contract.randomised(cls.build(**cls.examples[example])).train()
    inputs = [t.requires_grad_() for t in contract.draw(block, 2, SIZE)]
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
