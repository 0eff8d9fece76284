"""Blocks in networks of timm, as classifiers and with `features_only`."""

from functools import partial

import pytest
import torch

import mmattn
from mmattn.plugins import named_plugins
from tests.libraries.checks import CHECKS, IDENTITY, Case, close, run_page, trained

timm = pytest.importorskip('timm', reason='timm is not installed here')
optim = pytest.importorskip('timm.optim')

STAGE = dict(position='after_stage')
SWIN = dict(img_size=64, window_size=4, embed_dim=16, depths=(1,) * 4, num_heads=(1, 2, 4, 8))
FAMILIES = {  # name, arguments, path of a stage, its channels
    'resnet': ('test_resnet', {}, 'layer{}', (32, 48, 192, 96)),
    'convnext': ('test_convnext', {}, 'stages.{}', (24, 32, 48, 64)),
    'efficientnet': ('test_efficientnet', {}, 'blocks.{}', (16, 24, 32, 48, 64)),
    'swin': ('swin_tiny_patch4_window7_224', SWIN, 'layers.{}', (16, 32, 64, 128)),
}


def _cases():
    for family, (name, arguments, path, channels) in FAMILIES.items():
        first = 1 if family == 'resnet' else 0
        paths = [path.format(n) for n in range(first, first + len(channels))]
        build = partial(timm.create_model, name, num_classes=5, **arguments)
        yield family, Case(build, (STAGE,), tuple(paths), channels)
        if family != 'efficientnet':  # whose modules keep their names
            paths = [path.replace('.', '_') for path in paths]
        build = partial(timm.create_model, name, features_only=True, **arguments)
        yield f'{family} features', Case(build, (STAGE,), tuple(paths), channels)


CASES = dict(_cases())
# Compiled once: the modules of a classifier are those of its features.
RUNS = [(n, c) for n in CASES for c in CHECKS if not (c == 'compile' and n.endswith('features'))]


@pytest.mark.parametrize('name, check', RUNS)
def test_network(name, check):
    CHECKS[check](CASES[name])


def test_inductor_compiles_a_stage_of_swin_with_its_block():
    stage, x = trained(CASES['swin']).layers[0], torch.rand(1, 16, 16, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        close([torch.compile(stage)(x)], [stage(x)], 1e-4)


@pytest.mark.parametrize('name', ['swin', 'swin features'])
def test_after_a_stage_of_swin_it_is_the_block_between_two_permutes(name):
    case = CASES[name]
    model, plain = trained(case), case.plain()
    for host, (path, block) in zip(case.hosts, named_plugins(model)):
        assert path.startswith(f'{host}.') and block.plugin.layout == 'NHWC'

        def by_hand(module, inputs, y, block=block):
            return block.forward(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()

        plain.get_submodule(host).register_forward_hook(by_hand)
    close(case.outputs(model), case.outputs(plain))


@pytest.mark.parametrize(
    'name',
    [
        *('resnet18', 'resnetv2_50', 'convnext_atto', 'convnextv2_atto', 'efficientnet_b0'),
        *('mobilenetv3_small_050', 'swin_tiny_patch4_window7_224', 'swinv2_tiny_window8_256'),
        *('mambaout_femto', 'poolformer_s12'),
    ],
)
def test_channels_are_those_that_timm_tells(name):
    model = timm.create_model(name)
    mmattn.insert(model, [dict(STAGE, cfg=IDENTITY)])
    blocks = {path.rpartition('.')[0]: block for path, block in named_plugins(model)}
    channels = {info['module']: info['num_chs'] for info in model.feature_info}
    shared = set(channels) & set(blocks)
    assert len(shared) >= 3
    assert all(blocks[path].in_channels == channels[path] for path in shared)


@pytest.mark.parametrize(
    'name, message',
    [
        ('vit_tiny_patch16_224', 'VisionTransformer has none. Name modules with at'),
        ('regnetx_002', "RegNet has none. Name modules with at; .* at='s1', 's2', 's3', 's4'"),
        ('levit_128s', r'stages.0 \(LevitStage\) returns a tensor \(1, 196, 128\), not a map'),
        ('hrnet_w18_small', r'stage2 \(SequentialList\) runs all its children'),
    ],
)
def test_other_families_say_what_to_write(name, message, capfd):
    with pytest.raises(ValueError, match=message):
        mmattn.insert(timm.create_model(name), [dict(STAGE, cfg=IDENTITY)])
    assert not capfd.readouterr().err  # nothing of what torch logs of a dry run that fails


def test_a_stage_that_runs_its_children_is_refused():
    model = timm.create_model('regnetx_002')
    with pytest.raises(ValueError, match=r's1 \(RegStage\) runs all its children, .* last of them'):
        mmattn.insert(model, [dict(cfg=IDENTITY, at='s1')])
    assert mmattn.insert(model, [dict(cfg=IDENTITY, at='s1.b1')]) == ['s1.b1.cbam']
    assert mmattn.report(model, (64, 64)).rows[0].runs == 1


@pytest.mark.parametrize('name', ['resnet', 'convnext', 'efficientnet', 'swin'])
def test_checkpointing_changes_nothing_and_layer_decay_leaves_blocks_their_rate(name):
    case = CASES[name]
    model, stored = trained(case).train(), trained(case).train()
    stored.set_grad_checkpointing(True)
    gradients = []
    for network in model, stored:
        torch.manual_seed(0)
        network(case.images()).square().mean().backward()
        gradients.append([p.grad for _, b in named_plugins(network) for p in b.parameters()])
    close(*gradients)
    optimizer = optim.create_optimizer_v2(model, opt='adamw', lr=1e-3, layer_decay=0.5)
    rates = {id(p): g['lr_scale'] for g in optimizer.param_groups for p in g['params']}
    scales = [rates[id(next(block.parameters()))] for _, block in named_plugins(model)]
    assert set(scales) == {1.0} and min(rates.values()) < 0.3


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page('timm')
