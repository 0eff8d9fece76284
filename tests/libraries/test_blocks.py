"""Every block compiles as one graph with the release of torch that the libraries have here."""

import pytest
import torch

from mmattn.blocks.base import registered_blocks

pytest.importorskip('timm', reason='timm is missing')


@pytest.mark.parametrize('name', registered_blocks())
def test_it_compiles_as_one_graph(name):
    cls = registered_blocks()[name]
    block = cls.build(**cls.examples[0]).eval()
    inputs = [torch.randn(shape) for shape in block.input_shapes(2, 12, 16)]
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(block, backend='eager', fullgraph=True)(*inputs)
        torch.testing.assert_close(found, block(*inputs))
