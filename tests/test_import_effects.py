"""Importing mmattn changes nothing in the process: what reads files of strangers is an `install()`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import atexit, gc, importlib, logging, os, pkgutil, signal, sys, threading, warnings

import cv2, matplotlib, mmcv, mmengine, pycocotools.coco, torch, yaml
import matplotlib.pyplot, mmdet.datasets, mmdet.evaluation, mmdet.models, mmdet.visualization
import mmseg.datasets, mmseg.evaluation, mmseg.models, mmseg.visualization
import mmengine.hub, mmengine.runner, mmengine.visualization, mmengine.config
from mmengine.fileio.io import backends, file_handlers
from mmengine.runner.checkpoint import CheckpointLoader

OTHERS = 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'torch', 'yaml', 'json', 'pickle'


def named(value):
    return f'{type(value).__name__} {getattr(value, "__qualname__", "")} {id(value)}'


def attributes():
    # what modules and classes of other packages hold: functions, classes, methods
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] not in OTHERS or module is None:
            continue
        for key, value in list(vars(module).items()):
            if callable(value) or key in ('open', 'load'):
                found[f'{name}.{key}'] = named(value)
            if isinstance(value, type) and value.__module__ == name:
                for inner, method in list(vars(value).items()):
                    if callable(method) or isinstance(method, staticmethod | classmethod):
                        found[f'{name}.{key}.{inner}'] = named(method)
    return found


def state():
    loggers = [logging.root, *(logging.getLogger(n) for n in list(logging.root.manager.loggerDict))]
    with_handlers = {logger.name: list(map(named, logger.handlers)) for logger in loggers if logger.handlers}
    return dict(
        handlers={suffix: named(handler) for suffix, handler in file_handlers.items()},
        backends={name: named(backend) for name, backend in backends.items()},
        schemes={prefix: named(load) for prefix, load in CheckpointLoader._schemes.items()},
        coco=sorted(vars(pycocotools.coco)),
        yaml={cls.__name__: (named(cls.yaml_constructors), len(cls.yaml_constructors),
                             len(getattr(cls, 'yaml_representers', ())))
              for cls in (yaml.Loader, yaml.SafeLoader, yaml.FullLoader, yaml.UnsafeLoader)}
        | {cls.__name__: len(cls.yaml_representers) for cls in (yaml.Dumper, yaml.SafeDumper)},
        signals={number: named(signal.getsignal(number)) for number in signal.valid_signals()},
        threads=[thread.name for thread in threading.enumerate()],
        warnings=list(warnings.filters), showwarning=named(warnings.showwarning),
        logging=with_handlers,
        environment=dict(os.environ), folder=os.getcwd(), path=list(sys.path), umask=os.umask(os.umask(0)),
        hooks=[named(sys.excepthook), named(sys.displayhook), named(threading.excepthook)],
        recursion=sys.getrecursionlimit(), gc=(gc.get_threshold(), gc.isenabled()),
        torch=(
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.initial_seed(),
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
            torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
            torch.multiprocessing.get_sharing_strategy(), torch.multiprocessing.get_start_method(True),
        ),
        opencv=(cv2.getNumThreads(), cv2.ocl.useOpenCL()),
        matplotlib=dict(matplotlib.rcParams),
        imread=mmcv.image.io.imread_backend,
        attributes=attributes(),
    )


def differences(old, new):
    old, new = (dict(values, **values.pop('attributes')) for values in (old, new))
    known = {key.rpartition('.')[0] for key in old}
    for key in new:
        if old.get(key) != new[key] and (key in old or key.rpartition('.')[0] in known):
            yield f'{key}: {old.get(key)} -> {new[key]}'
"""


def run(script: str) -> str:
    """What a script prints in a process of its own."""
    process = subprocess.run(
        [sys.executable, '-c', SCRIPT + script], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_imports_change_nothing():
    text = run("""
registered, at_exit = [], []
os.register_at_fork = lambda **calls: registered.append(calls)
atexit.register = lambda function, *args, **kwargs: at_exit.append(function) or function
before = state()
import mmattn
modules = [module.name for module in pkgutil.walk_packages(mmattn.__path__, 'mmattn.')]
for name in modules:
    importlib.import_module(name)
print(*differences(before, state()), sep='\\n')
print(*(f'at fork: {calls}' for calls in registered), sep='\\n')
print(*(f'at exit: {f}' for f in at_exit if f.__module__.split('.')[0] == 'mmattn'), sep='\\n')
print(len(modules), 'modules')
""")
    lines = [line for line in text.splitlines() if line and 'OneDL' not in line]
    assert len(lines) == 1 and int(lines[0].split()[0]) > 100, text


def test_what_install_changes():
    text = run("""
import json
from mmattn.config import safe_files
before = state()
safe_files.install()
print(json.dumps([line.split(':')[0] for line in differences(before, state())]))
print([type(file_handlers[name]).__module__ for name in ('yaml', 'yml', 'pkl', 'pickle')])
print({load.__module__ for load in CheckpointLoader._schemes.values()})
print(pycocotools.coco.open.keywords)
""")
    assert text.splitlines()[-4:] == [
        '["handlers", "schemes", "coco", "pycocotools.coco.open"]',
        str(['mmattn.config.safe_files'] * 4),
        "{'mmattn.checkpoint.read'}",
        "{'encoding': 'utf-8-sig'}",
    ]
