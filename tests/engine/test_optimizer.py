"""Optimizers that change all weights in one pass."""

import pytest
import torch
from torch import nn

from mmattn.engine.optimizer import with_fused_optimizer
from mmattn.torch_compat import supports_fused

CPU = torch.device('cpu')


@pytest.mark.parametrize('name', ['SGD', 'Adam', 'AdamW'])
def test_one_pass_where_there_is_one(name):
    settings = dict(lr=0.1, weight_decay=0.01) | (dict(momentum=0.9) if name == 'SGD' else {})
    wrapper = dict(type='OptimWrapper', optimizer=dict(type=name, **settings))
    changed = with_fused_optimizer(wrapper, CPU)
    assert changed['optimizer'] == dict(type=name, fused=True, **settings)
    assert 'fused' not in wrapper['optimizer']

    kind, networks = getattr(torch.optim, name), []
    for options in {}, dict(fused=True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 1, 3))
        optimizer = kind(network.parameters(), **settings, **options)
        for _ in range(3):
            network(torch.randn(2, 3, 9, 9)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        networks.append(torch.cat([p.flatten() for p in network.parameters()]))
    tolerance = 0 if name == 'SGD' else 1e-4
    assert (networks[0] - networks[1]).abs().max() <= tolerance * networks[0].abs().max()


@pytest.mark.parametrize(
    'optimizer',
    [
        dict(type='RMSprop', lr=0.1),
        dict(type='SGD', lr=0.1, foreach=True),
        dict(type='AdamW', lr=0.1, fused=False),
    ],
    ids=lambda optimizer: optimizer['type'],
)
def test_what_the_config_says_holds(optimizer):
    wrapper = dict(type='OptimWrapper', optimizer=optimizer)
    assert with_fused_optimizer(wrapper, CPU) is wrapper


def test_an_optimizer_without_such_a_kernel():
    assert supports_fused(torch.optim.SGD, CPU)
    assert not supports_fused(torch.optim.Adadelta, CPU)
