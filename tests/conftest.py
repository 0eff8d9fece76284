"""Tiny data that several tests share, and a seed for everything random."""

import gc
import importlib
import os
import shutil
import sys

os.environ.setdefault('OMP_NUM_THREADS', '1')

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmattn.compat import is_installed

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / 'golden'


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def frozen_imports():
    """What tests have imported since the last time is frozen, too."""
    if len(sys.modules) > frozen_modules + 200:
        freeze()


@pytest.fixture(autouse=True)
def own_scope():
    """A scope that one test sets is not met by the next: which test comes next is chance."""
    if is_installed('mmengine'):
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


frozen_modules = 0


def freeze() -> None:
    """What is imported lives on: to look through it takes a second, which every data set asks for."""
    global frozen_modules
    gc.collect()
    gc.freeze()
    frozen_modules = len(sys.modules)


@pytest.fixture(scope='session', autouse=True)
def frozen():
    freeze()


@pytest.fixture(scope='session', autouse=True)
def no_yapf():
    """Configs are written as mmengine hands them to yapf, which takes half a second for each."""
    if is_installed('mmengine'):
        from mmengine.config import config
        from yapf.yapflib import yapf_api

        for module in config, yapf_api:  # either, by the release of mmengine
            module.FormatCode = lambda text, **style: (text, True)


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    """Verdicts on data sets go nowhere that outlives the tests."""
    from mmattn.datasets import check_cache

    check_cache.CACHE = tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='session')
def street(tmp_path_factory):
    """A `street` set of 4 + 2 + 2 scenes of 128x64; shared, so never changed."""
    from mmattn.datasets.street import generate

    root = tmp_path_factory.mktemp('data') / 'street'
    generate(root, images=dict(train=4, val=2, test=2), size=(128, 64))
    for used in ('mmattn.cli.train', 'mmdet.models', 'mmseg.models', 'matplotlib.pyplot', 'sympy'):
        importlib.import_module(used)
    freeze()
    return root


@pytest.fixture(scope='module')
def chromium():
    """A browser without a window; pages in it log their errors."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
    browser, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (browser and driver):
        pytest.skip('chromium and chromedriver are not installed')
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    flags = ('headless=new', 'no-sandbox', 'disable-dev-shm-usage', 'window-size=1200,1000')
    for flag in flags:
        options.add_argument(f'--{flag}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def tiny(street):
    """Options that make a street config run in seconds on the tiny set."""
    return tiny_options(street)


def tiny_options(root) -> dict:
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    options = {f'{name}.dataset.data_root': str(root) for name in loaders}
    options |= {f'{name}.num_workers': 0 for name in loaders}
    options |= {f'{name}.persistent_workers': False for name in loaders}
    return options | {
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 4,
        'train_cfg.val_interval': 2,
        'default_hooks.logger.interval': 1,
        'default_hooks.checkpoint.interval': 2,
    }


@pytest.fixture
def call(street, tmp_path, capfd):
    """Call a tool on a config and a checkpoint; returns its exit code and what it said."""
    from tests.test_tools import flags, tool

    photo = min((street / 'leftImg8bit/test').rglob('*.png'))

    def run(
        name,
        config='configs/ccnet_r18_street.py',
        checkpoint='none.pth',
        root=street,
        image=photo,
        options=(),
    ):
        work, out = ['--work-dir', tmp_path / 'work'], ['--out-dir', tmp_path / 'out']
        changes = [*flags(tiny_options(root)), *options]
        roots = [f'{x}_dataloader.dataset.data_root={root}' for x in ('train', 'val', 'test')]
        loaders = ['--cfg-options', *roots, *options]
        arguments = dict(
            train=[config, *work, *changes],
            resume=[config, *work, '--resume', checkpoint, *changes],
            init_from=[config, *work, '--init-from', checkpoint, *changes],
            test=[config, checkpoint, *work, *changes],
            infer=[config, checkpoint, image, *out, *changes],
            publish=[config, checkpoint, *out],
            view_attention=[config, checkpoint, image, *out, *changes],
            export=[config, checkpoint, '--format', 'torch', '--out', tmp_path / 'out.pt2',
                    '--images', image, *changes],
            cost=[config, '--no-latency', '--size', 32, 32, *loaders],
            ablate=[config, '--attention', 'se', '--seeds', 1, *out, *changes],
            check_data=[config, *loaders],
        )[name]  # fmt: skip
        main = tool('train' if name in ('resume', 'init_from') else name)
        code = main([str(a) for a in arguments])
        said = capfd.readouterr()
        assert 'Traceback' not in said.err, said.err
        text = said.out + said.err
        errors = [line for line in text.splitlines() if line.startswith('error: ')]
        return SimpleNamespace(code=code, text=text, errors=errors)

    return run


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Draw every parameter and running statistic at random, zero-initialised ones included."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn_like(value)
            value.copy_(noise.abs() + 0.5 if name.endswith('running_var') else 0.3 * noise)
    return module
