"""Every block compiles as one graph with the release of torch that the libraries have here.

And blocks that timm has, too, compute what its modules compute.
"""

import pytest
import torch

from mmattn.benchmarks.baselines import BASELINES
from mmattn.blocks.base import registered_blocks
from mmattn.zoo import from_author
from tests.blocks.slow import draw
from tests.conftest import randomise

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


PEERS = {  # system, class, arguments
    'eca': ('eca', 'EcaModule', dict(channels=10, kernel_size=5)),
    'eca circular': ('eca', 'CecaModule', dict(channels=10, kernel_size=5)),
    'coord': ('coord', 'CoordAttn', dict(channels=12, bias=True)),
    'coord simple': ('coord', 'SimpleCoordAttn', dict(channels=12)),
    'coord local': ('coord', 'EfficientLocalAttn', dict(channels=12, kernel_size=5)),
    'coord strip': ('coord', 'StripAttn', dict(channels=12)),
    'coord strip pool': ('coord', 'StripAttn', dict(channels=12, use_conv=False)),
    'mhsa': ('mhsa', 'BottleneckAttn', dict(dim=12, feat_size=(6, 5), num_heads=2)),
    'mhsa, stride 2': (
        'mhsa',
        'BottleneckAttn',
        dict(
            dim=10,
            dim_out=12,
            feat_size=(6, 5),
            stride=2,
            dim_head=5,
            qkv_bias=True,
            scale_pos_embed=True,
        ),
    ),
}


@pytest.mark.parametrize('name', PEERS)
def test_timm_computes_the_same(name):
    from timm.layers import bottleneck_attn, coord_attn, eca

    system, cls, arguments = PEERS[name]
    module = dict(eca=eca, coord=coord_attn, mhsa=bottleneck_attn)[system]
    theirs = randomise(getattr(module, cls)(**arguments).double()).eval()
    ours = from_author(system, cls, arguments, theirs.state_dict())
    x = draw(2, arguments.get('channels') or arguments['dim'], 6, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


TIMM = {name: b.make for name, rows in BASELINES.items() for b in rows if b.package == 'timm'}


@pytest.mark.parametrize('name', TIMM)
def test_baselines_of_the_benchmark_compute_the_same(name):
    block = randomise(registered_blocks()[name.split()[0]].build(64).double()).eval()
    x = 0.1 * draw(2, 64, 14, 14)
    torch.testing.assert_close(TIMM[name](block)(x), block(x), rtol=0, atol=1e-10)
