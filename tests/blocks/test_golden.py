"""Outputs, gradients and buffers equal to those that the authors' code gave for the same weights."""

import json

import numpy as np
import pytest
import torch

from mmattn.ops import affine_sample, deform_conv
from mmattn.zoo import from_author
from tests.conftest import GOLDEN

TOLERANCE = 1e-9  # of the largest value of the array; of 1 where all are smaller
CASES = json.loads((GOLDEN / 'index.json').read_text())
# a changed block, which ours deliberately is not; functions without a class
OTHER = {
    'sk_bottleneck_p32',
    'sk_bottleneck_p32_train',
    'stn_affine_c32_ac0_border',
    'stn_affine_c32_ac1_zeros',
}
# channels of the input, where the author's constructor does not take them
WITHOUT_CHANNELS = dict(sge_c64_g8=64, triplet_c16=16, simam_c12_l01=12)
BY_NAME = {case['file'].removesuffix('.npz'): case for case in CASES}
TARGETS = {name: case for name, case in BY_NAME.items() if name not in OTHER}


def arrays(name):
    with np.load(GOLDEN / f'{name}.npz', allow_pickle=False) as file:
        numbers = {key: file[key] for key in file.files if file[key].dtype.kind != 'U'}
    found = {key: torch.from_numpy(value) for key, value in numbers.items()}
    return {k: v.double() if v.is_floating_point() else v for k, v in found.items()}


def split(found):
    """-> state dict, inputs, outputs, loss weights, input gradients, then by name.

    By name are gradients of parameters, and buffers after a step.
    """
    state = {k: v for k, v in found.items() if not k.startswith('__')}
    rows = [
        [found[k] for k in sorted(found) if k.startswith(f'__{p}')]
        for p in ('input', 'output', 'gout', 'grad')
    ]
    named = [
        {k.removeprefix(p): v for k, v in found.items() if k.startswith(p)}
        for p in ('__pgrad:', '__after:')
    ]
    return state, *rows, *named


def rebuild(case, state, **changed):
    ctor = case.get('ctor', {}) | case.get('call', {}) | changed
    return from_author(
        case['system'],
        case['cls'],
        ctor,
        state,
        path=case['path'],
        in_channels=WITHOUT_CHANNELS.get(case['file'].removesuffix('.npz')),
    )


def same(value, wanted):
    assert (value - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp(min=1)


def target(name):
    """A case; deformable convolutions are operators of mmcv, a head is made of mmseg's parts."""
    case = TARGETS[name]
    theirs = case['system'].startswith('dcn') or 'Head' in case['cls']
    return pytest.param(name, marks=[pytest.mark.openmmlab] if theirs else [])


@pytest.mark.parametrize('name', map(target, TARGETS))
def test_authors_numbers(name):
    case = TARGETS[name]
    state, inputs, outputs, weights, gradients, by_name, after = split(arrays(name))
    module = rebuild(case, state).train(case['mode'] == 'train')
    inputs = [x.requires_grad_() for x in inputs]
    found = module(*inputs)
    if case['system'] == 'gate':  # the authors' return their map, too
        found = found, module.gate(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    sum((y * w).sum() for y, w in zip(found, weights, strict=True)).backward()
    for y, wanted in zip(found, outputs, strict=True):
        same(y, wanted)
    for x, wanted in zip(inputs, gradients, strict=True):
        same(x.grad, wanted)
    if by_name:  # renamed as the weights are
        wanted = rebuild(case, state | by_name)
        for key, value in module.named_parameters():
            same(value.grad, wanted.get_parameter(key))
    if case['mode'] == 'train':
        assert after
        # where one module has two names, the author's buffers stand under the first
        after |= {k.replace('f_key', 'f_query'): v for k, v in after.items() if 'apnb' in name}
        wanted = rebuild(case, state | after)  # the author's buffers after the step, as ours
        for key, value in module.named_buffers():
            same(value, wanted.get_buffer(key))


@pytest.mark.parametrize('name', ['stn_affine_c32_ac0_border', 'stn_affine_c32_ac1_zeros'])
def test_affine_sampling(name):
    _, (x, theta), (wanted,), (weight,), gradients, *_ = split(arrays(name))
    x, theta = x.requires_grad_(), theta.requires_grad_()
    ctor = BY_NAME[name]['ctor']
    y = affine_sample(
        x, theta, tuple(ctor['out_size'][2:]), ctor['padding_mode'], ctor['align_corners']
    )
    (y * weight).sum().backward()
    same(y, wanted)
    same(x.grad, gradients[0])
    same(theta.grad, gradients[1])


@pytest.mark.parametrize('name', ['dcnv1_k3_c32', 'dcnv2_k3_c32'])
def test_deformable_convolution_by_gathering(name):
    state, inputs, (wanted,), (weight,), gradients, *_ = split(arrays(name))
    x, offset, *mask = (t.requires_grad_() for t in inputs)
    y = deform_conv(x, offset, state['weight'], state.get('bias'), *mask, padding=1)
    (y * weight).sum().backward()
    same(y, wanted)
    for t, gradient in zip(inputs, gradients, strict=True):
        same(t.grad, gradient)


def test_the_changed_selective_kernel_block_is_refused():
    case = BY_NAME['sk_bottleneck_p32']
    with pytest.raises(ValueError, match=r"system 'sk', class Bottleneck: a changed block"):
        rebuild(case, {})


def test_a_height_of_the_map_is_not_its_pooling_window():
    """The authors pool a square of the height of the map for the channel gate; ours the whole."""
    state, (x,), *_ = split(arrays('bam_c64_square'))
    block = rebuild(BY_NAME['bam_c64_square'], state)
    wide = torch.cat([x, x.flip(3)[..., :3]], 3)
    assert (block.channel_logits(wide) - block.channel_logits(wide[..., :6])).abs().max() > 1e-3


def test_the_inverted_scale_of_gcnets_plugin_is_only_in_its_weights():
    """It multiplies the logits by sqrt(d); the same weights without that give something else."""
    case = BY_NAME['nl_gcnet_plugin_dot_c64']
    state, (x,), *_ = split(arrays('nl_gcnet_plugin_dot_c64'))
    theirs = rebuild(case, state, mode='embedded_gaussian')
    as_is = from_author('nl', 'NonLocal2d', case['ctor'] | dict(mode='embedded_gaussian'), state)
    assert (theirs(x) - as_is(x)).abs().max() > 1e-3
    q, k = theirs.theta.conv, theirs.phi.conv  # the plugin's formula, by its own tensors
    theta = (
        torch.einsum('oc,nchw->nohw', state['theta.conv.weight'][:, :, 0, 0], x)
        + state['theta.conv.bias'][:, None, None]
    )
    logits = theta.flatten(2).mT @ k(x).flatten(2) * q.out_channels**0.5
    y = theirs.g(x).flatten(2) @ logits.softmax(-1).mT
    same(theirs(x), x + theirs.conv_out(y.unflatten(2, x.shape[2:])))


def test_files_are_small():
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 6e6
