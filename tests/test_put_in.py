"""The pages of docs/put_in for MMDetection and MMSegmentation: their config trains, their code runs.

Those of other libraries run in `make test-libraries`, that of plain torch in tests/core.
"""

import re
import shutil
from pathlib import Path

import pytest
from mmengine.registry import MODELS, init_default_scope

from mmattn.blocks.base import registered_blocks
from mmattn.cli.main import main
from mmattn.config.load import load_config
from mmattn.plugins import named_plugins
from tests.conftest import ROOT
from tests.documents import code_blocks, commands, messages
from tests.libraries.checks import run_page

FOLDER = ROOT / 'docs' / 'put_in'
PAGES = {path.stem: path.read_text(encoding='utf-8') for path in sorted(FOLDER.glob('*.md'))}
LIBRARIES = ('torchvision', 'timm', 'smp', 'ultralytics', 'transformers')
# weights that would be downloaded, images of 128x64, and one step
SHORT = {
    'mmdetection': dict(
        data='street_masks',
        last='epoch_12',
        options=[
            'model.test_cfg.rpn.max_per_img=50', 'model.train_cfg.rpn_proposal.max_per_img=50',
            'model.backbone.init_cfg=None', 'train_cfg.max_epochs=1', 'param_scheduler=[]',
            'train_dataloader.batch_size=2', 'train_dataloader.dataset.pipeline.2.scale=128,64',
            'val_dataloader.dataset.pipeline.1.scale=128,64',
        ],
    ),
    'mmsegmentation': dict(
        data='street',
        last='iter_40000',
        options=[
            'model.pretrained=None', 'model.data_preprocessor.size=64,64',
            'train_dataloader.dataset.pipeline.3.crop_size=64,64',
            'train_dataloader.dataset.pipeline.2.scale=128,64',
            'train_dataloader.batch_size=2', 'train_cfg.max_iters=1', 'train_cfg.val_interval=1',
        ],
    ),
}  # fmt: skip


def write_configs(page):
    for block in code_blocks(PAGES[page], 'python'):
        if name := re.match(r'# (\w+\.py)\n', block):
            Path(name[1]).write_text(block, encoding='utf-8')


def test_there_is_a_page_for_each_library_and_the_index_names_all():
    assert set(PAGES) == {'index', 'mmdetection', 'mmsegmentation', 'plain_torch', *LIBRARIES}
    linked = set(re.findall(r'\]\((\w+)\.md\)', PAGES['index']))
    assert linked == set(PAGES) - {'index'}


@pytest.mark.parametrize('name', [*LIBRARIES, 'mmdetection', 'mmsegmentation', 'plain_torch'])
def test_every_page_has_the_same_parts(name):
    titles = re.findall(r'^## (.*)', PAGES[name], re.M)
    assert titles[0] == 'Six lines' and titles[-1] == 'What does not work, and what you see'
    parts = ' '.join(titles)
    assert all(part in parts for part in ('Positions', 'eights', 'Training')), titles
    assert len(messages(PAGES[name])) >= 3
    first = code_blocks(PAGES[name], 'python')[0]
    lines = [
        line for line in first.splitlines() if line and not line.startswith(('import', 'from', '#'))
    ]
    assert len(lines) <= 8, first


def test_the_index():
    names = {}
    exec(code_blocks(PAGES['index'], 'python')[0], names)
    assert {plugin['cfg']['type'] for plugin in names['plugins']} <= set(registered_blocks())


@pytest.mark.parametrize(
    'page, blocks', [pytest.param('mmdetection', 17, marks=pytest.mark.slow), ('mmsegmentation', 8)]
)
def test_the_page(page, blocks, street, tmp_path, monkeypatch, capsys):
    """Its config trains by its first command, a step of it, then its code runs."""
    monkeypatch.chdir(tmp_path)
    write_configs(page)
    short = SHORT[page]
    command = next(c for c in commands(PAGES[page]) if c[0] == 'train' and c[1].startswith('my_'))
    loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    options = [f'{name}.dataset.data_root={street}' for name in loaders]
    options += [f'{name}.num_workers=0' for name in loaders]
    options += [f'{name}.persistent_workers=False' for name in loaders]
    command += ['--data', short['data'], '--no-rehearsal', '--seed', '0']
    command = [word for word in command if not word.endswith('.pth') and word != '--init-from']
    assert main([*command, '--cfg-options', *options, *short['options']]) == 0
    name = Path(command[1]).stem
    work = Path('work_dirs', f'{name}_{short["data"]}')
    for suffix in '.pth', '.pth.json':  # as a whole training without --data writes it
        (saved,) = work.glob(f'*_1{suffix}')
        Path('work_dirs', name).mkdir(exist_ok=True)
        shutil.copy(saved, Path('work_dirs', name, short['last'] + suffix))
    names = run_page(page)
    assert len(list(named_plugins(names['predictor'].model))) == 16
    assert len(list(named_plugins(names['plain']))) == blocks
    assert 'torch.Size([1, 1, ' in capsys.readouterr().out


def test_the_head_of_the_page_builds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_configs('mmsegmentation')
    cfg = load_config('my_ccnet.py')
    cfg.model.pretrained = None
    init_default_scope('mmseg')
    head = MODELS.build(cfg.model).decode_head
    assert type(head).__module__.startswith('mmattn.') and head.recurrence == 2
