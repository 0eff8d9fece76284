import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.models.backbones import UNet

from mmattn import AttentionUNet
from tests.models.backbones import equal, every_parameter_learns, randomised, set_mode

SMALL = dict(base_channels=4, num_stages=4, strides=(1,) * 4, enc_num_convs=(2,) * 4)
SMALL |= dict(dec_num_convs=(2,) * 3, downsamples=(True,) * 3)
SMALL |= dict(enc_dilations=(1,) * 4, dec_dilations=(1,) * 3)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('stages', [None, (2, 3), (1,)])
def test_each_skip_connection_is_gated_by_the_map_below(stages, training):
    model = set_mode(randomised(AttentionUNet(**SMALL, gated_stages=stages)), training)
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    skips, y = [], x
    for encode in model.encoder:
        y = encode(y)
        skips.append(y)
    wanted = [y]
    for index in 2, 1, 0:
        skip = skips[index]
        if stages is None or index + 1 in stages:
            skip = model.gates[str(index + 1)](skip, y)
        decode = model.decoder[index]
        y = decode.conv_block(torch.cat([skip, decode.upsample(y)], 1))
        wanted.append(y)
    equal(model(x), wanted)


OPTIONS = {
    'plain': {},
    'checkpointed': dict(with_cp=True),
    'strided': dict(strides=(1, 2, 1, 2)),
    'dilated': dict(downsamples=(True, False, False), enc_dilations=(1, 1, 2, 4), dec_dilations=(1, 1, 5)),
    'deconvolution': dict(upsample_cfg=dict(type='DeconvModule')),
    'group norm': dict(norm_cfg=dict(type='GN', num_groups=2), act_cfg=dict(type='LeakyReLU')),
    'frozen norms': dict(norm_eval=True, in_channels=1),
}  # fmt: skip


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('gate', [{}, dict(project=False)])
@pytest.mark.parametrize('name', OPTIONS)
def test_identity_start_is_the_stock_network(name, gate, training):
    options = SMALL | OPTIONS[name]
    model = AttentionUNet(**options, gate=dict(init='identity', **gate))
    plain = UNet(**options)
    model.init_weights()
    state = randomised(plain).float().state_dict()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert missing
    assert all(key.startswith('gates.') for key in missing)
    x = torch.randn(2, options.get('in_channels', 3), 16, 24)
    found, wanted = set_mode(model, training)(x), set_mode(plain, training)(x)
    assert len(found) == len(wanted) == 4
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


def test_gates_follow_the_options_of_the_network():
    options = SMALL | OPTIONS['dilated'] | dict(norm_cfg=dict(type='GN', num_groups=4))
    model = AttentionUNet(**options)
    assert [gate.sub_sample for gate in model.gates.values()] == [(2, 2), (1, 1), (1, 1)]
    assert all(isinstance(gate.project.norm, torch.nn.GroupNorm) for gate in model.gates.values())
    assert model.gates['3'].in_channels == 16
    assert model.gates['3'].gating_channels == 32
    own = AttentionUNet(**SMALL, gate=dict(sub_sample=1, norm_cfg=None))
    assert all(gate.sub_sample == (1, 1) for gate in own.gates.values())
    assert all(gate.project.norm is None for gate in own.gates.values())
    frozen = set_mode(AttentionUNet(**SMALL, norm_eval=True), True)
    assert not frozen.gates['1'].project.norm.training


def test_checkpointing_keeps_gradients():
    x, found = torch.randn(2, 3, 16, 24, dtype=torch.float64), []
    for with_cp in False, True:
        model = set_mode(randomised(AttentionUNet(**SMALL, with_cp=with_cp)), True)
        runs = []
        model.gates['2'].theta.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        outputs = model(x.clone().requires_grad_())
        sum(y.square().sum() for y in outputs).backward()
        assert len(runs) == (2 if with_cp else 1)
        found.append([*outputs, *(p.grad for p in model.parameters())])
    equal(*found)


@pytest.mark.parametrize('init', ['paper', 'identity'])
def test_starts_survive_a_checkpoint(init, tmp_path):
    path = str(tmp_path / 'weights.pth')
    plain = randomised(UNet(**SMALL)).float().state_dict()
    for weights in {}, plain:
        torch.save(weights, path)
        init_cfg = dict(type='Pretrained', checkpoint=path) if weights else None
        gate = dict(project=False, init=init)
        model = AttentionUNet(**SMALL, gate=gate, init_cfg=init_cfg)
        for block in model.gates.values():  # what must not be left
            torch.nn.init.constant_(block.psi.weight, 7)
        model.init_weights()
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in weights.items())
        psi = model.gates['3'].psi.weight
        assert not psi.any() if init == 'identity' else 0.2 < psi.std() < 1


def test_every_parameter_learns():
    every_parameter_learns(AttentionUNet(**SMALL))


def test_refused_arguments():
    for stages in (0,), (2, 4), ():
        with pytest.raises(ValueError, match='AttentionUNet: gated_stages=.*, allowed 1, 2, 3'):
            AttentionUNet(**SMALL, gated_stages=stages)
    with pytest.raises(ValueError, match="AttentionGate: normalize='mean'"):
        AttentionUNet(**SMALL, gate=dict(normalize='mean'))
