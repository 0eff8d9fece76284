import pytest
import torch
from torch.nn import functional as F

from mmattn import AttentionGate
from mmattn.zoo import from_author
from tests.blocks.slow import agree, batch_norm, conv, draw, drawn, resize, softmax


def formula(block, x, gating, sub_sample=(2, 2), gating_sub_sample=(1, 1), init='paper', **more):
    theta = conv(x, block.theta, sub_sample)
    phi = resize(conv(gating, block.phi, gating_sub_sample), theta.shape[2:], False)
    f = theta + phi
    activation = more.get('activation', 'relu')
    if activation == 'relu':
        f = f.clamp(min=0)
    elif activation == 'softplus':
        f = (1 + f.exp()).log()
    z = conv(f, block.psi)
    free = more.get('normalize', 'sigmoid') == 'sigmoid' and not more.get('project', True)
    scale = 2 if free and init == 'identity' else 1
    a = resize(scale * weights(z, **more), x.shape[2:], False)
    y = x * a
    if more.get('project', True):
        y = conv(y, block.project.conv)
        y = y if block.project.norm is None else batch_norm(y, block.project.norm)
    return x + block.rho.scale * (y - x) if init == 'identity' and not free else y


def weights(z, normalize='sigmoid', **_):
    images = []
    for image in z.flatten(2)[:, 0]:
        low, high = min(image), max(image)
        if normalize == 'sigmoid':
            found = [1 / (1 + (-v).exp()) for v in image]
        elif normalize == 'softmax':
            found = list(softmax(list(image)))
        elif normalize == 'mean_flow':
            found = [(v - low) / sum(u - low for u in image) for v in image]
        else:
            found = [(v - low) / (high - low) for v in image]
        images.append(torch.stack(found))
    return torch.stack(images).reshape(z.shape)


FORMS = [
    dict(),
    dict(normalize='softmax', activation='softplus', norm_cfg=None),
    dict(normalize='mean_flow', bias=False, gating_sub_sample=(2, 1)),
    dict(normalize='range', activation=None, project=False, sub_sample=(1, 2)),
    dict(project=False, sub_sample=(3, 1), channels=3),
]


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('init', ['paper', 'identity'])
@pytest.mark.parametrize('form', FORMS)
def test_formula(form, init, train):
    block = drawn(AttentionGate(6, 5, init=init, **form), train)
    agree(block, formula, draw(2, 6, 7, 4), draw(2, 5, 3, 2), init=init, **form)


@pytest.mark.parametrize('size', [(1, 1), (1, 4), (9, 6)])
def test_the_gating_map_may_have_any_size(size):
    """Resized down where it is finer than theta; the sigmoid is resized, not its logit."""
    block = drawn(AttentionGate(4, 3, project=False))
    agree(block, formula, draw(2, 4, 5, 4), draw(2, 3, *size), project=False)


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (4, 1)])
def test_one_row_or_column(size):
    form = dict(sub_sample=(1, 1), norm_cfg=None)
    block = drawn(AttentionGate(4, 3, **form))
    agree(block, formula, draw(2, 4, *size), draw(2, 3, *size), **form)


def test_the_last_odd_row_is_gated_but_takes_no_part_in_the_logits():
    block = drawn(AttentionGate(4, 3))
    x, g = draw(1, 4, 5, 4), draw(1, 3, 2, 2)
    other = x.clone()
    other[:, :, 4] = 7
    assert torch.equal(block.gate(x, g), block.gate(other, g))
    changed = (block(x, g) - block(other, g)).abs().amax((0, 1, 3))
    assert changed[4] > 1e-3
    assert not changed[:4].any()


@pytest.mark.parametrize('normalize, weight', [('mean_flow', 1 / 12), ('range', 1)])
def test_equal_logits_give_equal_weights(normalize, weight):
    block = drawn(AttentionGate(4, 3, sub_sample=1, normalize=normalize, project=False))
    torch.nn.init.zeros_(block.psi.weight)
    x, g = draw(2, 4, 3, 4).requires_grad_(), draw(2, 3, 3, 4)
    torch.testing.assert_close(block(x, g), x * weight)
    grads = torch.autograd.grad(block(x, g).sum(), [x, *block.parameters()])
    assert all(grad.isfinite().all() for grad in grads)
    flat = torch.full((2, 4, 3, 4), 3.0)  # a map whose logits differ by rounding alone
    flat_gate = block.float().gate(flat, torch.full((2, 3, 3, 4), 3.0))
    torch.testing.assert_close(flat_gate, torch.full_like(flat_gate, weight))


def test_start():
    block = AttentionGate(64, 32, channels=40)
    for conv_layer in block.theta, block.phi, block.project.conv:
        fan = conv_layer.weight[0].numel()
        assert conv_layer.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.2)
    assert block.project.bn.weight.mean().item() == pytest.approx(1, abs=0.02)
    assert 0.01 < block.project.bn.weight.std() < 0.03
    assert not block.project.bn.bias.any()
    free = AttentionGate(8, 8, project=False, init='identity')
    assert free.form == 'identity'
    assert not free.psi.weight.any()
    assert AttentionGate(8, 8, init='identity').form == ''


def test_keys_and_size():
    shapes = {k: tuple(v.shape) for k, v in AttentionGate(256, 512).state_dict().items()}
    norm = {f'project.bn.{k}': (256,) for k in ('weight', 'bias', 'running_mean', 'running_var')}
    assert shapes == norm | {
        'theta.weight': (128, 256, 2, 2),
        'phi.weight': (128, 512, 1, 1),
        'phi.bias': (128,),
        'psi.weight': (1, 128, 1, 1),
        'psi.bias': (1,),
        'project.conv.weight': (256, 256, 1, 1),
        'project.bn.num_batches_tracked': (),
    }
    assert (
        sum(p.numel() for p in AttentionGate(256, 512).parameters()) == 263_169 - 256
    )  # theirs has W's bias
    assert AttentionGate(1, 3).theta.out_channels == 1


def test_less_is_kept_for_backward_than_the_product():
    """Beside x: the norm's input, and logits of an eighth of x; without a norm, the latter alone."""
    for train, most in (True, 1.2), (False, 0.2):
        block = AttentionGate(64, 128).train(train)
        x, g = torch.randn(2, 64, 16, 16), torch.randn(2, 128, 8, 8, requires_grad=True)
        x.requires_grad_()
        known = {t.untyped_storage().data_ptr() for t in (x, g, *block.parameters())}
        kept = {}

        def pack(t, known=known, kept=kept):
            if t.untyped_storage().data_ptr() not in known:
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            block(x, g)
        assert sum(kept.values()) < (most + 0.1) * x.nbytes


def test_a_hook_on_the_projection_is_called():
    block, calls = drawn(AttentionGate(4, 3)), []
    x, g = draw(1, 4, 4, 4), draw(1, 3, 2, 2)
    wanted = block(x, g)
    block.project.bn.register_forward_hook(lambda *_: calls.append('bn'))
    torch.testing.assert_close(block(x, g), wanted)
    block.project.register_forward_hook(lambda *_: calls.append('project'))
    torch.testing.assert_close(block(x, g), wanted)
    assert calls == ['bn', 'bn', 'project']


@pytest.mark.parametrize('affine, tracked', [(False, True), (True, False)])
def test_norms_without_weights_or_statistics(affine, tracked):
    cfg = dict(type='BN', affine=affine, track_running_stats=tracked)
    block = AttentionGate(4, 3, norm_cfg=cfg).double().eval()
    x, g = draw(2, 4, 4, 4), draw(2, 3, 2, 2)
    mapped = block.project.conv(x * block.gate(x, g))
    torch.testing.assert_close(block(x, g), block.project.bn(mapped))


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(channels=0), 'channels=0, allowed whole'),
        (dict(gating_channels=0), 'gating_channels=0, allowed whole'),
        (dict(sub_sample=0), 'sub_sample=0, allowed whole'),
        (dict(sub_sample=(2, 0)), 'sub_sample=0, allowed whole'),
        (dict(sub_sample=(2, 2, 2)), r'sub_sample=\(2, 2, 2\), allowed whole'),
        (dict(gating_sub_sample=1.5), 'gating_sub_sample=1.5, allowed whole'),
        (dict(activation='gelu'), "activation='gelu', allowed 'relu', 'softplus', None"),
        (
            dict(normalize='mean'),
            "normalize='mean', allowed 'sigmoid', 'softmax', 'mean_flow', 'ra",
        ),
        (dict(project=False, norm_cfg=dict(type='GN', num_groups=2)), 'with project=False'),
    ],
)
def test_refused_arguments(arguments, message):
    with pytest.raises(ValueError, match=f'AttentionGate: .*{message}'):
        AttentionGate(**(dict(in_channels=8, gating_channels=4) | arguments))


def test_refused_inputs():
    block = AttentionGate(4, 3, gating_sub_sample=(1, 2))
    x, g = torch.randn(2, 4, 6, 5), torch.randn(2, 3, 3, 2)
    block(x, g)
    for inputs, message in (
        ((x, g[:1]), r'input \(2, 4, 6, 5\) and gating \(1, 3, 3, 2\) differ in the batch size'),
        ((x[..., :1], g), r'input \(2, 4, 6, 1\) and .* sub_sample=\(2, 2\), allowed H from 2'),
        ((x[:, :, :1], g), r'input .* with sub_sample=\(2, 2\)'),
        ((x, g[..., :1]), r'input .* gating \(2, 3, 3, 1\) with gating_sub_sample=\(1, 2\)'),
        ((x[:, :3], g), r'input \(2, 3, 6, 5\), allowed \(N, 4, H, W\)'),
        ((x, g[:, :2]), r'gating \(2, 2, 3, 2\), allowed \(N, 3, H, W\)'),
    ):
        with pytest.raises(ValueError, match=f'AttentionGate: {message}'):
            block(*inputs)


# ------------------------------------------------------------ the authors' classes


def authors(c, c_g, f, s, t=None, bias=True, w=True, bn=True):
    t = t or (1, 1)
    state = {
        'theta.weight': draw(f, c, *s),
        'phi.weight': draw(f, c_g, *t),
        'psi.weight': draw(1, f, 1, 1),
        'psi.bias': draw(1),
    }
    if bias:
        state['phi.bias'] = draw(f)
    if w:
        state |= {'W.0.weight': draw(c, c, 1, 1), 'W.0.bias': draw(c)}
        state |= {f'W.1.{k}': draw(c) for k in ('weight', 'bias', 'running_mean')}
        state |= {'W.1.running_var': draw(c).exp(), 'W.1.num_batches_tracked': torch.tensor(3)}
        if not bn:
            state = {k.replace('W.0', 'W'): v for k, v in state.items() if 'W.1' not in k}
    return state


def authors_forward(state, x, g, s, t, activation, normalize, train=False):
    """The authors' sequence of operations, and the statistics of the norm afterwards."""
    state = {k: v.clone() for k, v in state.items()}
    theta = F.conv2d(x, state['theta.weight'], stride=s)
    phi = F.conv2d(g, state['phi.weight'], state.get('phi.bias'), stride=t)
    f = activation(theta + F.interpolate(phi, theta.shape[2:], mode='bilinear'))
    z = F.conv2d(f, state['psi.weight'], state['psi.bias'])
    a = normalize(z.flatten(1)).reshape(z.shape)
    y = x * F.interpolate(a, x.shape[2:], mode='bilinear')
    if 'W.weight' in state:
        return F.conv2d(y, state['W.weight'], state['W.bias']), state
    if 'W.0.weight' in state:
        y = F.conv2d(y, state['W.0.weight'], state['W.0.bias'])
        mean, var = state['W.1.running_mean'], state['W.1.running_var']
        y = F.batch_norm(y, mean, var, state['W.1.weight'], state['W.1.bias'], train)
    return y, state


def _mean_flow(z):
    z = z - z.min(1, keepdim=True)[0]
    return z / z.sum(1, keepdim=True)


def _range(z):
    low, high = z.min(1, keepdim=True)[0], z.max(1, keepdim=True)[0]
    return (z - low) / (high - low)


def _softmax(z):
    return z.softmax(1)


RELU, SIGMOID = torch.relu, torch.sigmoid
MODES = {
    'one number': ('', dict(sub_sample_factor=3), dict(s=(3, 3)), RELU, SIGMOID),
    'fine gating': ('', dict(sub_sample_factor=(4, 2)), dict(s=(4, 2)), RELU, SIGMOID),
    'no sub-sampling': ('', dict(sub_sample_factor=1), dict(s=(1, 1)), RELU, SIGMOID),
    'residual': ('', dict(mode='concatenation_residual'), dict(s=(2, 2)), RELU, _softmax),
    'debug': ('', dict(mode='concatenation_debug'), dict(s=(2, 2)), F.softplus, SIGMOID),
    'flow': ('_TORR', dict(mode='concatenation_mean_flow'), dict(s=(1, 1), bias=False), RELU, _mean_flow),
    'softmax': ('_TORR', dict(mode='concatenation_softmax', bn_layer=False), dict(s=(1, 1), bias=False, bn=False), RELU, _softmax),
    'range': ('_TORR', dict(mode='concatenation_range_normalise', use_W=False, nonlinearity1=None), dict(s=(1, 1), bias=False, w=False), lambda f: f, _range),
    'strided': ('_TORR', dict(mode='concatenation_sigmoid', sub_sample_factor=(2, 2)), dict(s=(2, 2), t=(2, 2), bias=False), RELU, SIGMOID),
}  # fmt: skip


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', MODES)
def test_modes_of_the_authors_classes(name, train):
    cls, ctor, shape, activation, normalize = MODES[name]
    state = authors(6, 5, 4, **shape)
    ctor = dict(in_channels=6, gating_channels=5, inter_channels=4) | ctor
    block = from_author('gate', f'GridAttentionBlock2D{cls}', ctor, state).train(train)
    x, g = draw(2, 6, 9, 8), draw(2, 5, 12, 5)
    s, t = shape['s'], shape.get('t', (1, 1))
    wanted, after = authors_forward(state, x, g, s, t, activation, normalize, train)
    torch.testing.assert_close(block(x, g), wanted, rtol=0, atol=1e-10)
    if 'W.1.weight' in state:
        moved = after['W.1.running_mean'] - after['W.0.bias']
        torch.testing.assert_close(block.project.bn.running_mean, moved)
