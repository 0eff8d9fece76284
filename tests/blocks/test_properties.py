"""What follows from the formulas for any size, any weights and any input, drawn by hypothesis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmattn import blocks, ops
from mmattn.blocks import (
    APNB,
    CAM,
    CBAM,
    CMPESE,
    PAM,
    SCSE,
    SE,
    SGE,
    AttentionBlock,
    ContextBlock,
    CrissCrossAttention,
    DualAttention,
    EMAttention,
    NonLocal2d,
    ShuffleAttention,
    SimAM,
    SimplifiedNonLocal,
    SKConv2d,
    SpatialTransformer,
)
from mmattn.visualization import record
from tests.conftest import randomise

COUNTS, SIZES, CHANNELS = st.integers(1, 3), st.integers(1, 6), st.sampled_from([8, 16, 24])
MAPS = dict(n=COUNTS, height=SIZES, width=SIZES)
FEW, MANY = st.integers(1, 3), st.integers(10, 14)
MODES = ('gaussian', 'embedded_gaussian', 'dot_product', 'concatenation')


def over(**drawn):
    """25 cases of what is drawn and of a seed, the same ones in every run."""
    options = settings(deadline=None, max_examples=25, derandomize=True)
    return lambda test: options(given(seed=st.integers(0, 2**31 - 1), **drawn)(test))


def draw(seed, *shapes, spread=0.5):
    """Normal fp64 tensors; the spread keeps a softmax over x . x away from a single one."""
    generator = torch.Generator().manual_seed(seed)
    found = [
        spread * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    ]
    return found if len(found) > 1 else found[0]


def build(seed, cls, *args, **arguments):
    torch.manual_seed(seed)
    return randomise(cls.build(*args, **arguments)).double().eval()


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def ordered(seed, count):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def permuted(x, order):
    """The map with its pixels in another order."""
    return x.flatten(2)[..., order].unflatten(2, x.shape[2:])


def case(cls, *more, **arguments):
    name = ', '.join(f'{k}={v}' for k, v in arguments.items())
    return pytest.param(cls, arguments, *more, id=f'{cls.__name__}({name})')


# ---------------------------------------------------------------- the order of the pixels


@pytest.mark.parametrize(
    'cls, arguments',
    [
        *(case(NonLocal2d, mode=mode) for mode in MODES),
        case(PAM),
        case(CAM),
        case(DualAttention),
        case(SE, reduction=4),
        case(SE, reduction=4, bias=False),
        *(case(SCSE, fusion=fusion) for fusion in ('max', 'add', 'channel', 'spatial')),
        case(SGE, groups=4),
        case(ShuffleAttention, groups=4),
        case(ShuffleAttention, groups=2, init='identity'),
        case(SimAM, init='identity'),
        case(ContextBlock, ratio=0.5),
        case(ContextBlock, ratio=0.5, pooling_type='avg', fusion_types=('channel_mul',)),
        case(ContextBlock, ratio=0.5, fusion_types=('channel_add', 'channel_mul')),
        case(SimplifiedNonLocal),
        case(SimplifiedNonLocal, reduction=4),
        case(CBAM, reduction=4, spatial=False, pool_types=('avg', 'max', 'lp', 'lse')),
        case(CMPESE, reduction=4, view='double_fc'),
        case(CMPESE, reduction=4, view='pair1x1'),
        case(CMPESE, reduction=4, view='pair2x1'),
        case(CMPESE, reduction=4, view='fold3x3', fold_height=2),
    ],
)
@over(**MAPS, channels=CHANNELS)
def test_permuting_the_pixels_permutes_the_result(cls, arguments, n, height, width, channels, seed):
    block = build(seed, cls, channels, **arguments)
    shapes = block.input_shapes(n, height, width)
    inputs = [draw(seed + k, shape) for k, shape in enumerate(shapes)]
    order = ordered(seed, height * width)
    close(block(*(permuted(x, order) for x in inputs)), permuted(block(*inputs), order))


@over(**MAPS, channels=CHANNELS)
def test_cam_weighs_channels_alike_however_the_pixels_are_ordered(n, height, width, channels, seed):
    block, x = build(seed, CAM, channels), draw(seed, (n, channels, height, width))
    order = ordered(seed, height * width)
    maps = [t.flatten(2) for t in (permuted(x, order), x)]
    close(*(block.attention_map(None, t, block.gamma.scale) for t in maps))


@over(**MAPS, channels=CHANNELS)
def test_permuting_the_channels_of_cam_permutes_its_result(n, height, width, channels, seed):
    block, x = build(seed, CAM, channels), draw(seed, (n, channels, height, width))
    order = ordered(seed, channels)
    close(block(x[:, order]), block(x)[:, order])


# ---------------------------------------------------------------- rows and columns


@pytest.mark.parametrize('recurrence', [1, 2])
@pytest.mark.parametrize('dim', [2, 3], ids=['rows', 'columns'])
@over(**MAPS, channels=CHANNELS)
def test_criss_cross_permutes_with_whole_rows_and_columns(
    dim, recurrence, n, height, width, channels, seed
):
    block = build(seed, CrissCrossAttention, channels, recurrence=recurrence)
    x = draw(seed, (n, channels, height, width))
    order = ordered(seed, x.shape[dim])
    close(block(x.index_select(dim, order)), block(x).index_select(dim, order))


@pytest.mark.parametrize('recurrence', [1, 2])
@over(**MAPS, channels=CHANNELS)
def test_criss_cross_of_the_transposed_map_is_the_transposed_result(
    recurrence, n, height, width, channels, seed
):
    block = build(seed, CrissCrossAttention, channels, recurrence=recurrence)
    x = draw(seed, (n, channels, height, width))
    close(block(x.mT), block(x).mT)


@pytest.mark.parametrize('recurrence', [1, 2])
def test_criss_cross_does_not_permute_with_single_pixels(recurrence):
    block, x = build(0, CrissCrossAttention, 8, recurrence=recurrence), draw(0, (1, 8, 2, 3))
    order = torch.tensor([4, 1, 2, 3, 0, 5])  # swaps (0, 0) and (1, 1)
    difference = block(permuted(x, order)) - permuted(block(x), order)
    assert difference.abs().max() > 1e-3


def reached(seed, recurrence, height, width, row, column):
    """(H, W): the pixels that one pixel of the result depends on."""
    block = build(seed, CrissCrossAttention, 8, recurrence=recurrence)
    x = draw(seed, (1, 8, height, width)).requires_grad_()
    block(x)[0, :, row, column].square().sum().backward()
    return x.grad[0].abs().sum(0) > 0


@over(height=SIZES, width=SIZES, row=st.integers(0, 5), column=st.integers(0, 5))
def test_one_round_of_criss_cross_reaches_its_row_and_column_alone(
    height, width, row, column, seed
):
    row, column = row % height, column % width
    expected = torch.zeros(height, width, dtype=torch.bool)
    expected[row], expected[:, column] = True, True
    assert torch.equal(reached(seed, 1, height, width, row, column), expected)


@over(height=SIZES, width=SIZES, row=st.integers(0, 5), column=st.integers(0, 5))
def test_two_rounds_of_criss_cross_reach_every_pixel(height, width, row, column, seed):
    assert reached(seed, 2, height, width, row % height, column % width).all()


@pytest.mark.parametrize('column', [False, True])
@over(n=COUNTS, length=SIZES, channels=CHANNELS)
def test_criss_cross_along_one_line_is_position_attention(column, n, length, channels, seed):
    cross, full = build(seed, CrissCrossAttention, channels), PAM(channels).double()
    weights = {k.replace('_conv', '_project'): v for k, v in cross.state_dict().items()}
    full.load_state_dict(weights)
    x = draw(seed, (n, channels, length, 1) if column else (n, channels, 1, length))
    close(cross(x), full(x))


# ---------------------------------------------------------------- weights that sum to one


@pytest.mark.parametrize('spread', [0.5, 1e3])
@over(n=COUNTS, e=SIZES, p=SIZES, s=SIZES, scale=st.sampled_from([1.0, 0.25]))
def test_softmax_weights_sum_to_one_over_the_keys(spread, n, e, p, s, scale, seed):
    q, k = draw(seed, (n, e, p), (n, e, s), spread=spread)
    weights = ops.softmax_weights(q, k, scale)
    assert weights.shape == (n, p, s) and (weights >= 0).all()
    close(weights.sum(2), torch.ones(n, p, dtype=torch.float64))


@over(**MAPS, e=SIZES)
def test_criss_cross_map_sums_to_one_on_the_cross_and_is_zero_off_it(n, height, width, e, seed):
    q, k = draw(seed, (n, e, height, width), (n, e, height, width))
    weights = ops.criss_cross_map(q, k, torch.arange(height * width))  # (N, H W, H, W)
    weights = weights.unflatten(1, (height, width))
    close(weights.sum((3, 4)), torch.ones(n, height, width, dtype=torch.float64))
    same_row = torch.eye(height, dtype=torch.bool)[:, None, :, None]
    same_column = torch.eye(width, dtype=torch.bool)[None, :, None, :]
    assert torch.equal(weights > 0, (same_row | same_column).expand_as(weights))


@over(**MAPS, e=SIZES, c=SIZES)
def test_criss_cross_weighs_the_values_by_its_map(n, height, width, e, c, seed):
    shapes = [(n, channels, height, width) for channels in (e, e, c)]
    q, k, v = draw(seed, *shapes)
    weights = ops.criss_cross_map(q, k, torch.arange(height * width)).flatten(2)
    close(ops.criss_cross(q, k, v).flatten(2), v.flatten(2) @ weights.mT)


@over(**MAPS, c=SIZES)
def test_context_pool_weighs_the_positions_to_one(n, height, width, c, seed):
    x, weight, bias = draw(seed, (n, c, height, width), (1, c, 1, 1), (1,))
    context, weights = ops.context_pool(x, weight, bias)
    assert weights.shape == (n, 1, height, width) and (weights > 0).all()
    close(weights.sum((1, 2, 3)), torch.ones(n, dtype=torch.float64))
    close(context, (x * weights).sum((2, 3)))


@over(n=COUNTS, c=SIZES, p=SIZES)
def test_channel_attention_weighs_the_channels_to_one(n, c, p, seed):
    x = draw(seed, (n, c, p))
    weights = ops.channel_attention_weights(x)
    assert weights.shape == (n, c, c) and (weights > 0).all()
    close(weights.sum(2), torch.ones(n, c, dtype=torch.float64))
    gamma = x.new_tensor(0.7)
    close(ops.channel_attention(x, gamma), x + 0.7 * torch.einsum('nij,njp->nip', weights, x))


@over(n=COUNTS, branches=st.integers(2, 4), channels=CHANNELS)
def test_selective_kernels_weigh_the_branches_of_a_channel_to_one(n, branches, channels, seed):
    block = build(seed, SKConv2d, channels, groups=4, branches=branches)
    weights = block.select(draw(seed, (n, channels, 1, 1)))
    assert weights.shape == (n, branches, channels) and (weights > 0).all()
    close(weights.sum(1), torch.ones(n, channels, dtype=torch.float64))


@pytest.mark.parametrize(
    'cls, arguments, expected',
    [
        case(PAM, lambda b, x: x + b.gamma.scale * b.value_project(x)),
        case(CrissCrossAttention, lambda b, x: x + b.gamma.scale * b.value_conv(x)),
        case(NonLocal2d, lambda b, x: x + b.conv_out(b.g(x)), mode='gaussian'),
        case(NonLocal2d, lambda b, x: x + b.conv_out(b.g(x)), mode='embedded_gaussian'),
        case(SimplifiedNonLocal, lambda b, x: x + b.conv_v(x)),
        case(ContextBlock, lambda b, x: x + b.channel_add_conv(x[:, :, :1, :1]), ratio=0.5),
        case(
            APNB,
            lambda b, x: b.bottleneck(
                torch.cat([b.stages[0].out_project(b.stages[0].value_project(x)), x], 1)
            ),
        ),
    ],
)
@over(**MAPS, channels=CHANNELS)
def test_where_all_positions_are_equal_their_context_is_the_value(
    cls, arguments, expected, n, height, width, channels, seed
):
    block = build(seed, cls, channels, **arguments)
    x = draw(seed, (n, channels, 1, 1)).repeat(1, 1, height, width)
    close(block(x), expected(block, x))


@over(**MAPS, channels=CHANNELS)
def test_where_all_channels_are_equal_the_context_of_cam_is_the_map(
    n, height, width, channels, seed
):
    block = build(seed, CAM, channels)
    x = draw(seed, (n, 1, height, width)).repeat(1, channels, 1, 1)
    close(block(x), x + block.gamma.scale * x)


@over(**MAPS, branches=st.integers(2, 4))
def test_where_all_branches_are_equal_selective_kernels_return_the_branch(
    n, height, width, branches, seed
):
    block = build(seed, SKConv2d, 8, kernel_size=1, groups=2, branches=branches)
    for branch in block.convs[1:]:  # with kernel 1 the dilation makes no difference
        branch.load_state_dict(block.convs[0].state_dict())
    x = draw(seed, (n, 8, height, width))
    close(block(x), block.convs[0](x))


# ---------------------------------------------------------------- independence


EXAMPLES = [
    case(cls, **arguments)
    for cls in vars(blocks).values()
    if isinstance(cls, type) and issubclass(cls, AttentionBlock) and hasattr(cls, '_abbr_')
    for arguments in cls.examples
]


@pytest.mark.parametrize('cls, arguments', EXAMPLES)
@over(n=st.integers(2, 3), height=SIZES, width=SIZES)
def test_the_images_of_a_batch_do_not_see_each_other(cls, arguments, n, height, width, seed):
    block = build(seed, cls, **arguments)
    if 'any_size' in block.limits:  # what pools by 2
        height, width = height + 1, width + 1
    shapes = block.input_shapes(n, height, width)
    inputs = [draw(seed + k, shape) for k, shape in enumerate(shapes)]
    alone = [block(*(x[i : i + 1] for x in inputs)) for i in range(n)]
    close(block(*inputs), torch.cat(alone), 1e-9)


GROUPS = 4


@pytest.mark.parametrize(
    'cls, arguments, dealt',
    [
        case(SGE, False),
        case(EMAttention, False),
        case(ShuffleAttention, True),
        case(ShuffleAttention, False, init='identity'),
    ],
)
@over(**MAPS, channels=CHANNELS, group=st.integers(0, GROUPS - 1))
def test_a_group_of_channels_changes_its_own_outputs_alone(
    cls, arguments, dealt, n, height, width, channels, group, seed
):
    block = build(seed, cls, channels, groups=GROUPS, **arguments)
    x, noise = draw(seed, *2 * [(n, channels, height, width)])
    member = torch.arange(channels) // (channels // GROUPS) == group
    changed = x + noise * member[:, None, None]
    difference = (block(changed) - block(x)).abs().amax((0, 2, 3))  # (C)
    if dealt:  # output 0, 1, 2, 3, ... comes from channel 0, C / 2, 1, C / 2 + 1, ...
        member = torch.stack(member.chunk(2), 1).flatten()
    assert torch.equal(difference > 1e-12, member)


# ---------------------------------------------------------------- channel shuffle


@over(n=COUNTS, groups=SIZES, k=SIZES, size=SIZES)
def test_channel_shuffle_deals_the_groups_out_in_turn(n, groups, k, size, seed):
    x = draw(seed, (n, groups * k, size))
    y = ops.channel_shuffle(x, groups)
    for group in range(groups):
        for i in range(k):
            assert torch.equal(y[:, i * groups + group], x[:, group * k + i])


@over(groups=SIZES, k=SIZES)
def test_channel_shuffle_is_a_permutation(groups, k, seed):
    channels = torch.arange(groups * k)
    assert torch.equal(ops.channel_shuffle(channels[None], groups)[0].sort().values, channels)


@over(n=COUNTS, groups=SIZES, k=SIZES)
def test_shuffling_into_the_other_factor_restores_the_channels(n, groups, k, seed):
    x = draw(seed, (n, groups * k, 2, 3))
    assert torch.equal(ops.channel_shuffle(ops.channel_shuffle(x, groups), k), x)


@over(n=COUNTS, channels=SIZES)
def test_shuffling_one_group_or_groups_of_one_changes_nothing(n, channels, seed):
    x = draw(seed, (n, channels, 2, 3))
    assert torch.equal(ops.channel_shuffle(x, 1), x)
    assert torch.equal(ops.channel_shuffle(x, channels), x)


# ---------------------------------------------------------------- what makes no difference


@over(n=COUNTS, e=SIZES, p=SIZES, s=SIZES, c=SIZES)
def test_softmax_attention_ignores_what_is_added_to_all_keys(n, e, p, s, c, seed):
    q, k, v, shift = draw(seed, (n, e, p), (n, e, s), (n, c, s), (n, e, 1))
    close(ops.softmax_attention(q, k + shift, v), ops.softmax_attention(q, k, v))


@pytest.mark.parametrize(
    'cls, arguments, name',
    [
        case(PAM, 'key_project.bias'),
        case(DualAttention, 'pam.key_project.bias'),
        case(CrissCrossAttention, 'key_conv.bias'),
        case(CrissCrossAttention, 'key_conv.bias', recurrence=2),
        case(NonLocal2d, 'phi.conv.bias'),
        case(NonLocal2d, 'phi.0.conv.bias', sub_sample=True),
        case(SimplifiedNonLocal, 'conv_mask.bias'),
        case(ContextBlock, 'conv_mask.bias', ratio=0.5),
    ],
)
@over(**MAPS, channels=CHANNELS)
def test_the_bias_of_the_keys_makes_no_difference(
    cls, arguments, name, n, height, width, channels, seed
):
    block = build(seed, cls, channels, **arguments)
    if arguments.get('sub_sample'):  # pooling by 2
        height, width = height + 1, width + 1
    x = draw(seed, (n, channels, height, width))
    before = block(x)
    bias = block.get_parameter(name)
    bias.data += draw(seed + 1, bias.shape, spread=2)
    close(block(x), before)
    assert name in block.without_effect


@over(**MAPS, channels=CHANNELS, factor=st.floats(0.1, 10, allow_subnormal=False))
def test_the_gate_of_sge_ignores_the_scale_of_the_map(n, height, width, channels, factor, seed):
    block = build(seed, SGE, channels, groups=4)
    x = draw(seed, (n, channels, height, width), spread=1e4)
    # The deviation that 1e-5 is added to grows with the square of x: here it is 1e3 and more.
    gates = []
    for t in factor * x, x:
        with record(block) as maps:
            block(t)
        gates.append(maps['']['group'][0])
    close(*gates, 1e-8)


# ---------------------------------------------------------------- linear in what


@pytest.mark.parametrize('mode', MODES)
@over(**MAPS, channels=CHANNELS, factor=st.floats(-2, 2, allow_subnormal=False))
def test_non_local_attention_is_linear_in_the_values(
    mode, n, height, width, channels, factor, seed
):
    block = build(seed, NonLocal2d, channels, mode=mode)
    x, noise = draw(seed, *2 * [(n, channels, height, width)])
    theta, phi, g = block.project(x)
    other = block.g(noise)
    expected = block.attend(theta, phi, g) + factor * block.attend(theta, phi, other)
    close(block.attend(theta, phi, g + factor * other), expected)


@over(**MAPS, channels=CHANNELS, factor=st.floats(-2, 2, allow_subnormal=False))
def test_dot_product_mode_is_bilinear_in_queries_and_keys(n, height, width, channels, factor, seed):
    block = build(seed, NonLocal2d, channels, mode='dot_product')
    q, q2, k, k2, v = draw(seed, *5 * [(n, channels // 2, height, width)])
    y = block.attend(q, k, v)
    close(block.attend(q + factor * q2, k, v), y + factor * block.attend(q2, k, v))
    close(block.attend(q, k + factor * k2, v), y + factor * block.attend(q, k2, v))


@pytest.mark.parametrize('narrow', [True, False], ids=['(v k) q', 'v (k q)'])
@over(n=COUNTS, few=st.tuples(FEW, FEW), many=st.tuples(MANY, MANY))
def test_dot_product_attention_equals_the_sum_over_all_pairs(narrow, n, few, many, seed):
    (e, c), (p, s) = (few, many) if narrow else (many, few)  # decides what is multiplied first
    q, k, v = draw(seed, (n, e, p), (n, e, s), (n, c, s))
    pairs = torch.einsum('nep,nes->nps', q, k) / s
    close(ops.dot_product_attention(q, k, v), torch.einsum('nps,ncs->ncp', pairs, v))


@pytest.mark.parametrize(
    'cls, arguments',
    [
        case(ContextBlock, ratio=0.5),
        case(ContextBlock, ratio=0.5, pooling_type='avg'),
        case(SimplifiedNonLocal),
        case(SimplifiedNonLocal, reduction=4),
    ],
)
@over(**MAPS, channels=CHANNELS)
def test_context_blocks_add_the_same_vector_everywhere(
    cls, arguments, n, height, width, channels, seed
):
    block = build(seed, cls, channels, **arguments)
    x = draw(seed, (n, channels, height, width))
    added = block(x) - x
    close(added, added[:, :, :1, :1].expand_as(added))
    assert added.abs().max() > 1e-3


@pytest.mark.parametrize(
    'cls, arguments',
    [
        case(SE, reduction=4),
        case(SCSE, fusion='channel'),
        case(CBAM, reduction=4, spatial=False),
        case(ContextBlock, ratio=0.5, fusion_types='channel_mul'),
    ],
)
@over(**MAPS, channels=CHANNELS)
def test_channel_gates_scale_all_pixels_of_a_channel_alike(
    cls, arguments, n, height, width, channels, seed
):
    block = build(seed, cls, channels, **arguments)
    x = draw(seed, (n, channels, height, width))
    y = block(x)
    close(y * x[:, :, :1, :1], y[:, :, :1, :1] * x)


# ---------------------------------------------------------------- affine sampling

SAMPLING = dict(padding_mode=st.sampled_from(['border', 'zeros']), align_corners=st.booleans())


@over(n=COUNTS, height=st.integers(1, 70), width=st.integers(1, 70), **SAMPLING)
def test_the_identity_transform_returns_the_map_to_the_last_bit(
    n, height, width, padding_mode, align_corners, seed
):
    x = draw(seed, (n, 2, height, width), spread=1).float()
    theta = torch.eye(2, 3).expand(n, 2, 3)
    y = ops.affine_sample(x, theta, None, padding_mode, align_corners)
    assert y.dtype == x.dtype and torch.equal(y, x)


@over(**MAPS, **SAMPLING)
def test_a_fresh_spatial_transformer_returns_the_map_to_the_last_bit(
    n, height, width, padding_mode, align_corners, seed
):
    block = SpatialTransformer(3, padding_mode=padding_mode, align_corners=align_corners)
    x = draw(seed, (n, 3, height, width), spread=1).float()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize('padding_mode', ['border', 'zeros'])
@pytest.mark.parametrize('align_corners', [False, True])
@over(
    n=COUNTS,
    height=st.integers(2, 7),
    width=st.integers(2, 7),
    down=st.integers(-4, 4),
    right=st.integers(-4, 4),
)
def test_translation_by_whole_pixels_shifts_the_map(
    padding_mode, align_corners, n, height, width, down, right, seed
):
    x = draw(seed, (n, 2, height, width))
    step_x, step_y = (2 / (pixels - align_corners) for pixels in (width, height))
    theta = torch.eye(2, 3, dtype=torch.float64).repeat(n, 1, 1)
    theta[:, :, 2] = x.new_tensor([right * step_x, down * step_y])
    rows, columns = torch.arange(height) + down, torch.arange(width) + right
    r, c = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    expected = x[:, :, r[:, None], c]
    if padding_mode == 'zeros':
        expected = expected * ((rows == r)[:, None] & (columns == c))
    close(ops.affine_sample(x, theta, None, padding_mode, align_corners), expected)


@pytest.mark.parametrize('quarters, cos, sin', [(1, 0, 1), (2, -1, 0), (3, 0, -1)])
@over(n=COUNTS, size=SIZES, **SAMPLING)
def test_rotation_by_quarters_equals_rot90(
    quarters, cos, sin, n, size, padding_mode, align_corners, seed
):
    x = draw(seed, (n, 2, size, size))
    theta = torch.tensor([[cos, sin, 0], [-sin, cos, 0]], dtype=torch.float64).expand(n, 2, 3)
    y = ops.affine_sample(x, theta, None, padding_mode, align_corners)
    close(y, torch.rot90(x, -quarters, (2, 3)))


@pytest.mark.parametrize('padding_mode', ['border', 'zeros'])
@pytest.mark.parametrize('align_corners', [False, True])
@over(**MAPS, size=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_affine_sampling_equals_affine_grid_and_grid_sample(
    padding_mode, align_corners, n, height, width, size, seed
):
    x, theta = draw(seed, (n, 2, height, width), (n, 2, 3), spread=1)
    y = ops.affine_sample(x, theta, size, padding_mode, align_corners)
    grid = F.affine_grid(theta, (n, 2, *(size or (height, width))), align_corners)
    close(y, F.grid_sample(x, grid, 'bilinear', padding_mode, align_corners), 1e-9)


@over(**MAPS, align_corners=st.booleans())
def test_any_transform_of_a_constant_map_with_its_border_continued_is_the_map(
    n, height, width, align_corners, seed
):
    value, theta = draw(seed, (n, 2, 1, 1), (n, 2, 3), spread=2)
    x = value.repeat(1, 1, height, width)
    close(ops.affine_sample(x, theta, None, 'border', align_corners), x)


# ---------------------------------------------------------------- pyramid pooling

SCALES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@over(**MAPS, scales=SCALES)
def test_pyramid_pool_equals_adaptive_average_pooling(n, height, width, scales, seed):
    x = draw(seed, (n, 2, height, width))
    expected = torch.cat([F.adaptive_avg_pool2d(x, scale).flatten(2) for scale in scales], 2)
    close(ops.pyramid_pool(x, scales), expected, 1e-12)


@over(**MAPS, scales=SCALES)
def test_pyramid_pool_of_a_constant_map_is_the_constant(n, height, width, scales, seed):
    value = draw(seed, (n, 2, 1))
    pooled = ops.pyramid_pool(value[..., None].repeat(1, 1, height, width), scales)
    close(pooled, value.expand(n, 2, sum(scale**2 for scale in scales)), 1e-12)


# ---------------------------------------------------------------- deformable convolution

KERNELS = dict(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 3),
)


def convolution(seed, n, kernel, spare, parts, stride, padding, dilation, groups):
    """x, zero offsets for `parts` groups of channels, weight, bias; x fits the kernel and more."""
    spans = [dilation * (k - 1) + 1 for k in kernel]
    size = [max(1, span - 2 * padding) + more for span, more in zip(spans, spare)]
    out = [(m + 2 * padding - span) // stride + 1 for m, span in zip(size, spans)]
    channels = groups * parts
    x, weight, bias = draw(
        seed, (n, channels, *size), (2 * groups, channels // groups, *kernel), (2 * groups,)
    )
    return x, x.new_zeros(n, 2 * parts * kernel[0] * kernel[1], *out), weight, bias


@over(n=COUNTS, **KERNELS, spare=st.tuples(SIZES, SIZES), parts=st.integers(1, 2))
def test_deform_conv_without_offsets_equals_conv2d(n, kernel, spare, parts, seed, **options):
    x, offset, weight, bias = convolution(seed, n, kernel, spare, parts, **options)
    expected = F.conv2d(x, weight, bias, **options)
    groups = options.pop('groups')
    assert groups * weight.shape[1] == x.shape[1]  # deform_conv reads them off the shapes
    close(ops.deform_conv(x, offset, weight, bias, **options), expected)
    ones = torch.ones_like(offset[:, ::2])
    close(ops.deform_conv(x, offset, weight, bias, ones, **options), expected)


@over(n=COUNTS, **KERNELS, spare=st.tuples(SIZES, SIZES))
def test_the_mask_of_deform_conv_scales_the_taps(n, kernel, spare, seed, **options):
    x, offset, weight, bias = convolution(seed, n, kernel, spare, 1, **options)
    factors = draw(seed + 1, kernel)
    mask = factors.reshape(1, -1, 1, 1).expand_as(offset[:, ::2])
    expected = F.conv2d(x, weight * factors, bias, **options)
    del options['groups']
    close(ops.deform_conv(x, offset, weight, bias, mask, **options), expected)
