import json
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from mmattn import blocks
from mmattn.benchmarks import cases, compare, report, timing
from mmattn.benchmarks.baselines import BASELINES, Baseline
from mmattn.benchmarks.cases import TARGETS, list_cases, select_cases
from mmattn.benchmarks.roofline import (
    LowerBound,
    conv,
    cross,
    linear_pairs,
    lower_bound,
    softmax_pairs,
)
from mmattn.config.load import load_config
from mmattn.errors import UsageError
from tools import benchmark as tool

SPEED = dict(cpu='a CPU', torch='2', threads=1, malloc='tuned', sgemm_gflops=100, copy_gb_per_s=40)


@pytest.fixture
def quick(monkeypatch):
    """A machine that need not be measured, and small maps for curves."""
    monkeypatch.setattr(report, 'describe_machine', lambda *_: dict(SPEED))
    for module in report, compare:
        monkeypatch.setattr(module, 'CURVE', ((4, 4), (5, 6), (7, 8)))


def case(name):
    return next(c for c in list_cases() if c.name == name)


def test_every_peer_and_every_target_belongs_to_a_case():
    every = list_cases()
    assert set(BASELINES) <= {c.name for c in every} | {c.block for c in every}
    assert set(TARGETS) <= {c.name for c in every}
    assert len({c.name for c in every}) == len(every)


def test_every_block_equals_its_peers_and_is_measured(tmp_path, quick, capsys):
    """`measure` raises where a block and its baseline differ."""
    out = tmp_path / 'benchmark.json'
    assert tool.main(['--size', '2', '128', '6', '7', '--rounds', '1', '--json', str(out)]) == 0
    found = json.loads(out.read_text())
    rows = found['rows']
    assert {row['name'] for row in rows} == {c.name for c in list_cases() if not c.fixed_size}
    for row in rows:
        assert all(value > 0 for name, value in row['ours'].items() if name != 'saved')
        assert row['ours']['saved'] >= 0  # 0 where the input is enough
        assert row['lower_bound'] > 0 and not row['targets']
        cannot = row['name'] == 'NonLocal2d concatenation'  # mmcv has no backward there
        assert (row['theirs']['step'] is None) == cannot
        assert row['theirs']['forward'] > 0
    assert found['machine']['sgemm_gflops'] > 0 and found['size'] == [2, 128, 6, 7]
    shown = capsys.readouterr().out
    assert 'mmcv cannot (step, saved, peak): mmcv divides in place' in shown
    assert max(map(len, shown.splitlines()[3:])) <= 140


@pytest.mark.parametrize(
    'name', [c.name for c in list_cases() if c.fixed_size and not c.needs_compiled_ops]
)
def test_cases_of_one_size(name):
    """At a smaller one: what is not asked is not measured."""
    small = replace(case(name), size=(1, 32, 6, 7))
    (row,) = compare.compare_case(small, rounds=1)
    for what in row.ours:
        assert (row.ours[what] is not None) == (what in small.measures)
    assert row.targets and row.rounds.keys() <= {'forward', 'step'}


@pytest.mark.slow
def test_training_step_of_a_network(monkeypatch):
    """Its losses are those of the network without blocks, as they start as the identity."""
    few = {'model.train_cfg.rpn_proposal.max_per_img': 40, 'model.train_cfg.rcnn.sampler.num': 32}

    def load(path, options, attention):  # most of a step goes into boxes
        return load_config(path, options | few, attention)

    monkeypatch.setattr(cases, 'load_config', load)
    small = replace(case('Mask R-CNN R50 + GC'), size=(1, 3, 96, 128))
    (row,) = compare.compare_case(small, rounds=1)
    assert row.ratio('step') > 0 and row.targets == dict(step=0.97)
    assert [c.name for c in select_cases('mask*')] == [small.name]
    for arguments in dict(sized=True), dict(dtype=torch.bfloat16):
        with pytest.raises(UsageError, match='fits'):
            select_cases('mask*', **arguments)


def test_targets_stand_at_their_size_device_and_dtype():
    small = replace(case('CBAM'), size=(2, 32, 6, 7))
    (row,) = compare.compare_case(small, machine=SPEED, rounds=1)
    assert row.targets == dict(forward=1.3, lower_bound=3)
    (line, aims) = report.table_lines(
        replace(row, ours=dict(row.ours, forward=1.0), lower_bound=0.1)
    )
    assert '>=1.3 ' in aims and aims.endswith('<=3 no')
    assert aims.index('>=1.3') < aims.index('<=3') <= len(line)
    (other,) = compare.compare_case(small, (2, 32, 6, 8), rounds=1)
    (double,) = compare.compare_case(small, dtype=torch.float64, rounds=1)
    assert not other.targets and not double.targets
    ours, theirs = dict(row.ours, forward=2.0), dict(row.theirs, forward=3.0)
    met, missed = (replace(row, ours=ours, theirs=theirs, lower_bound=f) for f in (1.0, 0.5))
    assert list(report.summary([met])) == ['2 of 2 targets met']
    assert list(report.summary([missed]))[1:] == ['  missed: CBAM lower_bound 4.00, target <=3 no']


P = 97 * 97


@pytest.mark.parametrize(
    'found, giga, mega',
    [  # GFLOP and MB in fp32 of 97x97 maps of 512 channels
        (softmax_pairs(P, P, 64, 512), 102.0, 43.4),
        (softmax_pairs(P, P, 256, 256), 90.7, 38.5),
        (LowerBound(4 * conv(P, 512, 256), 0), 9.87, 0),
        (cross(97, 97, 64, 512), 2.09, 43.4),
        (LowerBound(conv(P, 512, 2 * 64 + 512), 0), 6.17, 0),
        (softmax_pairs(P, 110, 256, 256), 1.06, 19.5),
        (linear_pairs(P, P, 256), 2.47, 38.5),
        (softmax_pairs(128 * 256, 128 * 256, 256, 256), 1099.5, 134.2),
    ],
)
def test_floors_of_the_equations(found, giga, mega):
    assert found.flop / 1e9 == pytest.approx(giga, rel=3e-3)
    assert found.values * 4 / 1e6 == pytest.approx(mega, rel=3e-3)


@pytest.mark.parametrize(
    'block, shapes, giga, mega',
    [  # whole blocks: with their convolutions; the map is read and written
        (blocks.NonLocal2d(512), [(1, 512, 97, 97)], 100.6, 38.5),
        (blocks.PAM(512), [(1, 512, 97, 97)], 108.2, 38.5),
        (blocks.CrissCrossAttention(512, recurrence=2), [(1, 512, 97, 97)], 16.5, 77.1),
        (blocks.APNB(512), [(1, 512, 97, 97)], 9.0, 38.5),
        (blocks.AFNB(1024, 2048, 256), [(1, 1024, 97, 97), (1, 2048, 97, 97)], 98.6, 192.7),
        (blocks.SE(512), [(1, 512, 97, 97)], 0, 57.8),
        (blocks.ContextBlock(512, 1 / 16), [(1, 512, 97, 97)], 0, 57.8),
        (blocks.CBAM(512), [(1, 512, 97, 97)], 0, 77.1),
        (blocks.SGE(512), [(1, 512, 97, 97)], 0, 77.1),
    ],
)
def test_floors_of_blocks(block, shapes, giga, mega):
    found = lower_bound(block, shapes)
    assert found.flop / 1e9 == pytest.approx(giga, rel=5e-3)
    assert found.values * 4 / 1e6 == pytest.approx(mega, rel=3e-3)


def test_floor_of_the_head():
    head = case('ANNHead')
    built = head.build(head.size)
    found = lower_bound(built, head.shapes(built, head.size))
    assert found.flop / 1e9 == pytest.approx(98.6 + 177.6 + 9.0, rel=3e-3)
    assert found.values == (1024 + 2048 + 19) * P


def test_floor_in_milliseconds():
    assert LowerBound(2e9, 1e6).ms(4, gflops=100, gb_per_s=40) == pytest.approx(20)
    assert LowerBound(0, 1e9).ms(4, gflops=100, gb_per_s=40) == pytest.approx(100)


def _half_the_gradient(b):
    return lambda x: x * (b.gate(x) + b.gate(x).detach())[:, :, None, None] / 2


@pytest.mark.parametrize('make', [lambda b: lambda x: x, _half_the_gradient])
def test_unequal_peers_are_not_timed(make, monkeypatch, quick, capsys):
    monkeypatch.setitem(BASELINES, 'SE', [Baseline('wrong', make)])
    with pytest.raises(timing.ResultsDiffer, match=r'SE differs from its baseline \(wrong\)'):
        report.run_benchmark('s[eg]*', (1, 64, 4, 4), 1)
    shown = capsys.readouterr().out
    assert 'SGE ' in shown and 'not timed: SE differs' in shown and '\nSE ' not in shown


def test_rounding_makes_nothing_unequal():
    """Logits of CAM are sums over all pixels, so that fp32 is further off than 1e-5."""
    contenders = compare._Contenders(case('CAM'), (1, 64, 48, 48))
    ours = contenders._results(None)
    theirs = contenders._results(contenders.baselines[1])
    assert len(ours) == len(theirs) == 3
    assert max(map(contenders._difference, ours, theirs)) > 1e-5
    contenders.check('CAM')


def test_a_fault_in_fp32_is_no_rounding():
    contenders = compare._Contenders(case('CAM'), (1, 64, 48, 48))
    contenders.runs[None] = lambda x: contenders.ours(x) * (1 + 2e-3)
    with pytest.raises(timing.ResultsDiffer, match='float32 on cpu'):
        contenders.check('CAM')


def test_a_fault_at_this_size_is_no_rounding():
    contenders = compare._Contenders(case('CAM'), (1, 64, 48, 48))
    contenders.ours.register_forward_hook(lambda block, x, y: y.clamp(-3, 3))
    with pytest.raises(timing.ResultsDiffer, match='float64 on cpu'):
        contenders.check('CAM')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    (row,) = compare.compare_case(case('CAM'), (1, 64, 6, 7), dtype=dtype, rounds=1)
    assert row.theirs['step'] > 0
    (row,) = compare.compare_case(
        case('CrissCrossAttention 1'), (1, 16, 6, 7), dtype=dtype, rounds=1
    )
    assert row.theirs['forward'] is None and 'expected' in row.unsupported['forward']


def test_a_peer_that_would_take_too_much_memory_is_left_blank(monkeypatch):
    monkeypatch.setattr(compare, 'memory_limit', lambda device: 4 * 3 * (6 * 7) ** 2)
    monkeypatch.setattr(compare, '_EQUALITY_SIZE', (3, 4))
    (row,) = compare.compare_case(case('PAM'), (1, 16, 6, 7), rounds=1)
    assert row.theirs['forward'] > 0 and row.theirs['saved'] > 0  # two maps
    assert row.theirs['step'] is row.theirs['peak'] is None  # four
    assert row.ours['step'] > 0 and row.ratio('step') is None
    line, why = report.table_lines(row)
    assert line.count(' - ') >= 2 and 'mmseg cannot (step, peak): needs' in why


def test_rounds_by_the_time_they_take(monkeypatch):
    calls = []

    def cannot():
        raise timing.BaselineUnsupported

    def took(f, device):
        f()
        return 4000.0 + len(calls)

    monkeypatch.setattr(timing, '_time', took)
    both = [lambda: calls.append('a'), cannot, lambda: calls.append('b')]
    assert timing.time_interleaved(both, 7, seconds=30) == ([4003, None, 4004], 3)
    assert ''.join(calls) == 'ab' * 4
    assert timing.time_interleaved(both, 7, seconds=1)[1] == 2
    assert timing.time_interleaved(both, 1, seconds=1)[1] == 1
    assert timing.time_interleaved(both[:1], 7, seconds=1, min_rounds=0)[1] == 0
    assert timing.time_interleaved(both, 7)[1] == 7


def test_picture(tmp_path, monkeypatch, quick, capsys):
    """Two panels; where the baseline is refused a cross, and the reason."""
    limit = 4 * 3 * (7 * 8) ** 2  # between two and four maps of the largest size
    monkeypatch.setattr(compare, 'memory_limit', lambda device: limit)
    monkeypatch.setattr(compare, '_EQUALITY_SIZE', (3, 4))
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, 'savefig', lambda self, out, **how: (figures.append(self), save(self, out, **how))
    )
    out, numbers = tmp_path / 'curves.png', tmp_path / 'curves.json'
    size = ['--size', '1', '16', '6', '7', '--rounds', '1']
    assert tool.main(['*a*', *size, '--plot', str(out), '--json', str(numbers)]) == 2
    assert 'allowed 1 to 8' in capsys.readouterr().err and not out.exists()
    assert tool.main(['[p]*', *size, '--plot', str(out), '--json', str(numbers)]) == 0
    assert out.read_bytes()[:4] == b'\x89PNG'
    (figure,) = figures
    time, memory = figure.axes
    assert 'ms' in time.get_ylabel() and 'MB' in memory.get_ylabel()
    assert all(a.get_xscale() == a.get_yscale() == 'log' for a in (time, memory))
    assert [text.get_text() for text in time.texts] == ['mmseg needs 0.0 GB']
    assert len(time.lines) == 4 and len(memory.lines) == 2
    assert 'CPU a CPU, 1 thread, fp32, malloc tuned' in figure.get_suptitle()
    (found,) = json.loads(numbers.read_text())['curves']
    assert found['name'] == 'PAM' and found['refused']['step'][0] == 56
    assert set(found['ours']['step']) == {'16', '30', '56'} > set(found['theirs']['step'])
    assert 'mmseg cannot (step) from 56 on' in capsys.readouterr().out


def test_a_curve_ends_where_a_point_takes_long(monkeypatch, quick):
    monkeypatch.setattr(compare, 'MAX_POINT_SECONDS', 0)
    found = compare.measure_curve(case('SGE'), (1, 64, 4, 4))
    assert set(found.ours['step']) == set(found.theirs['saved']) == {16} and not found.refused
    assert '  ours (step) ends at 16, which took over 20 s' in report.curve_lines(found)


def test_without_a_pattern_four_blocks_are_drawn():
    names = [c.name for c in report._plotted(list_cases(), '*', 'out.png')]
    assert sorted(names) == sorted(report._CURVES)
    with pytest.raises(UsageError, match='allowed are names that end in .png'):
        report._plotted(list_cases(), '*', 'out.jpeg')


@pytest.mark.parametrize(
    'name, count, message',
    [
        ('cuda', 0, '--device cuda: torch sees no GPU. Use --device cpu'),
        ('cuda:2', 2, '--device cuda:2: torch sees 2, from cuda:0'),
        ('tpu', 0, '--device tpu: allowed are cpu, cuda, cuda:0'),
        ('cuda:', 1, '--device cuda:: allowed are'),
    ],
)
def test_a_device_that_is_not_there(name, count, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    assert tool.main(['SE', '--device', name]) == 2
    assert message in capsys.readouterr().err


def test_refused(quick):
    with pytest.raises(UsageError, match='allowed are numbers from 1'):
        report.run_benchmark('SE', (1, 32, 0, 4))
    with pytest.raises(UsageError, match='--size 1x8x4x4 does not fit: SE: reduction=16'):
        report.run_benchmark('SE', (1, 8, 4, 4))
    with pytest.raises(UsageError, match='BAM: .* batch size 1'):
        report.run_benchmark('BAM', (1, 32, 4, 4))
    with pytest.raises(UsageError, match="nothing fits 'nosuch'. There are: NonLocal2d"):
        report.run_benchmark('nosuch')
    with pytest.raises(UsageError, match='nothing with --size fits'):
        report.run_benchmark('*128x256', (1, 32, 4, 4))


def test_options_for_blocks_alone(capsys):
    with pytest.raises(SystemExit):
        tool.main(['--plugins', '--device', 'cuda'])
    assert 'leave --device, --dtype and --plot out' in capsys.readouterr().err
