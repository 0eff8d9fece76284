"""Trainings of two processes by torchrun and gloo: what fails is named, and resumes exactly."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from torch import distributed as dist

from mmattn.engine.distributed import DistributedRun
from mmattn.engine.test import test as evaluate
from mmattn.errors import UsageError
from mmattn.exit_status import exit_code_and_message, read_status, write_status
from tests.conftest import ROOT, tiny_options
from tests.engine import two_nodes
from tests.test_tools import flags, tool

CONFIG = 'configs/ccnet_r18_street.py'
STEPS = 8
TIMEOUT = 20  # seconds that a process waits for the other: more than a loaded machine takes
LIMIT = 300  # seconds until a group that does not end is killed


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def changes(street) -> list[str]:
    options = tiny_options(street) | {
        'train_cfg.max_iters': STEPS,
        'train_dataloader.batch_size': 1,
        'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
        'model.data_preprocessor.size': (64, 64),
        'model.backbone.stem_channels': 8,
        'model.backbone.base_channels': 8,
        'model.decode_head.in_channels': 64,
        'model.decode_head.channels': 16,
        'model.auxiliary_head.in_channels': 32,
        'model.auxiliary_head.channels': 8,
        'env_cfg.dist_cfg.timeout': TIMEOUT,
    }
    return flags(options)


def arguments(street, work_dir, *more) -> list[str]:
    given = [CONFIG, '--work-dir', work_dir, '--launcher', 'pytorch', '--no-validate', *more]
    return [*map(str, given), *changes(street)]


def environment(trace, faults) -> dict:
    trace.mkdir(exist_ok=True)
    own = dict(TRACE=str(trace), FAULTS=json.dumps(faults), OMP_NUM_THREADS='1')
    return {**os.environ, **own, 'PYTHONFAULTHANDLER': '1'}


def torchrun(street, work_dir, trace, *more, faults=(), elastic=0):
    """Train on two ranks; returns how torchrun ends, and what all of them say."""
    return launched(arguments(street, work_dir, *more), trace, faults, elastic)


def launched(given, trace, faults=(), elastic=0, tool='train'):
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2',
        '--master-addr', '127.0.0.1', '--master-port', str(free_port()),
        '--max-restarts', str(elastic), 'tests/engine/faulty.py',
    ]  # fmt: skip
    return finished([*command, *given], environment(trace, faults) | dict(TOOL=tool))


def finished(command, env):
    """Run a command as a group of processes of its own, of which none is left behind it."""
    with tempfile.TemporaryFile('w+') as out:
        child = subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, start_new_session=True, stdout=out, stderr=out
        )
        try:
            child.wait(timeout=LIMIT)
        finally:
            orphans = end_group(child.pid)
            out.seek(0)
            said = out.read()
            print(said)
    return SimpleNamespace(code=child.returncode, said=said, orphans=orphans)


def end_group(group: int) -> bool:
    """Kill what is left of a process group; whether there was anything."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def ended(work_dir, capsys) -> tuple[int, str]:
    """What `tools/exit_code.py` makes of a run."""
    output = capsys.readouterr().out
    code = tool('exit_code')([str(work_dir)])
    message = capsys.readouterr().err
    print(output)  # what the processes wrote, in the report of a failure
    return code, message


def steps(trace) -> list[dict[int, str]]:
    """Step -> loss of each rank; a step that was made twice gave the same."""
    found = []
    for rank in 0, 1:
        losses: dict[int, str] = {}
        for line in (trace / f'trace_{rank}.txt').read_text().splitlines():
            step, loss = line.split()
            assert losses.setdefault(int(step), loss) == loss, step
        found.append(losses)
    return found


def state(work_dir) -> dict:
    content = torch.load(work_dir / f'iter_{STEPS}.pth', weights_only=True)
    return {k: content[k] for k in ('state_dict', 'optimizer', 'rng', 'param_schedulers')}


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope='module')
def whole(street, tmp_path_factory):
    """Work dir and trace of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp('whole')
    done = torchrun(street, folder / 'run', folder / 'trace')
    assert done.code == 0 and not done.orphans, done.said
    return folder / 'run', folder / 'trace'


def test_a_run_by_gloo_ends_well_and_its_ranks_draw_apart(whole, capsys):
    work_dir, trace = whole
    assert ended(work_dir, capsys) == (0, '')
    first, second = steps(trace)
    assert sorted(first) == sorted(second) == list(range(1, STEPS + 1))
    rows = state(work_dir)['rng']
    assert len(rows) == 2 and not torch.equal(*rows)


def test_a_rank_that_raises_in_a_slurm_job(street, tmp_path):
    """Its own code and sentence count, not the closed connection that the other sees."""
    slurm = dict(
        srun='#!/bin/sh\nwhile [ "$1" != bash ]; do echo "$1" >> "$TRACE/srun"; shift; done\n'
        'for a; do shift; [ "$a" != tools/train.py ] || a=tests/engine/faulty.py; '
        'set -- "$@" "$a"; done\nexec "$@"\n',
        scontrol='#!/bin/sh\nprintf "127.0.0.1\nnode2\n"\n',
    )
    for name, text in slurm.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    config, _, work_dir, *more = arguments(street, tmp_path / 'run')
    run = finished(
        ['bash', 'tools/slurm_train.sh', 'gpus', 'cells', config, work_dir, *more],
        environment(tmp_path / 'trace', [(1, 3, 'fail')])
        | dict(
            PATH=f'{tmp_path}:{os.environ["PATH"]}', PYTHON=sys.executable, GPUS='2',
            CPUS_PER_TASK='3', SRUN_ARGS='--qos high', PORT=str(free_port()), SLURM_JOB_ID='7',
            SLURM_JOB_NUM_NODES='1', SLURM_JOB_NODELIST='node[1-2]',
        ),
    )  # fmt: skip
    assert (tmp_path / 'trace' / 'srun').read_text().split() == [
        '-p', 'gpus', '--job-name=cells', '--gres=gpu:2', '--nodes=1', '--ntasks-per-node=1',
        '--cpus-per-task=6', '--kill-on-bad-exit=0', '--signal=TERM@120', '--qos', 'high',
    ]  # fmt: skip
    assert run.code == 3 and not run.orphans
    assert run.said.endswith('\nerror: image x.png is damaged.\n')
    assert 'error: rank 1 failed: image x.png is damaged.' in run.said
    record = json.loads((tmp_path / 'run' / 'exit_status.json').read_text())
    assert (record['rank'], record['step']) == (1, 3) and record['time'] > 0


def test_a_rank_that_hangs(street, tmp_path, capsys):
    run = torchrun(street, tmp_path / 'run', tmp_path / 'trace', faults=[(1, 4, 'hang')])
    assert run.code == 1 and not run.orphans
    assert 'forcefully' not in run.said  # torchrun's SIGTERM was enough for the one that hung
    assert ended(tmp_path / 'run', capsys) == (
        8,
        f'error: no answer from rank 1 for {TIMEOUT} s at iteration 4; last good checkpoint: iter_2. '
        'Run again with --resume.\n',
    )


def test_killed_ranks_and_exactly_the_same_end(whole, street, tmp_path, capsys):
    """Stopped; rank 1 is killed, then both, then rank 0 of an elastic run, which goes on by itself."""
    work_dir, trace = tmp_path / 'run', tmp_path / 'trace'
    run = torchrun(street, work_dir, trace, faults=[(1, 3, 'stop')])
    assert run.code == 1 and not run.orphans
    code, said = ended(work_dir, capsys)
    assert code == 75 and 'at iteration 3' in said
    run = torchrun(street, work_dir, trace, '--resume', faults=[(1, 4, 'kill')])
    assert run.code == 1 and not run.orphans
    assert ended(work_dir, capsys) == (
        8,
        'error: rank 1 was killed (SIGKILL; probably out of memory) at iteration 4; last good '
        'checkpoint: iter_3. Run again with --resume.\n',
    )
    run = torchrun(street, work_dir, trace, '--resume', faults=[(0, 5, 'kill'), (1, 5, 'kill')])
    assert run.code == 1 and not run.orphans
    code, said = ended(work_dir, capsys)
    assert code == 8 and 'no process reported an exit status' in said
    run = torchrun(street, work_dir, trace, '--resume', 'auto', faults=[(0, 8, 'kill')], elastic=1)
    assert run.code == 0 and not run.orphans
    assert 'rank 0 was killed' in run.said
    assert ended(work_dir, capsys) == (0, '')
    done = sorted(p.name for p in trace.iterdir() if not p.name.startswith('trace'))
    assert done == ['kill_0_5', 'kill_0_8', 'kill_1_4', 'kill_1_5', 'stop_1_3']
    assert steps(trace) == steps(whole[1])
    assert same(state(work_dir), state(whole[0]))


def reported_files(folder):
    """Files of a report; the page without what differs by run, the numbers without all of it."""
    for path in sorted(folder.rglob('*')):
        yield str(path.relative_to(folder))
        if path.suffix == '.json':
            yield json.loads(path.read_text())['labels']
        elif path.suffix in ('.png', '.jpg'):
            yield path.read_bytes()


def test_two_ranks_test_as_one_and_one_that_is_killed_is_named(whole, street, tmp_path, capsys):
    checkpoint = str(whole[0] / f'iter_{STEPS}.pth')
    given = [CONFIG, checkpoint, '--launcher', 'pytorch', *changes(street), '--work-dir']
    runs = tmp_path / 'two', tmp_path / 'killed'
    reports = [tmp_path / f'report{count}' for count in (2, 1)]
    config, weights, _, _, *more = given
    command = ['bash', 'tools/dist_test.sh', config, weights, '2', *more, str(runs[0])]
    command += ['--report', str(reports[0])]
    own = dict(PYTHON=sys.executable, PORT=str(free_port()))
    done = finished(command, environment(tmp_path / 'trace', ()) | own)
    assert done.code == 0 and not done.orphans
    assert ended(runs[0] / 'test', capsys) == (0, '')
    options = dict(cfg_options=changes(street)[1:], report=reports[1])
    alone = evaluate(CONFIG, checkpoint, work_dir=tmp_path / 'one', **options)
    assert [*reported_files(reports[0])] == [*reported_files(reports[1])]
    record = json.loads((runs[0] / f'metrics/iter_{STEPS}.json').read_text())
    assert record['metrics'] == {
        k: None if v != v else pytest.approx(v, abs=1e-9) for k, v in alone.items()
    }
    done = launched([*given, str(runs[1])], tmp_path / 'trace', [(1, 1, 'kill')], tool='test')
    assert done.code == 1 and not done.orphans
    assert ended(runs[1] / 'test', capsys) == (
        8,
        'error: rank 1 was killed (SIGKILL; probably out of memory). Run again.\n',
    )


def test_a_rank_without_an_object_or_a_label():
    """Every family learns on, in step: no parameter is without a gradient, as DDP would want."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2']
    command += ['--master-addr', '127.0.0.1', '--master-port', str(free_port())]
    run = finished(
        [*command, 'tests/engine/empty_truth.py'], {**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    assert run.code == 0 and not run.orphans
    assert len(set(re.findall(r'learnt: (\w+)', run.said))) == 9


@pytest.mark.parametrize(
    'arguments, own, group',
    [
        (['train', 'a.py', '2', '--seed', '3'], {}, '1 0 2 127.0.0.1 29500'),
        (
            ['test', 'a.py', 'a b.pth', '8', '--tta'],
            dict(NNODES='4', NODE_RANK='3', MASTER_ADDR='node1', PORT='7'),
            '4 3 8 node1 7',
        ),
    ],
)
def test_the_scripts_start_what_mmdetections_start(arguments, own, group, tmp_path):
    """With the same arguments and variables."""
    stub = tmp_path / 'python'
    stub.write_text('#!/bin/sh\nfor a; do echo "$a"; done\n')
    stub.chmod(0o755)
    name, *given = arguments
    command = ['bash', f'tools/dist_{name}.sh']
    env = {**os.environ, 'PYTHON': str(stub), **own}
    done = subprocess.run([*command, *given], cwd=ROOT, env=env, capture_output=True, text=True)
    count = 1 if name == 'train' else 2
    keys = ['--nnodes', '--node-rank', '--nproc-per-node', '--master-addr', '--master-port']
    settings = [text for pair in zip(keys, group.split(), strict=True) for text in pair]
    assert done.stdout.splitlines() == [
        '-m', 'torch.distributed.run', *settings, f'tools/{name}.py', *given[:count],
        '--launcher', 'pytorch', *given[count + 1 :],
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and f'call it as: tools/dist_{name}.sh CONFIG ' in done.stderr


def test_a_parameter_without_a_gradient_is_named(tmp_path):
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.ModuleDict(dict(used=torch.nn.Linear(2, 2), idle=torch.nn.Linear(2, 2)))
        model.idle.bias.requires_grad_(False)
        model.forward = model.used.forward
        ddp = MMDistributedDataParallel(model, device_ids=None)
        ranks = DistributedRun(tmp_path)
        ranks.runner = SimpleNamespace(
            model=ddp, iter=1, guard=SimpleNamespace(signal_handler=SimpleNamespace(started=True))
        )
        named = pytest.raises(UsageError, match='^parameter idle.weight got no gradient in DDP')
        with named, ranks.report_exit():
            for _ in range(2):
                ddp(torch.ones(1, 2)).sum().backward()
        assert read_status(tmp_path)['code'] == 2
    finally:
        dist.destroy_process_group()


def test_the_first_word_counts_and_no_word_is_a_failure(tmp_path):
    assert exit_code_and_message(tmp_path / 'none')[0] == 8
    write_status(tmp_path, 1, 3, 'first', 7)
    write_status(tmp_path, 0, 8, 'second', 7)
    assert exit_code_and_message(tmp_path) == (3, 'first')
    assert [p.name for p in tmp_path.iterdir()] == ['exit_status.json']
    (tmp_path / 'exit_status.json').write_text('{"code": 300, "rank": 0, "message": ""}')
    assert exit_code_and_message(tmp_path)[0] == 8


@pytest.fixture(scope='module')
def namespaces():
    """Skip where no namespaces with a cable between can be made."""
    for name in 'unshare', 'nsenter', 'ip':
        if not shutil.which(name):
            pytest.skip(f'{name} is not installed')
    able = 'ip link add name one type veth peer name two'
    tried = subprocess.run([*two_nodes.OUTER, 'sh', '-c', able], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f'no network namespaces here: {tried.stderr.strip()}')


def test_a_machine_that_is_cut_off_and_comes_back(namespaces, whole, street, tmp_path, capsys):
    """The other names it and ends; both together then end as if there had been no cut."""
    work_dir, trace = tmp_path / 'run', tmp_path / 'trace'
    command = [*two_nodes.OUTER, sys.executable, 'tests/engine/two_nodes.py', str(trace)]
    env = environment(trace, [(1, 4, 'cut')])
    run = finished([*command, *arguments(street, work_dir)], env)
    assert run.code == 1 and not run.orphans
    assert ended(work_dir, capsys) == (
        8,
        f'error: no answer from rank 1 on mmattn-2 for {TIMEOUT} s at iteration 4; last good checkpoint: '
        'iter_2. Run again with --resume.\n',
    )
    run = finished([*command, *arguments(street, work_dir, '--resume')], env)
    assert run.code == 0 and not run.orphans
    assert ended(work_dir, capsys) == (0, '')
    assert steps(trace) == steps(whole[1])
    assert same(state(work_dir), state(whole[0]))
    with open('/proc/net/dev', encoding='utf-8') as file:
        assert 'cable' not in file.read()  # nothing was made outside
