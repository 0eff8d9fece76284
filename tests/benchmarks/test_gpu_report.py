"""The report for a GPU: in small on the CPU; parts that fail; a GPU that only looks like one."""

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from mmattn.benchmarks.gpu import equality, large_map, report, restated, summary, timing, variants
from mmattn.benchmarks.gpu.bench import Bench, distance
from mmattn.benchmarks.gpu.contenders import BASELINE, OURS, Contender, compare
from mmattn.benchmarks.gpu.parts import PARTS, Part
from mmattn.benchmarks.gpu.report import find_device, run_report
from mmattn.blocks import PAM, SE, CrissCrossAttention
from mmattn.cli import gpu_report
from mmattn.errors import MmattnError, UsageError, WriteError
from mmattn.ops import attention_triton
from tests.conftest import ROOT

PATIENT = [replace(part, seconds=900) for part in PARTS]  # on a busy machine

FAULTY = """
import os, signal, time

def right(bench):
    print('said')
    bench.check('one', dict(x=bench_tensor()), dict(x=bench_tensor()), 0)

def bench_tensor():
    import torch
    return torch.ones(3)

def wrong(bench):
    bench.check('apart', dict(x=bench_tensor()), dict(x=2 * bench_tensor()), 0.1)

def raises(bench):
    right(bench)
    raise ValueError('no such thing\\nin detail')

def hangs(bench):
    right(bench)
    time.sleep(600)

def dies(bench):
    right(bench)
    os.kill(os.getpid(), signal.SIGSEGV)

def leaves(bench):
    print('the last line')
    os._exit(3)
"""


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Name of a function -> a part that runs it."""
    (tmp_path / 'faulty_parts.py').write_text(FAULTY)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    return lambda name, seconds=60: Part(name, f'faulty_parts:{name}', seconds)


def read(folder):
    return json.loads((folder / 'report.json').read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_the_whole_report_in_small(tmp_path, capsys):
    found = run_report(tmp_path / 'out', 'cpu', minutes=60, parts=PATIENT)
    assert found == read(tmp_path / 'out')
    assert list(found['parts']) == [part.name for part in PARTS] and found['small']
    assert {part['status'] for part in found['parts'].values()} == {'ok'}
    assert all(part['rows'] for part in found['parts'].values())
    outcome = found['summary']
    assert outcome['right'] == outcome['checks'] > 100
    assert not any(
        outcome[key] for key in ('wrong', 'unfinished', 'cut', 'errors', 'notes', 'missed')
    )
    measured = {(entry['block'], entry['measure']) for entry in outcome['ratios']}
    for block in 'CrissCrossAttention', 'PAM', 'NonLocal2d', 'SE', 'CBAM', 'SCSE':
        assert {(block, 'forward'), (block, 'step')} <= measured
    for entry in outcome['ratios']:
        assert entry['called'] > 0 and entry['device'] is None
    names = [
        row['name']
        for part in found['parts'].values()
        for row in part['rows']
        if row['kind'] == 'check'
    ]
    for start in (
        'criss-cross fp32 1x3x4 kernels',
        'softmax attention bf16 3/5 35 positions kernels',
        'block AFNB',
        'block TripletAttention',
        'criss-cross q, k in fp32',
    ):
        assert any(name.startswith(start) for name in names), start
    shown = capsys.readouterr().out
    assert shown.endswith((tmp_path / 'out' / 'summary.txt').read_text())
    assert f'Right: {outcome["checks"]} of {outcome["checks"]} checks.' in shown


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_others_alone(tmp_path, faulty, capsys):
    names = ['raises', 'right', 'wrong', 'hangs', 'dies', 'leaves']
    parts = [faulty(name, 6 if name == 'hangs' else 120) for name in names]
    out = tmp_path / 'out'
    with pytest.raises(
        MmattnError, match='1 checks failed and 4 parts did not finish on cpu'
    ) as error:
        run_report(out, 'cpu', parts=parts)
    found = read(out)
    assert {name: part['status'] for name, part in found['parts'].items()} == dict(
        raises='failed', right='ok', wrong='ok', hangs='timed out', dies='failed', leaves='failed'
    )
    assert found['parts']['raises']['error'] == 'ValueError: no such thing'
    assert found['parts']['hangs']['error'] == 'after 6 s'
    assert found['parts']['dies']['error'] == 'killed by SIGSEGV'
    assert found['parts']['leaves']['error'] == 'the last line'
    # what a part has found until then is kept
    assert [len(part['rows']) for part in found['parts'].values()] == [1, 1, 1, 1, 1, 0]
    outcome = found['summary']
    assert (outcome['checks'], outcome['right']) == (5, 4)
    assert outcome['wrong'] == ['apart: x 5.0e-01 > 1.0e-01'] and len(outcome['unfinished']) == 4
    assert error.value.lines == outcome['wrong'] + outcome['unfinished']
    assert (out / 'right.log').read_text() == 'said\n'
    assert 'no such thing\nin detail' in (out / 'raises.log').read_text()
    assert 'unfinished: dies: failed, killed by SIGSEGV' in capsys.readouterr().out


def test_parts_without_time_are_skipped_and_files_are_written_after_each(
    tmp_path, faulty, monkeypatch
):
    written, now = [], [100.0]
    write = report._write

    def note(folder, found):
        write(folder, found)
        written.append(read(folder))
        now[0] += 57

    monkeypatch.setattr(report, '_write', note)
    monkeypatch.setattr(report, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    with pytest.raises(MmattnError, match='0 checks failed and 1 parts did not finish'):
        run_report(tmp_path, 'cpu', minutes=1, parts=[faulty('right'), faulty('wrong')])
    assert [list(r['parts']) for r in written] == [['right'], ['right', 'wrong']]
    assert written[1]['parts']['wrong'] == dict(
        status='skipped', seconds=0, limit=3, error='no time left', rows=[]
    )


def test_the_process_ends_with_the_report(tmp_path, faulty):
    (tmp_path / 'sleeper.py').write_text(
        'import subprocess, sys\n'
        'def start(bench):\n'
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    bench.row('note', text=str(child.pid))\n"
    )
    found = run_report(tmp_path / 'out', 'cpu', parts=[Part('start', 'sleeper:start', 60)])
    (text,) = found['summary']['notes']
    state = ROOT.__class__(f'/proc/{text}/stat')
    assert not state.exists() or state.read_text().split(')')[1].split()[0] == 'Z'


def test_what_is_asked_for_must_be_there(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no part 'gate'. There are: ceilings, "):
        run_report(tmp_path, 'cpu', names=['gate'])
    with pytest.raises(UsageError, match='--device tpu: allowed are'):
        find_device('tpu')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert [find_device(name) for name in (None, 'cuda', 'cuda:0', 'cpu')] == [
        *['cuda:0'] * 3,
        'cpu',
    ]
    with pytest.raises(UsageError, match='torch sees 1 GPUs'):
        find_device('cuda:1')
    (tmp_path / 'file').write_text('')
    with pytest.raises(WriteError, match='cannot write .*Choose another --out'):
        run_report(tmp_path / 'file' / 'out', 'cpu')


def test_the_command(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(report, 'run_report', lambda *arguments: calls.append(arguments))
    arguments = [
        '--out',
        str(tmp_path),
        '--device',
        'cpu',
        '--minutes',
        '2',
        '--parts',
        'gates',
        'loss',
    ]
    assert gpu_report.main(arguments) == 0
    assert calls == [(tmp_path, 'cpu', 2, ['gates', 'loss'])]
    with pytest.raises(SystemExit):
        gpu_report.main(['--out', str(tmp_path), '--minutes', '0'])
    assert '--minutes 0: allowed are numbers above 0' in capsys.readouterr().err


def test_it_needs_no_package_of_openmmlab():
    blocked = 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm', 'cv2', 'matplotlib'
    modules = {part.function.partition(':')[0] for part in PARTS} | {
        report.__name__,
        gpu_report.__name__,
    }
    code = f'import sys; [sys.modules.__setitem__(name, None) for name in {blocked}]\n'
    code += ''.join(f'import {name}\n' for name in sorted(modules))
    subprocess.run([sys.executable, '-c', code], check=True, timeout=300)


# ---- the code for a GPU, on a CPU ---------------------------------------------------------------
class FakeEvent:
    """One ms passes between any two."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def elapsed_time(self, other):
        return 1.0


class FakeProfile:
    """Sees a launch and two runs of a kernel."""

    def __init__(self, activities):
        assert activities == [torch.profiler.ProfilerActivity.CUDA]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def events(self):
        kinds = torch.autograd.DeviceType
        seen = [('launch', kinds.CPU), ('kernel', kinds.CUDA), ('kernel', kinds.CUDA)]
        return [SimpleNamespace(name=name, device_type=kind) for name, kind in seen]


@pytest.fixture
def fake_gpu(monkeypatch):
    """torch.cuda as far as the parts need it; sizes are the small ones."""
    for part in PARTS:
        module = import_module(part.function.partition(':')[0])
        if hasattr(module, '_FULL'):
            monkeypatch.setattr(module, '_FULL', module._SMALL)
    for name, value in dict(_ROUNDS=2, _CALLS=2, _WARM_UPS=1).items():
        monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr(timing, 'profile', FakeProfile)
    graphs = []
    fakes = dict(
        Event=FakeEvent,
        Stream=lambda device: SimpleNamespace(wait_stream=lambda other: None),
        current_stream=lambda device: SimpleNamespace(wait_stream=lambda other: None),
        stream=lambda stream: contextlib.nullcontext(),
        graph=lambda graph, stream: contextlib.nullcontext(),
        CUDAGraph=lambda: graphs.append(1) or SimpleNamespace(replay=lambda: None),
        synchronize=lambda device: None,
        memory_allocated=lambda device: 10,
        max_memory_allocated=lambda device: 30,
        reset_peak_memory_stats=lambda device: None,
        mem_get_info=lambda device: (100e9, 100e9),
    )
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, backend, **kw: real(f, backend='eager', **kw))
    return graphs


def rows_of(path, measure=None, small=True):
    with Bench('cpu', path) as bench:
        bench.small = small
        if measure:
            measure(bench)
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize('part', PARTS, ids=lambda part: part.name)
def test_parts_as_on_a_gpu(part, tmp_path, fake_gpu):
    module, _, function = part.function.partition(':')
    rows = rows_of(tmp_path / 'rows', getattr(import_module(module), function), small=False)
    assert rows and not [row for row in rows if 'error' in row or row.get('equal') is False]
    assert all(row['ok'] for row in rows if row['kind'] == 'check')
    times = [row for row in rows if row['kind'] == 'time']
    if (
        part.function.endswith(('measure', 'measure_compiled'))
        and times
        and part.name not in ('loss', 'network')
    ):
        assert fake_gpu and all(row['graph_ms']['median'] > 0 for row in times)
        assert all(row['peak_bytes'] == 20 and row['launches'] == 2 for row in times)


@pytest.mark.parametrize('factor', [1.01, 1.16])
def test_a_wrong_result_is_seen(factor, tmp_path, monkeypatch):
    """In fp32 one that is off by a hundredth; in half precision by a sixth."""

    def wrong(function):
        return lambda *qkv: factor * function(*qkv)

    def checks(measure):
        rows = rows_of(tmp_path / measure.__name__, measure)
        return {row['name']: row['ok'] for row in rows if row['kind'] == 'check'}

    monkeypatch.setattr(equality, 'fused_available', lambda *_: False)
    monkeypatch.setattr(attention_triton, 'fused_available', lambda *_: False)
    for module, name in (equality, 'criss_cross'), (equality, 'softmax_attention'), (large_map, 'criss_cross'):  # fmt: skip
        monkeypatch.setattr(module, name, wrong(getattr(module, name)))
    for measure in equality.criss_cross_equality, equality.attention_equality:
        for name, ok in checks(measure).items():
            if 'twice' not in name and 'NaN' not in name:
                assert not ok or (factor < 1.1 and ' fp32 ' not in name), name
    if factor > 1.1:
        assert set(checks(large_map.measure).values()) == {False}


def test_a_check_that_raises_is_wrong(tmp_path, monkeypatch):
    def refuses(*qkv):
        raise ValueError('q, k, v are mixed')

    monkeypatch.setattr(equality, 'criss_cross', refuses)
    rows = rows_of(tmp_path / 'rows', equality.criss_cross_equality)
    failed = {row['name'] for row in rows if row.get('error') == 'ValueError: q, k, v are mixed'}
    assert {'criss-cross bf16 twice the same bits', 'criss-cross q, k in bf16, v in fp32'} <= failed


def test_a_contender_that_cannot_run_and_one_that_is_wrong(tmp_path):
    def broken(block):
        def run(x):
            raise RuntimeError('not\nthis dtype')

        return run

    def measure(bench):
        contenders = [
            Contender('ours', OURS, lambda block: block),
            Contender('broken', BASELINE, broken),
            Contender('off', BASELINE, lambda block: lambda x: 1.2 * block(x), layout='nhwc'),
        ]
        compare(bench, SE(16, reduction=4), 'bf16', (1, 16, 3, 4), contenders)

    rows = rows_of(tmp_path / 'rows', measure)
    found = dict(small=False, parts=dict(some=dict(status='ok', error=None, rows=rows)))
    outcome = found['summary'] = summary.summarize(found)
    assert (
        outcome['errors'][0] == 'SE bf16 1x16x3x4: broken, eager, nchw, forward: RuntimeError: not'
    )
    assert [text.partition(' differs')[0] for text in outcome['wrong']] == ['SE bf16 1x16x3x4: off, eager, nhwc, forward', 'SE bf16 1x16x3x4: off, eager, nhwc, step']  # fmt: skip
    assert all(
        entry['best_baseline'].startswith('off') and entry['nchw'] is None
        for entry in outcome['ratios']
    )
    assert 'wrong: SE bf16' in summary.to_text(found)


def test_a_device_that_is_lost_ends_the_part(tmp_path):
    with Bench('cpu', tmp_path / 'rows') as bench:
        with pytest.raises(RuntimeError, match='CUDA error'):
            bench.survive(RuntimeError('CUDA error: an illegal memory access was encountered'))
        assert bench.survive(ValueError('a\nb')) == 'ValueError: a'
        assert bench.survive(torch.OutOfMemoryError('CUDA out of memory')).startswith('OutOfMemory')

        def lost():
            raise RuntimeError('an illegal memory access')

        bench.synchronize = lost
        with pytest.raises(RuntimeError, match='illegal'):
            bench.survive(ValueError('what came of it'))


def test_rows_hold_no_number_that_is_not_finite(tmp_path):
    one = torch.ones(2)

    def measure(bench):
        assert not bench.check('nan', dict(x=one * math.nan), dict(x=one), 1)
        assert not bench.check('shape', dict(x=one), dict(x=one[:1]), 1, plain=dict(x=one[:1]))
        assert bench.check('same', dict(x=one), dict(x=one), 0)

    rows = rows_of(tmp_path / 'rows', measure)
    assert [row['errors']['x'] for row in rows] == [None, None, 0] and rows[1]['plain'] == dict(x=0)
    assert distance(3 * one, one) == pytest.approx(2)
    assert distance(0.02 * one, 0.01 * one) == pytest.approx(
        0.01 * 2**0.5
    )  # absolute below a norm of 1


def test_time_that_is_left(tmp_path):
    with Bench('cpu', tmp_path / 'rows', seconds=10) as bench:
        assert bench.has_time(5, 'this') and not bench.has_time(15, 'that')
    assert json.loads((tmp_path / 'rows').read_text()) == dict(kind='cut', what='that')


def time_row(block, role, layout, graph, call, dtype='bf16', batch=8, measure='forward'):
    row = dict(kind='time', block=block, dtype=dtype, shape=[batch, 512, 97, 97], measure=measure)
    row |= dict(
        contender=role, role=role, layout=layout, compiled=False, equal=True, difference=0.0
    )
    return row | {
        f'{key}_ms': dict(median=ms) for key, ms in dict(graph=graph, call=call).items() if ms
    }


def test_ratios_and_targets():
    """Of the best baseline to the best of ours, by the less favourable way to measure."""
    cross = 'CrissCrossAttention'
    rows = [
        time_row(cross, 'ours', 'nchw', 1.0, 2.0),
        time_row(cross, 'ours', 'nhwc', 2.0, 3.0),
        time_row(cross, 'other', 'nchw', 0.1, 0.1),
        time_row(cross, 'baseline', 'nchw', 3.0, 5.0),
        time_row(cross, 'baseline', 'nhwc', 2.5, 3.0),
        time_row(cross, 'ours', 'nchw', None, 1.0, 'fp32', 1),
        time_row(cross, 'baseline', 'nchw', 9.0, 1.1, 'fp32', 1),
        time_row('PAM', 'ours', 'nchw', 1.0, 1.0, measure='step'),
        time_row('SE', 'ours', 'nchw', 2.0, 2.0),
        time_row('SE', 'baseline', 'nchw', 1.0, 1.0),
    ]
    found = dict(small=False, parts=dict(some=dict(status='ok', error=None, rows=rows)))
    outcome = found['summary'] = summary.summarize(found)
    first, second, third, fourth = outcome['ratios']
    assert (first['device'], first['called'], first['ratio']) == (2.5, 1.5, 1.5)
    assert (first['nchw'], first['nhwc'], first['ours_ms'], first['baseline_ms']) == (
        2.5,
        1.0,
        1.0,
        2.5,
    )
    assert first['best_baseline'] == 'baseline, eager, nhwc, forward'
    assert (second['device'], second['ratio'], second['ours_ms']) == (None, 1.1, 1.0)
    assert third['ratio'] is None and fourth['ratio'] == 0.5
    assert [(t['target'], t['met']) for t in outcome['targets']] == [
        (2, False),
        (1, True),
        (1, False),
    ]
    assert outcome['missed'] == [
        'CrissCrossAttention bf16 8x512x97x97 forward: 1.5, target >=2',
        'PAM bf16 8x512x97x97 step: -, target >=1',
    ]
    text = summary.to_text(found)
    assert 'Targets: 1 of 3 met' in text and '  missed: PAM bf16' in text
    assert not summary.summarize(found | dict(small=True))['targets']


@pytest.mark.parametrize('width', [5, 700])
def test_slices_of_values_equal_the_formula(width):
    q, k = torch.randn(2, 2, 3, 11, dtype=torch.float64)
    v = torch.randn(2, width, 11, dtype=torch.float64)
    wanted = restated.softmax_core(q, k, v, 0.7)
    for core in restated.fused_core, restated.sliced_core:
        torch.testing.assert_close(core(q, k, v, 0.7), wanted)


def test_variants_are_undone():
    before = torch.backends.cuda.matmul.allow_tf32
    with variants.with_tf32():
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before
    x = torch.zeros(1)
    available = variants.criss_cross_triton.fused_available
    with variants.without_kernels():
        assert not variants.criss_cross_triton.fused_available(x)
    assert variants.criss_cross_triton.fused_available is available


@pytest.mark.parametrize(
    'cls, make',
    [(CrissCrossAttention, restated.criss_cross), (PAM, restated.pam(restated.fused_core))],
)
def test_restated_blocks_equal_ours(cls, make):
    block = cls(16).double()
    torch.nn.init.constant_(block.gamma.scale, 0.5)
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(make(block)(x), block(x))
