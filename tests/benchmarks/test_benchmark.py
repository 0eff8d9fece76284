import contextlib
import json
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from mmattn import blocks
from mmattn.benchmarks import cases, compare, contenders, report, run, timing
from mmattn.benchmarks.baselines import BASELINES, Baseline
from mmattn.benchmarks.cases import MEASURES, TARGETS, Target, list_cases, select_cases
from mmattn.benchmarks.compare import Cell, Row
from mmattn.benchmarks.results import Results
from mmattn.benchmarks.roofline import (
    Estimate,
    conv,
    cross,
    estimate,
    linear_pairs,
    softmax_pairs,
)
from mmattn.config.load import load_config
from mmattn.errors import UsageError
from tests.conftest import freeze
from tools import benchmark as tool

SPEED = dict(
    cpu='a CPU', torch='2', threads=1, malloc='tuned', gflops=100,
    read_gb_per_s={4: 80, 40: 40}, write_gb_per_s={4: 40, 40: 20},
)  # fmt: skip
HERE = ['--malloc', 'current', '--threads', '1', '--rounds', '1']  # in this process
EAGER_HERE = [*HERE, '--mode', 'eager']


@pytest.fixture
def quick(monkeypatch):
    """A machine that need not be measured, small maps for curves, and little garbage to collect."""
    freeze()
    monkeypatch.setattr(run, 'describe_machine', lambda *_: dict(SPEED))
    for module in report, compare:
        monkeypatch.setattr(module, 'CURVE', ((4, 4), (5, 6), (7, 8)))


def case(name):
    return next(c for c in list_cases() if c.name == name)


def cell(row, owner, layout='NCHW', mode='eager'):
    return next(c for c in row.cells if (c.owner, c.layout, c.mode) == (owner, layout, mode))


def test_every_baseline_and_every_target_belongs_to_a_case():
    every = list_cases()
    assert set(BASELINES) <= {c.name for c in every} | {c.block for c in every}
    assert set(TARGETS) <= {c.name for c in every}
    assert len({c.name for c in every}) == len(every)
    for c in every:
        assert {t.measure for t in c.targets} <= set(c.measures)
        assert {t.layout for t in c.targets} <= {None, *c.layouts}


def test_timm_is_among_the_baselines():
    """Without it the table would lack a row and not say so."""
    assert all(b.installed for baselines in BASELINES.values() for b in baselines)


def test_every_block_equals_its_baselines_and_is_measured(tmp_path, quick, capsys):
    """`compare_case` raises where a block and its baseline differ, in either layout."""
    out = tmp_path / 'benchmark.json'
    size = ['--size', '2', '128', '6', '7']
    assert tool.main([*EAGER_HERE, *size, '--json', str(out)]) == 0
    results = Results.load(out)
    assert {row.name for row in results.rows} == {c.name for c in list_cases() if not c.fixed_size}
    for row in results.rows:
        assert row.estimate > 0 and not row.targets and row.threads == 1
        for c in row.cells:
            no_step = row.name == 'NonLocal2d concatenation' and c.owner == 'mmcv'
            assert [len(c.forward), len(c.step)] == [1, 0 if no_step else 1], (row.name, c)
            assert c.saved is None if no_step else c.saved >= 0
            assert min(c.forward) > 0
        layouts = {c.layout for c in row.cells}
        assert layouts == ({'NCHW'} if row.name.endswith('core') else {'NCHW', 'NHWC'})
    assert results.machines[0]['gflops'] > 0 and results.options['size'] == [2, 128, 6, 7]
    unpaired = {row.name: row.unpaired for row in results.rows if row.unpaired}
    assert unpaired == {'MHSA': {'timm': ['position.height', 'position.width']}}
    shown = capsys.readouterr().out
    assert 'mmcv cannot (step, saved, peak; NCHW, eager): mmcv divides in place' in shown
    table = shown.partition(report.table_header())[2]  # after the description of the machine
    assert table and max(map(len, table.splitlines())) <= 160


@pytest.mark.slow
def test_compiled(monkeypatch):
    """How long compilation took is apart from the times."""
    monkeypatch.setitem(BASELINES, 'SE', BASELINES['SE'][:1])
    row = compare.compare_case(case('SE'), (1, 32, 6, 7), rounds=1, layouts=['NHWC'])
    assert [(c.owner, c.mode) for c in row.cells] == [
        (owner, mode) for owner in ('ours', 'authors*') for mode in ('eager', 'compiled')
    ]
    for c in row.cells:
        assert not c.unsupported and c.forward and c.step and c.peak > 0
        assert set(c.compile_seconds) == ({'forward', 'step'} if c.mode == 'compiled' else set())
    assert 'compilation, not in the times: ours ' in list(report.summary([row]))[-1]


def test_a_baseline_that_does_not_compile(monkeypatch):
    """Its eager times count; the reason is shown."""

    def compile_(run_, dynamic):
        def refuse(*inputs):
            raise torch._dynamo.exc.Unsupported('nothing for a compiler')

        return refuse

    monkeypatch.setattr(torch, 'compile', compile_)
    row = compare.compare_case(case('SE'), (1, 32, 6, 7), rounds=1, layouts=['NCHW'])
    broken = cell(row, 'authors*', mode='compiled')
    assert 'nothing for a compiler' in broken.unsupported['forward'] and not broken.forward
    assert row.ratio('forward') > 0 and row.best(False, 'forward').mode == 'eager'
    lines = '\n'.join(report.table_lines(row))
    assert 'ours cannot (forward, step, saved, peak; NCHW, compiled): nothing' in lines


@pytest.mark.parametrize(
    'name', [c.name for c in list_cases() if c.fixed_size and not c.needs_compiled_ops]
)
def test_cases_of_one_size(name):
    """At a smaller one: what is not asked is not measured."""
    small = replace(case(name), size=(1, 32, 6, 7))
    row = compare.compare_case(small, rounds=1, modes=['eager'])
    for measure in MEASURES:
        assert (row.best(True, measure) is not None) == (measure in small.measures)
    assert [t for t in row.targets if t in TARGETS.get(name, ())] == TARGETS.get(name, [])


@pytest.mark.slow
def test_training_step_of_a_network(monkeypatch):
    """MMDetection's with MMCV's blocks has the same losses and gradients as ours."""
    few = {'model.train_cfg.rpn_proposal.max_per_img': 40, 'model.train_cfg.rcnn.sampler.num': 32}

    def load(path, options, attention):  # most of a step goes into boxes
        return load_config(path, options | few, attention)

    monkeypatch.setattr(cases, 'load_config', load)
    small = replace(case('Mask R-CNN R50 + GC'), size=(1, 3, 96, 128))
    row = compare.compare_case(small, rounds=1)
    assert row.ratio('step') > 0 and [t.ratio for t in row.targets] == [0.97]
    assert row.best(False, 'step').owner == 'mmdet'
    assert any('without, which does other work: step' in line for line in report.table_lines(row))
    assert [c.name for c in select_cases('mask*')] == [small.name]
    for arguments in dict(sized=True), dict(dtype=torch.bfloat16):
        with pytest.raises(UsageError, match='fits'):
            select_cases('mask*', **arguments)


def test_targets_stand_at_their_size_device_and_dtype():
    small = replace(case('SCSE'), size=(2, 32, 6, 7))
    quickly = dict(rounds=1, modes=['eager'])
    row = compare.compare_case(small, machine=SPEED, **quickly)
    assert [str(t) for t in row.targets] == [
        'step', 'forward NCHW', 'forward NHWC', 'step NCHW', 'step NHWC',
    ]  # fmt: skip
    for other in (
        compare.compare_case(small, (2, 32, 6, 8), **quickly),
        compare.compare_case(small, dtype=torch.float64, **quickly),
        compare.compare_case(small, has_targets=False, **quickly),
    ):
        assert not other.targets


def row_of(*cells, targets=()):
    return Row('SCSE', (1, 8, 4, 4), 2, 'tuned', 5.0, list(cells), list(targets), {})


def test_the_best_of_each_side():
    """The better mode of each, in one layout or in either; a range of the same two cells."""
    row = row_of(
        Cell('ours', 'NCHW', 'eager', forward=[10, 12], saved=0),
        Cell('ours', 'NCHW', 'compiled', forward=[8, 8.5]),
        Cell('ours', 'NHWC', 'eager', forward=[4, 5]),
        Cell('authors*', 'NCHW', 'eager', forward=[20, 30], saved=5),
        Cell('authors*', 'NCHW', 'compiled', forward=[12, 11]),
        Cell('timm', 'NHWC', 'compiled', forward=[9, 8]),
        Cell('without', 'NCHW', 'eager', comparable=False, forward=[1, 1]),
        targets=[
            Target('forward', 1.9),
            Target('forward', 1.5, 'NCHW'),
            Target('forward', 4, mode='eager'),
            Target('step', 1),
        ],
    )
    # medians of the ratios of both rounds
    assert row.ratio('forward') == (9 / 4 + 8 / 5) / 2
    assert row.ratio('forward', 'NCHW') == (12 / 8 + 11 / 8.5) / 2
    # our best against theirs of this mode
    assert row.ratio('forward', mode='eager') == (20 / 4 + 30 / 5) / 2
    least, greatest = 11 / 8.5, 12 / 8
    quartiles = least + (greatest - least) / 4, least + (greatest - least) * 3 / 4
    assert row.spread('forward', 'NCHW') == pytest.approx(quartiles)
    assert row.ratio('saved') is None and row.ratio('step') is None
    assert [row.met(t) for t in row.targets] == [True, False, True, None]
    lines = list(report.table_lines(row))
    assert lines[0].split()[:5] == ['SCSE', 'NCHW', '8.25c', '1.40', '1.35-1.45']
    assert lines[2].split()[:5] == ['estimate', '5.00', 'ms', 'best', '4.50']
    assert lines[-1] == '  without, which does other work: forward 1.00 ms'
    row.name = 'a name as wide as its column is'  # does not run into the next one
    named = list(report.table_lines(row))
    assert named[0] == row.name and named[1] == lines[0].replace('SCSE', '    ', 1)
    row.name = 'SCSE'
    assert list(report.summary([row])) == [
        '2 of 4 targets met',
        '  missed: SCSE, forward NCHW: 1.40 (1.35 to 1.45), target 1.5',
        '  not measured: SCSE, step: -, target 1',
    ]


def test_a_second_run_is_compared(tmp_path, monkeypatch):
    target = Target('forward', 2)
    monkeypatch.setitem(TARGETS, 'SCSE', [target])
    first, second = (
        Results({}, rows=[
            row_of(Cell('ours', forward=[10]), Cell('a', forward=[ms]), targets=[target])
        ], path=tmp_path / 'a.json')
        for ms in (30, 33)
    )  # fmt: skip
    assert list(report.deviations(second, first)) == [
        '  SCSE, forward: 3.00 then, 3.30 now (+10%)',
        f'{first.path}: 1 ratios with targets of their own differ by at most 10.0%',
    ]
    assert len(list(report.deviations(first, first))) == 1


def test_a_stopped_run_goes_on(tmp_path, quick, monkeypatch, capsys):
    out = tmp_path / 'benchmark.json'
    arguments = ['s[eg]*', *EAGER_HERE, '--size', '1', '64', '4', '4', '--json', str(out)]
    compared, measure = [], compare.compare_case

    def stop(case, *args, **options):
        if compared:
            raise KeyboardInterrupt
        compared.append(case.name)
        return measure(case, *args, **options)

    monkeypatch.setattr(run, 'compare_case', stop)
    with contextlib.suppress(KeyboardInterrupt):
        tool.main(arguments)
    first = Results.load(out).rows
    assert [row.name for row in first] == compared == ['SE']
    monkeypatch.setattr(run, 'compare_case', measure)
    assert tool.main([*arguments, '--resume', '--against', str(out)]) == 0
    rows = Results.load(out).rows
    assert [row.name for row in rows] == ['SE', 'SGE'] and rows[0] == first[0]
    shown = capsys.readouterr().out
    assert shown.count('SE    ') >= 2 and '0 ratios with targets of their own to compare' in shown
    # another size is another run, another machine too; without --resume all is measured anew
    other = [*arguments, '--resume', '--rounds', '2']
    assert tool.main(other) == 2 and 'rounds 1, not 2' in capsys.readouterr().err
    monkeypatch.setattr(run, 'describe_machine', lambda *_: SPEED | dict(cpu='another'))
    assert tool.main([*arguments, '--resume']) == 2
    assert 'was measured with cpu a CPU, this is another' in capsys.readouterr().err
    assert tool.main(arguments) == 0 and Results.load(out).machines[0]['cpu'] == 'another'
    out.write_text('{}')
    assert tool.main([*arguments, '--resume']) == 2
    assert 'has no figures of a benchmark' in capsys.readouterr().err
    out.unlink()
    assert tool.main([*arguments, '--against', str(out)]) == 2
    assert f'{out} cannot be read: No such file or directory' in capsys.readouterr().err


def test_settings_of_malloc_and_numbers_of_threads(tmp_path):
    """Each malloc in its own process, all in one file; bytes once, as they do not depend on it."""
    out = tmp_path / 'benchmark.json'
    arguments = ['SE', '--size', '1', '32', '4', '4', '--rounds', '1', '--mode', 'eager']
    assert tool.main([*arguments, '--threads', '2', '1', '--json', str(out)]) == 0
    results = Results.load(out)
    assert [(row.malloc, row.threads) for row in results.rows] == [
        ('tuned', 2), ('tuned', 1), ('default', 2), ('default', 1),
    ]  # fmt: skip
    assert [m['malloc'] for m in results.machines] == 2 * ['tuned'] + 2 * ['default']
    assert [cell(row, 'ours').saved is None for row in results.rows] == [False, True, True, True]


def test_the_exit_code_of_a_setting_is_passed_on(monkeypatch):
    calls = []
    run_ = lambda command, env: calls.append(command) or SimpleNamespace(returncode=2)  # noqa: E731
    monkeypatch.setattr(subprocess, 'run', run_)
    assert tool.main(['SE']) == 2 and len(calls) == 1  # the other setting is not run
    assert calls[0][-4:-1] == ['--malloc', 'current', '--json']


P = 97 * 97


@pytest.mark.parametrize(
    'found, giga, mega',
    [  # GFLOP and MB in fp32 of 97x97 maps of 512 channels
        (softmax_pairs(P, P, 64, 512), 102.0, 43.4),
        (softmax_pairs(P, P, 256, 256), 90.7, 38.5),
        (Estimate(4 * conv(P, 512, 256), 0), 9.87, 0),
        (cross(97, 97, 64, 512), 2.09, 43.4),
        (Estimate(conv(P, 512, 2 * 64 + 512), 0), 6.17, 0),
        (softmax_pairs(P, 110, 256, 256), 1.06, 19.5),
        (linear_pairs(P, P, 256), 2.47, 38.5),
        (softmax_pairs(128 * 256, 128 * 256, 256, 256), 1099.5, 134.2),
    ],
)
def test_estimates_of_the_equations(found, giga, mega):
    assert found.flop / 1e9 == pytest.approx(giga, rel=3e-3)
    assert (found.read + found.written) * 4 / 1e6 == pytest.approx(mega, rel=3e-3)


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
        (blocks.CAM(), [(1, 512, 97, 97)], 7.4, 57.8),
        (blocks.CBAM(512), [(1, 512, 97, 97)], 0, 77.1),
        (blocks.SGE(512), [(1, 512, 97, 97)], 0, 38.5),
    ],
)
def test_estimates_of_blocks(block, shapes, giga, mega):
    found = estimate(block, shapes)
    assert found.flop / 1e9 == pytest.approx(giga, rel=5e-3)
    assert (found.read + found.written) * 4 / 1e6 == pytest.approx(mega, rel=3e-3)


def test_estimate_of_the_head():
    head = case('ANNHead')
    built = head.build(head.size)
    found = estimate(built, head.shapes(built, head.size))
    assert found.flop / 1e9 == pytest.approx(98.6 + 177.6 + 9.0, rel=3e-3)
    assert found.read == (1024 + 2048) * P and found.written == 19 * P


def test_estimates_in_milliseconds():
    """A map of 40 MB reads at 40 GB/s, one of 4 MB, which fits the cache, at twice that."""
    assert Estimate(2e9, 1e6).ms(4, SPEED) == pytest.approx(20)
    assert Estimate(0, 2e7, 1e7).ms(4, SPEED) == pytest.approx(2 + 2)
    assert Estimate(0, 2e6, 1e6).ms(4, SPEED) == pytest.approx(0.1 + 0.1)
    assert Estimate(0, 2e8, 1e8).ms(4, SPEED) == pytest.approx(20 + 20)


def _half_the_gradient(b):
    return lambda x: x * (b.gate(x) + b.gate(x).detach())[:, :, None, None] / 2


@pytest.mark.parametrize('make', [lambda b: lambda x: x, _half_the_gradient])
def test_unequal_baselines_are_not_timed(make, monkeypatch, quick, capsys):
    monkeypatch.setitem(BASELINES, 'SE', [Baseline('wrong', make)])
    with pytest.raises(
        timing.ResultsDiffer, match=r'SE differs from its baseline \(wrong, NCHW, eager\)'
    ):
        run.run_benchmark('s[eg]*', (1, 64, 4, 4), 1, modes=['eager'])
    shown = capsys.readouterr().out
    assert 'SGE ' in shown and 'not timed: SE differs' in shown and '\nSE ' not in shown


def _shifted_weight_gradient(b):
    """Forward and input gradient are right; the gradient of one bias is off by 1 %."""

    def run_(x):
        z = b.fc2(b.fc1(x.mean((2, 3))).relu())
        z = z + 0.01 * (b.fc2.bias - b.fc2.bias.detach())
        return x * z.sigmoid()[:, :, None, None]

    return run_


def test_weight_gradients_are_compared(monkeypatch):
    monkeypatch.setitem(BASELINES, 'SE', [Baseline('wrong', _shifted_weight_gradient)])
    with pytest.raises(timing.ResultsDiffer, match='gradient of fc2.bias, float64'):
        compare.compare_case(case('SE'), (1, 64, 4, 4), rounds=1, modes=['eager'])


def test_parameters_of_a_library_are_paired_by_their_values():
    found = contenders.Contenders(case('SE'), (1, 32, 4, 4))
    timm = next(c for c in found.all if c.baseline and c.baseline.label == 'timm')
    names = found.parameters(timm)
    assert set(names) == {'fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias'}
    assert names['fc1.weight'].shape == (2, 32, 1, 1) and not found.unpaired()


def test_no_contender_reads_what_another_has_left_in_the_cache():
    found = contenders.Contenders(case('SE'), (1, 32, 4, 4), layouts=['NCHW', 'NHWC'])
    steps = [found._step(contender) for contender in found.all]
    places = [t.data_ptr() for step in steps for t in (*step.inputs, step.gradient)]
    assert len(set(places)) == len(places) == 2 * len(found.all)


def test_rounding_makes_nothing_unequal():
    """Logits of CAM are sums over all pixels, so that fp32 is further off than 1e-5."""
    both = contenders.Contenders(case('CAM'), (1, 64, 48, 48))
    ours, theirs = map(both.results, both.all)
    assert ours.keys() == theirs.keys() and 'gradient of gamma.scale' in ours
    largest = max(
        both._difference(ours[what], theirs[what], what, theirs[what].abs().max()) for what in ours
    )
    assert largest > 1e-5
    both.check('CAM')


def test_a_form_may_round_less_than_all_others():
    found = contenders.Contenders(case('CAM'), (1, 64, 48, 48), layouts=['NCHW', 'NHWC'])
    other = next(c for c in found.all if not c.baseline and c != found.reference)
    block = found.blocks[other.layout]

    class InDouble(torch.nn.Module):
        def forward(self, x):
            return torch.func.functional_call(
                block, {name: p.double() for name, p in block.named_parameters()}, x.double()
            ).float()

    found.runs[other] = InDouble()
    found.check('CAM')
    found.runs[found.reference] = lambda x: found.ours(x) * (1 + 2e-3)
    with pytest.raises(timing.ResultsDiffer, match='float32 on cpu'):
        found.check('CAM')


def test_a_fault_in_fp32_is_no_rounding():
    both = contenders.Contenders(case('CAM'), (1, 64, 48, 48))
    both.runs[both.reference] = lambda x: both.ours(x) * (1 + 2e-3)
    with pytest.raises(timing.ResultsDiffer, match='float32 on cpu'):
        both.check('CAM')


def test_a_fault_at_this_size_is_no_rounding():
    both = contenders.Contenders(case('CAM'), (1, 64, 48, 48))
    both.ours.register_forward_hook(lambda block, x, y: y.clamp(-3, 3))
    with pytest.raises(timing.ResultsDiffer, match='float64 on cpu'):
        both.check('CAM')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    quickly = dict(dtype=dtype, rounds=1, modes=['eager'])
    row = compare.compare_case(case('CAM'), (1, 64, 6, 7), **quickly)
    assert row.ratio('step') > 0
    row = compare.compare_case(case('CrissCrossAttention 1'), (1, 16, 6, 7), **quickly)
    theirs = cell(row, 'mmcv')
    assert not theirs.forward and 'expected' in theirs.unsupported['forward']


def test_a_baseline_that_would_take_too_much_memory_is_left_blank(monkeypatch):
    monkeypatch.setattr(contenders, 'memory_limit', lambda device: 4 * 3 * (6 * 7) ** 2)
    monkeypatch.setattr(compare, 'EQUALITY_SIZE', (3, 4))
    row = compare.compare_case(case('PAM'), (1, 16, 6, 7), rounds=1, modes=['eager'])
    theirs = cell(row, 'mmseg')
    assert theirs.forward and theirs.saved > 0  # two maps
    assert not theirs.step and theirs.peak is None  # four
    assert cell(row, 'ours').step and cell(row, 'sdpa').step
    lines = list(report.table_lines(row))
    assert 'mmseg cannot (step, peak; NCHW, eager): needs' in lines[3]


def test_rounds_by_the_time_they_take(monkeypatch):
    calls = []

    def cannot():
        raise timing.BaselineUnsupported

    def took(f, device, count):
        f()
        return 4000.0 + len(calls)

    monkeypatch.setattr(timing, '_time', took)
    both = [lambda: calls.append('a'), cannot, lambda: calls.append('b')]
    times = timing.time_interleaved(both, 7, seconds=30)
    assert [len(t) for t in times] == [3, 0, 3] and ''.join(calls).startswith('abab')
    calls.clear()
    timing.time_interleaved(both, 20)
    rounds = [''.join(calls[k : k + 2]) for k in range(4, 44, 2)]
    assert min(rounds.count('ab'), rounds.count('ba')) > 4 and set(rounds) == {'ab', 'ba'}
    assert len(timing.time_interleaved(both, 7, seconds=1)[0]) == 2
    assert len(timing.time_interleaved(both, 1, seconds=1)[0]) == 1
    assert len(timing.time_interleaved(both[:1], 7, seconds=1, min_rounds=0)[0]) == 1
    assert len(timing.time_interleaved(both, 7)[0]) == 7
    gpu = torch.device('cuda')
    assert [timing._calls(ms, gpu) for ms in (0.01, 0.5, 5, 100)] == [20, 20, 4, 1]
    assert timing._calls(0.01, timing.CPU) == 1


def test_picture(tmp_path, monkeypatch, quick, capsys):
    """Two panels; where the baseline is refused a cross, and the reason."""
    limit = 4 * 3 * (7 * 8) ** 2  # between two and four maps of the largest size
    monkeypatch.setattr(contenders, 'memory_limit', lambda device: limit)
    monkeypatch.setattr(compare, 'EQUALITY_SIZE', (3, 4))
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, 'savefig', lambda self, out, **how: (figures.append(self), save(self, out, **how))
    )
    out, numbers = tmp_path / 'curves.png', tmp_path / 'curves.json'
    size = ['--size', '1', '16', '6', '7', *EAGER_HERE]
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
    names = [c.name for c in run._plotted(list_cases(), '*', 'out.png')]
    assert sorted(names) == sorted(run._CURVES)
    with pytest.raises(UsageError, match='allowed are names that end in .png'):
        run._plotted(list_cases(), '*', 'out.jpeg')


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
    assert tool.main(['SE', '--malloc', 'current', '--device', name]) == 2
    assert message in capsys.readouterr().err


def test_refused(quick):
    with pytest.raises(UsageError, match='allowed are numbers from 1'):
        run.run_benchmark('SE', (1, 32, 0, 4))
    with pytest.raises(UsageError, match='--size 1x8x4x4 does not fit: SE: reduction=16'):
        run.run_benchmark('SE', (1, 8, 4, 4))
    with pytest.raises(UsageError, match='BAM: .* batch size 1'):
        run.run_benchmark('BAM', (1, 32, 4, 4))
    with pytest.raises(UsageError, match="nothing fits 'nosuch'. There are: NonLocal2d"):
        run.run_benchmark('nosuch')
    with pytest.raises(UsageError, match='nothing with --size fits'):
        run.run_benchmark('*128x256', (1, 32, 4, 4))


def test_options_for_blocks_alone(capsys):
    with pytest.raises(SystemExit):
        tool.main(['--plugins', '--device', 'cuda'])
    assert 'leave --device, --dtype and --plot out' in capsys.readouterr().err
