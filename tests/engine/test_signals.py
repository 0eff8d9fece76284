"""A signal ends a training after its step, with a checkpoint that resumes exactly."""

import contextlib
import multiprocessing
import os
import signal
import time

import pytest

from mmattn.checkpoint.find import last_good
from mmattn.checkpoint.manifest import facts_of
from mmattn.engine.signals import handle_signals
from mmattn.errors import DistributedError, Exit, Stopped, Terminated, explain
from mmattn.testing.kill import compare_records
from tests.engine.killing import CONFIG, At, once, record

OPTIONS = {
    'train_cfg.max_iters': 4,
    'train_cfg.val_interval': 3,
    'default_hooks.checkpoint.interval': 4,
}


def send(number):
    return lambda runner: os.kill(os.getpid(), number)


def test_stopped_in_a_step_in_a_validation_and_gone_on_with(tiny, tmp_path):
    options = tiny | OPTIONS | {'custom_hooks': [dict(type='EMAHook', momentum=0.1)]}
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    assert once(whole, options)
    workers = options | {'train_dataloader.num_workers': 1}
    with pytest.raises(Stopped, match='stopped by SIGTERM at iteration 2; saved iter_2. Run again'):
        once(stopped, workers, At('before_train_iter', 2, send(signal.SIGTERM)))
    assert facts_of(last_good(stopped))['iter'] == 2
    with pytest.raises(Stopped, match='stopped by SIGUSR1 at iteration 3; saved iter_3'):
        once(
            stopped, options, At('before_val_iter', 3, send(signal.SIGUSR1)), resume='latest'
        )  # fmt: skip
    assert not (stopped / 'iter_2.pth').exists()  # it was for the stop alone
    assert once(stopped, options, resume='latest')
    compare_records(record(stopped), record(whole), 'stopped')
    assert [p.name for p in stopped.glob('iter_*.pth')] == ['iter_4.pth']


@pytest.mark.parametrize('stage', ['before_run', 'before_train_epoch'])
def test_before_the_first_step_there_is_nothing_to_save(tiny, tmp_path, stage):
    with pytest.raises(Terminated, match='stopped by SIGTERM before the first step, nothing to'):
        once(tmp_path / 'run', tiny, At(stage, 0, send(signal.SIGTERM)))
    assert not list((tmp_path / 'run').glob('*.pth'))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_test_ends_at_once(tiny, tmp_path, monkeypatch):
    """With its code, which a distributed one also reports to its other processes."""
    from mmattn.engine import test as module

    monkeypatch.setattr(module, 'run_loop', lambda job: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Terminated, match=r'^stopped by SIGTERM\.$'):
        module.test(CONFIG, None, work_dir=tmp_path / 'run', cfg_options=tiny)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize('training', [True, False])
def test_a_signal_passes_the_except_clauses_of_libraries(training):
    """As that of mmengine around its formatting of a config, which reported a syntax error."""
    with pytest.raises(Terminated, match='^stopped by SIGTERM'), handle_signals(training):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:
            raise SyntaxError('check the syntax') from error


def test_a_failure_of_another_process_passes_them_too():
    def check():
        raise DistributedError('rank 1 was killed.')

    with pytest.raises(DistributedError, match='^rank 1 was killed'), handle_signals() as handler:
        handler.check_peers, handler.started = check, True
        with contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize('training', [True, False])
def test_a_pool_ends_its_workers(training):
    """As mmdet's VOCMetric does after a validation: one that lives on would be waited for."""
    with handle_signals(training):
        worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
        worker.start()
        worker.terminate()
        worker.join(10)
        ended = worker.exitcode
        worker.kill()
    assert ended == -signal.SIGTERM


def test_a_pool_that_waits_for_a_task_ends():
    """Each round a worker is about to wait for a lock, where a handler in Python would be lost."""
    with handle_signals(training=False):
        for _ in range(30):
            pool = multiprocessing.get_context('fork').Pool(4)
            pool.map(abs, range(4))
            pool.terminate()


def test_ctrl_c_once_ends_in_order_and_twice_at_once():
    before = signal.getsignal(signal.SIGINT)
    with handle_signals() as handler:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # nothing has begun
        handler.received, handler.started = None, True
        signal.raise_signal(signal.SIGINT)
        assert handler.received == 'SIGINT'
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_within_a_save_breaks_nothing(tmp_path, monkeypatch):
    from mmattn.checkpoint import write
    from mmattn.checkpoint.find import find_checkpoint
    from tests.checkpoint.test_checkpoints_survive import save, value

    save(tmp_path, 1)

    def interrupted(source, target, real=os.replace):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        real(source, target)

    monkeypatch.setattr(write.os, 'replace', interrupted)
    with handle_signals() as handler:
        handler.started = True
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    monkeypatch.undo()
    assert value(find_checkpoint(tmp_path)) == 1 and not list(tmp_path.glob('*.part'))


def test_codes():
    assert explain(Stopped('x'))[0] == 75 and explain(Terminated('x'))[0] == 143
    assert explain(KeyboardInterrupt())[0] == 130 and Exit.DISTRIBUTED == 8
