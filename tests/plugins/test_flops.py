import torch

from mmattn.ops import softmax_attention
from mmattn.plugins.flops import flop_counter


def count(f, *args):
    with flop_counter() as counter:
        f(*args)
    return counter.get_total_flops()


def test_operators_that_the_counter_of_torch_passes_over():
    a, b, x, y = torch.rand(4, 5), torch.rand(5, 6), torch.rand(5), torch.rand(4, 6)
    assert count(torch.mv, a, x) == 2 * 4 * 5
    assert count(y.addmm_, a, b) == 2 * 4 * 5 * 6
    c, d, z = torch.rand(3, 4, 5), torch.rand(3, 5, 6), torch.rand(3, 4, 6)
    assert count(z.baddbmm_, c, d) == 3 * 2 * 4 * 5 * 6


def test_attention_counts_the_same_by_torch_and_by_rows():
    """Of one width by torch's kernel, of two by our rows."""
    for width, values in (8, 8), (8, 5):
        q, k, v = torch.rand(2, width, 7), torch.rand(2, width, 9), torch.rand(2, values, 9)
        assert count(softmax_attention, q, k, v) == 2 * 2 * 7 * 9 * (width + values)
