import functools

import pytest
import torch
from mmdet.models import ResNet
from mmseg.models import ResNetV1c

from mmattn import GatedResNet, GatedResNetV1c
from mmattn.config.attention import add_attention
from mmattn.config.load import load_config
from tests.models.backbones import (
    checkpointing_keeps_gradients,
    equal,
    every_parameter_learns,
    freezes_as_mmdet,
    randomised,
    set_mode,
    trains_in_retinanet,
)

SMALL = dict(base_channels=8, gate=dict(project=False))
HOSTS = {
    'mmdet': (GatedResNet, ResNet, {}),
    'mmseg': (GatedResNetV1c, ResNetV1c, dict(stem_channels=8)),
}


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('host', HOSTS)
def test_each_output_is_gated_by_the_stock_networks_next_one(host, depth, training):
    cls, stock, more = HOSTS[host]
    options = dict(depth=depth, base_channels=8, norm_eval=False) | more
    model = cls(**options, gated_stages=(1, 3))
    plain = stock(**options)
    set_mode(randomised(model), training)
    stages = {k: v for k, v in model.state_dict().items() if not k.startswith('gates.')}
    set_mode(plain.double(), training).load_state_dict(stages)
    x = torch.randn(2, 3, 65, 97, dtype=torch.float64)
    maps = plain(x)
    found = model(x)
    gates = model.gates
    wanted = (gates['1'](maps[0], maps[1]), maps[1], gates['3'](maps[2], maps[3]), maps[3])
    equal(found, wanted)
    assert (found[0] - maps[0]).abs().max() > 1e-3


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('gate', [dict(), dict(project=False)])
@pytest.mark.parametrize(
    'host, depth, options',
    [
        ('mmdet', 18, dict(avg_down=True, deep_stem=True)),
        ('mmdet', 50, dict(with_cp=True, out_indices=(1, 2, 3))),
        ('mmseg', 18, dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True)),
        ('mmseg', 50, dict(with_cp=True)),
    ],
)
def test_identity_start_is_the_stock_network(host, depth, options, gate, training):
    cls, stock, more = HOSTS[host]
    options = dict(depth=depth, base_channels=8, norm_eval=False) | more | options
    model, plain = cls(**options, gate=dict(init='identity', **gate)), stock(**options)
    model.init_weights()
    state = randomised(plain).float().state_dict()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing
    assert all(key.startswith('gates.') for key in missing)
    x = torch.randn(2, 3, 65, 97)
    for y, wanted in zip(set_mode(model, training)(x), set_mode(plain, training)(x), strict=True):
        assert torch.equal(y, wanted)


@pytest.mark.parametrize('init', ['paper', 'identity'])
def test_starts_survive_a_checkpoint(init, tmp_path):
    gate = dict(project=False, init=init)
    build = functools.partial(GatedResNet, 18, base_channels=8, gate=gate)
    path = str(tmp_path / 'weights.pth')
    pretrained = dict(type='Pretrained', checkpoint=path)
    plain = randomised(ResNet(18, base_channels=8)).float().state_dict()
    for weights in {}, plain, randomised(build()).float().state_dict():
        torch.save(weights, path)
        model = build(init_cfg=pretrained if weights else None)
        for block in model.gates.values():  # what must not be left
            torch.nn.init.constant_(block.psi.weight, 7)
        model.init_weights()
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in weights.items())
        if len(weights) < len(state):
            psi = model.gates['3'].psi.weight
            assert not psi.any() if init == 'identity' else 0.2 < psi.std() < 1


def test_stages():
    model = GatedResNet(18, **SMALL)
    assert list(model.gates) == ['1', '2', '3']
    assert list(GatedResNet(18, **SMALL, out_indices=(0, 2)).gates) == ['1']
    gate = GatedResNet(18, **SMALL, out_indices=(0, 2)).gates['1']
    assert (gate.in_channels, gate.gating_channels) == (8, 32)


def test_freezing():
    freezes_as_mmdet(lambda **options: GatedResNet(50, **SMALL, **options))


@pytest.mark.parametrize('host', HOSTS)
def test_checkpointing(host):
    cls, _, options = HOSTS[host]
    checkpointing_keeps_gradients(functools.partial(cls, depth=18, **SMALL, **options))


def test_every_parameter_learns():
    every_parameter_learns(GatedResNet(18, base_channels=8))


@pytest.mark.parametrize('name', ['GatedResNet', 'GatedResNetV1c'])
def test_trains_in_a_detector(name):
    backbone = dict(type=f'mmattn.{name}', depth=18, frozen_stages=1, gated_stages=(2, 3), **SMALL)
    trains_in_retinanet(backbone, [8, 16, 32, 64])


@pytest.mark.parametrize(
    'config',
    ['faster_rcnn_r18_bccd', 'retinanet_r18_bccd', 'mask_rcnn_r18_street', 'ccnet_r18_street'],
)
def test_the_placement_names_stages_that_are_read(config):
    """Heads and necks read the output of stage 3 in all of them."""
    cfg = load_config(f'configs/{config}.py')
    add_attention(cfg, 'gate')
    backbone = cfg.model.backbone
    assert backbone.type in ('mmattn.GatedResNet', 'mmattn.GatedResNetV1c')
    read = {
        head.in_index + 1 for k in ('decode_head', 'auxiliary_head') if (head := cfg.model.get(k))
    }
    if not read:
        read = set(range(cfg.model.neck.get('start_level', 0) + 1, 5))
    assert set(backbone.gated_stages) <= read


def test_refused_arguments():
    with pytest.raises(ValueError, match='GatedResNet: depth=20, allowed 18, 34, 50, 101, 152'):
        GatedResNet(20)
    with pytest.raises(ValueError, match=r'GatedResNetV1c: gated_stages=\(4,\), allowed 1, 2, 3'):
        GatedResNetV1c(depth=18, gated_stages=(4,))
    with pytest.raises(ValueError, match=r'GatedResNet: gated_stages=\(\), allowed 1, 2, 3'):
        GatedResNet(18, gated_stages=())
    with pytest.raises(
        ValueError, match='gated_stages=None, allowed none: one output has no coarser'
    ):
        GatedResNet(18, out_indices=(3,))
    with pytest.raises(ValueError, match='AttentionGate: sub_sample=0'):
        GatedResNet(18, gate=dict(sub_sample=0))
