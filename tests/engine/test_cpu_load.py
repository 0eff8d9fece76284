"""A training on a CPU warns once if it runs more threads than cores are free."""

import os
import re

import pytest
import torch
from torch import nn

from mmattn.engine import cpu_load
from mmattn.engine.cpu_load import Usage, find_shortage, read_usage, warn_of_shortage
from mmattn.engine.train import train
from tests.conftest import ROOT
from tests.documents import messages
from tests.engine.killing import CONFIG, SMALL

SECONDS = 4.0


def usages(cores, others, own=1.0, container=None):
    """Before and after 4 s in which other processes keep so many cores busy.

    `container`: cores of its limit, and cores' worth of load of the others in it.
    """
    limits = [(cores, others), *([container] if container else [])]
    before = Usage(10, 5, tuple((count, 100) for count, _ in limits))
    used = tuple((count, 100 + own * SECONDS + load * SECONDS) for count, load in limits)
    return before, Usage(10 + SECONDS, 5 + own * SECONDS, used)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(cpu_load, '_warned', False)
    for name in 'OMP_WAIT_POLICY', 'LOCAL_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_SIZE', 'RANK':
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    'cores, others, threads, fitting',
    [
        (2, 2, 2, 1),  # another training on two cores
        (2, 1.3, 2, 1),
        (8, 8, 8, 4),
        (8, 1.9, 8, 6),
        (8, 0, 16, 8),  # too many threads without any load
        (64, 40, 32, 28),
    ],
)
def test_too_many_threads(cores, others, threads, fitting):
    text = find_shortage(*usages(cores, others), threads)
    assert text.startswith(f'{threads} threads run here on {cores} cores')
    assert (f'other processes keep {others:.1f} busy' in text) == (others > 0)
    assert f'OMP_NUM_THREADS={fitting} OMP_WAIT_POLICY=passive, see https://' in text
    assert 'wait by spinning' in text


@pytest.mark.parametrize(
    'cores, others, threads',
    [(2, 0, 2), (2, 0.4, 2), (8, 0, 8), (8, 4, 4), (8, 4.5, 4), (64, 20, 32)],
)
def test_enough_cores(cores, others, threads):
    assert find_shortage(*usages(cores, others), threads) is None


def test_own_work_is_not_load():
    assert find_shortage(*usages(8, 0, own=8), 8) is None
    assert find_shortage(*usages(8, 2, own=6), 8)


def test_one_thread_waits_for_no_other():
    assert find_shortage(*usages(2, 2), 1) is None


def test_a_short_time_tells_nothing():
    before, after = usages(2, 2)
    assert find_shortage(before, after._replace(seconds=before.seconds + 0.1), 2) is None


def test_the_limit_of_a_container_counts():
    assert '4 threads run here on 1.5 cores.' in find_shortage(
        *usages(64, 0, container=(1.5, 0)), 4
    )
    text = find_shortage(*usages(64, 10, container=(4, 4)), 4)
    assert '4 threads run here on 4 cores, of which other processes keep 4.0 busy' in text
    assert find_shortage(*usages(64, 10, container=(4, 0)), 4) is None
    assert ' on 64 cores, ' in find_shortage(*usages(64, 63, container=(4, 0)), 4)


def test_processes_of_the_run_are_counted_and_their_work_is_no_load():
    assert find_shortage(*usages(8, 7), 2, processes=4) is None
    text = find_shortage(*usages(8, 7), 4, processes=4)
    assert text.startswith('4 processes of 4 threads run here on 8 cores.')
    assert 'OMP_NUM_THREADS=2 ' in text


def test_with_passive_threads_the_sentence_is_true_as_well(monkeypatch):
    monkeypatch.setenv('OMP_WAIT_POLICY', 'PASSIVE')
    text = find_shortage(*usages(2, 2), 2)
    assert 'spinning' not in text and 'WAIT_POLICY' not in text
    assert 'waits for the slowest thread' in text and 'OMP_NUM_THREADS=1, see' in text


# ---- what the system tells ----
def system(folder, stat, cpu_max=None, usage=0):
    (folder / 'proc').mkdir(parents=True)
    (folder / 'proc' / 'stat').write_text(stat)
    if cpu_max:
        (folder / 'sys/fs/cgroup').mkdir(parents=True)
        (folder / 'sys/fs/cgroup/cpu.max').write_text(f'{cpu_max}\n')
        text = f'nr_periods 3\nusage_usec {usage}\nuser_usec 1\n'
        (folder / 'sys/fs/cgroup/cpu.stat').write_text(text)
    return folder


STAT = """cpu  9 9 9 9 9 9 9 9 0 0
cpu0 100 20 30 5000 700 4 6 50 0 0
cpu1 1000 0 0 5000 700 0 0 50 0 0
cpu11 7000 0 0 5000 700 0 0 50 0 0
intr 1
"""


@pytest.mark.parametrize('cores, busy', [({0}, 160), ({0, 1}, 1160), ({1, 11}, 8000)])
def test_busy_time_is_that_of_the_cores_of_this_process(cores, busy, tmp_path, monkeypatch):
    """Idle, waiting for a disk and stolen by a host: columns 4, 5 and 8 do not count."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: cores)
    usage = read_usage(system(tmp_path, STAT))
    ticks = os.sysconf('SC_CLK_TCK')
    assert usage.limits == ((len(cores), pytest.approx(busy / ticks)),)
    assert usage.own > 0


def test_limit_of_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1})
    usage = read_usage(system(tmp_path / 'a', STAT, '150000 100000', 2_500_000))
    assert usage.limits[1:] == ((1.5, 2.5),)
    assert len(read_usage(system(tmp_path / 'b', STAT, 'max 100000')).limits) == 1


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    assert read_usage(tmp_path) is None
    assert read_usage(system(tmp_path / 'a', 'cpu  1 2\n')) is None
    monkeypatch.delattr(os, 'sched_getaffinity')
    assert read_usage(system(tmp_path / 'b', STAT)) is None


# ---- the warning ----
@pytest.fixture
def crowded(monkeypatch, capfd):
    """Two threads on two cores that others keep busy; returns the warnings so far."""
    before, after = usages(2, 2)
    monkeypatch.setattr(cpu_load, 'read_usage', lambda: after)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    logged = []
    monkeypatch.setattr(cpu_load, 'warn', logged.append)
    return before, logged


def test_once_per_command(crowded):
    before, logged = crowded
    for _ in range(2):
        warn_of_shortage(before, nn.Linear(1, 1))
    assert len(logged) == 1


def test_not_on_another_rank_nor_a_gpu_nor_without_a_measurement(crowded, monkeypatch):
    before, logged = crowded
    warn_of_shortage(None, nn.Linear(1, 1))
    warn_of_shortage(before, nn.Linear(1, 1, device='meta'))
    monkeypatch.setenv('RANK', '1')
    warn_of_shortage(before, nn.Linear(1, 1))
    assert not logged
    monkeypatch.setenv('RANK', '0')
    warn_of_shortage(before, nn.Linear(1, 1))
    assert logged


@pytest.mark.parametrize('others', [2, 0])
def test_train_warns_in_its_log_if_others_keep_the_cores_busy(others, tiny, tmp_path, monkeypatch):
    readings = iter([*usages(2, others), None])
    monkeypatch.setattr('mmattn.engine.train.read_usage', lambda: next(readings))
    monkeypatch.setattr(cpu_load, 'read_usage', lambda: next(readings))
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    options = SMALL | tiny | {'train_cfg.max_iters': 1}
    train(CONFIG, work_dir=tmp_path, cfg_options=options, rehearsal=False, validate=False)
    (log,) = tmp_path.rglob('*.log')
    lines = [line for line in log.read_text().splitlines() if 'threads run here' in line]
    assert len(lines) == (1 if others else 0)
    assert all('WARNING' in line and 'OMP_NUM_THREADS=1' in line for line in lines)


def test_the_page_shows_the_warning():
    page = ROOT / re.search(r'/blob/main/(.*)', cpu_load.PAGE)[1]
    (shown,) = messages(page.read_text(encoding='utf-8'))
    assert shown == find_shortage(*usages(2, 1.4), 2).replace(cpu_load.PAGE, '...')
