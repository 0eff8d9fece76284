import sys

import pytest
import torch

from mmattn.blocks import PAM, CrissCrossAttention, NonLocal2d

memory = sys.modules['mmattn.ops.memory']
CPU = torch.device('cpu')


@pytest.mark.parametrize(
    'block',
    [
        lambda: NonLocal2d(16),
        lambda: NonLocal2d(16, mode='dot_product'),
        lambda: NonLocal2d(16, mode='concatenation'),
        lambda: PAM(16),
        lambda: CrissCrossAttention(16),
    ],
)
def test_too_large_a_map_is_refused_before_it_is_allocated(monkeypatch, block):
    monkeypatch.setattr(memory, '_CHECKED_FROM', 0)
    monkeypatch.setattr(memory, 'free_memory', lambda device: 100)
    message = r'attention needs 0\.0 GB .*, 0\.0 GB are free on cpu: allowed are fewer images'
    with pytest.raises(MemoryError, match=message):
        block()(torch.randn(1, 16, 5, 7))


def test_small_ones_do_not_ask(monkeypatch):
    monkeypatch.setattr(memory, 'free_memory', lambda device: 1 / 0)
    NonLocal2d(16)(torch.randn(1, 16, 5, 7))


def test_what_is_free():
    free = memory.free_memory(CPU)
    assert free is None or free > 1 << 20
    assert memory.free_memory(torch.device('meta')) is None


def test_a_container_may_allow_less(monkeypatch, tmp_path):
    (tmp_path / 'memory.max').write_text('5000\n')
    (tmp_path / 'memory.current').write_text('3000\n')
    monkeypatch.setattr(memory, '_CGROUP', tmp_path)
    assert memory.free_memory(CPU) == 2000
    (tmp_path / 'memory.max').write_text('max\n')
    assert memory.free_memory(CPU) != 2000
