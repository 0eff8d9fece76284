import copy
import pickle

import numpy as np
import pytest
import torch
from mmengine.model import BaseModule, Sequential
from torch import nn

from mmattn import CrissCrossAttention
from tests.conftest import GOLDEN, randomise


def golden(name):
    with np.load(GOLDEN / f'{name}.npz', allow_pickle=False) as file:
        arrays = {k: torch.from_numpy(file[k]) for k in file.files if k != '__ctor'}
    own = {k: v for k, v in arrays.items() if not k.startswith('__')}
    own['gamma.scale'] = own.pop('gamma').reshape(())  # the author's has shape (1)
    return arrays, own


@pytest.mark.parametrize('name, recurrence', [('ccnet_c32', 1), ('ccnet_c32_recurrence2', 2)])
def test_authors_code(name, recurrence):
    arrays, weights = golden(name)
    block = CrissCrossAttention(32, recurrence=recurrence).double()
    block.load_state_dict(weights)
    x = arrays['__input0'].requires_grad_()
    y = block(x)
    (y * arrays['__gout0']).sum().backward()
    found = {'__output0': y, '__grad0': x.grad}
    for key, value in block.named_parameters():
        author = key.replace('gamma.scale', 'gamma')
        found[f'__pgrad:{author}'] = value.grad.reshape(arrays[f'__pgrad:{author}'].shape)
    for key, value in found.items():
        scale = arrays[key].abs().max().clamp(min=1)
        assert (value - arrays[key]).abs().max() / scale < 1e-9, key


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_mmcv(dtype, tolerance):
    from mmcv.ops import CrissCrossAttention as Theirs

    theirs = randomise(Theirs(16)).to(dtype)
    ours = CrissCrossAttention(16).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x, y = (
        t.requires_grad_() for t in torch.randn(1, 2, 16, 5, 7, dtype=dtype).repeat(2, 1, 1, 1, 1)
    )
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    mine, other = ours(x), theirs(y)
    torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    weight = torch.randn_like(mine)
    (mine * weight).sum().backward()
    (other * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('recurrence, reached', [(1, 4 + 6 - 1), (2, 4 * 6)])
def test_one_round_reaches_row_and_column_two_reach_all(recurrence, reached):
    block = randomise(CrissCrossAttention(8, recurrence=recurrence)).double()
    x = torch.randn(1, 8, 4, 6, dtype=torch.float64, requires_grad=True)
    block(x)[0, :, 1, 2].sum().backward()
    assert (x.grad.abs().sum(1) > 0).sum() == reached


def test_a_fresh_block_is_the_identity_and_every_parameter_learns():
    block = CrissCrossAttention(16, recurrence=2)
    x, target = torch.randn(2, 1, 16, 4, 3)
    assert torch.equal(block(x), x)
    start = copy.deepcopy(block.state_dict())
    step = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(3):
        step.zero_grad()
        (block(x) - target).square().sum().backward()
        step.step()
    for name, value in block.state_dict().items():
        if name != 'key_conv.bias':  # adds the same to all logits of a query: softmax removes it
            assert not torch.equal(value, start[name]), name


def test_the_start_survives_the_parents_initialisation():
    class Host(BaseModule):
        def __init__(self):
            super().__init__(init_cfg=dict(type='Constant', layer=['Conv2d', 'Scale'], val=7))
            self.inner = Sequential(nn.Conv2d(16, 16, 1), CrissCrossAttention(16))

    host = Host()
    host.init_weights()
    block = host.inner[1]
    assert block.gamma.scale == 0
    assert not (block.value_conv.weight == 7).any()
    before = copy.deepcopy(block.state_dict())
    host.init_weights()
    assert all(torch.equal(before[k], v) for k, v in block.state_dict().items())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('size', [(5, 7), (1, 6), (6, 1), (1, 1)])
def test_every_precision_and_size(dtype, size):
    block = randomise(CrissCrossAttention(16, recurrence=2)).to(dtype)
    x = torch.randn(2, 16, *size).to(dtype)
    y = block(x)
    assert y.shape == x.shape and y.dtype == dtype and y.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    block = randomise(CrissCrossAttention(16))
    x = torch.randn(1, 16, 5, 7)
    with torch.autocast('cpu', dtype):
        y = block(x)
    torch.testing.assert_close(y.float(), block(x), rtol=0.05, atol=0.05)


def test_copy_pickle_layout():
    block = randomise(CrissCrossAttention(16, recurrence=2))
    x = torch.randn(2, 16, 4, 6)
    y = block(x)
    for other in copy.deepcopy(block), pickle.loads(pickle.dumps(block)):
        assert torch.equal(other(x), y)
    torch.testing.assert_close(block(x.to(memory_format=torch.channels_last)), y)
    torch.testing.assert_close(block(x.mT.contiguous().mT), y)


def test_compile_and_export():
    block = randomise(CrissCrossAttention(16, recurrence=2)).eval()
    x = torch.randn(2, 16, 4, 6)
    compiled = torch.compile(block, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(x), block(x))
    height, width = torch.export.Dim('h', min=2, max=64), torch.export.Dim('w', min=2, max=64)
    exported = torch.export.export(block, (x,), dynamic_shapes=({2: height, 3: width},)).module()
    larger = torch.randn(2, 16, 9, 5)
    torch.testing.assert_close(exported(larger), block(larger))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(in_channels=7), 'in_channels=7, allowed 8'),
        (dict(in_channels=16, recurrence=0), 'recurrence=0, allowed whole numbers from 1'),
        (dict(in_channels=16, init='zero'), "init='zero', allowed 'paper'"),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CrissCrossAttention(**arguments)


def test_refused_input():
    with pytest.raises(ValueError, match=r'\(1, 8, 3, 3\), allowed \(N, 16, H, W\)'):
        CrissCrossAttention(16)(torch.randn(1, 8, 3, 3))


def test_found_from_any_scope():
    from mmengine.registry import MODELS, DefaultScope

    for scope in 'mmseg', 'mmdet', 'mmengine':
        with DefaultScope.overwrite_default_scope(scope):
            assert MODELS.get('mmattn.CrissCrossAttention') is CrissCrossAttention
