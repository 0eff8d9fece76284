"""Configs without a file: what a name stands for, and that nothing can tell it from a file."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mmattn.config.check import check_config
from mmattn.config.index import find_config, find_model, list_models
from mmattn.config.load import load_config
from mmattn.config.names import config_names, config_text, write_configs
from mmattn.engine.network import build_network
from mmattn.errors import UsageError
from mmattn.zoo import load_model
from tests.conftest import ROOT

CONFIGS = ROOT / 'configs'
ROWS = yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']
WITHOUT_FILE = [name for name in list_models() if not (CONFIGS / f'{name}.py').is_file()]


def written(folder, *parts: str, model: str = '', rest: str = ''):
    """A config as one would write it by hand, from files of `_base_`."""
    paths = [str(CONFIGS / '_base_' / f'{part}.py') for part in parts]
    path = folder / 'by_hand.py'
    path.write_text(f'_base_ = {paths}\nmodel = dict({model})\n{rest}')
    return Config.fromfile(path).to_dict()


TORCHVISION = 'https://download.pytorch.org/models/resnet101-63fe2227.pth'
DEEP_STEM = 'https://download.openmmlab.com/pretrain/third_party/resnet{}_v1c-{}.pth'
BY_HAND = {
    'faster_rcnn_r50_cbam_coco': dict(
        parts='models/faster_rcnn_r50 datasets/coco attention/cbam schedules/sgd_90k runtime_det',
        model='plugins=_base_.plugins',
    ),
    'mask_rcnn_r101_gc_r4_coco': dict(
        parts='models/mask_rcnn_r50 datasets/coco_masks attention/gc_r4 schedules/sgd_90k '
        'runtime_det',
        model='plugins=_base_.plugins, '
        f'backbone=dict(depth=101, init_cfg=dict(checkpoint={TORCHVISION!r}))',
    ),
    'retinanet_r101_coco': dict(
        parts='models/retinanet_r50 datasets/coco schedules/sgd_90k runtime_det',
        model=f'backbone=dict(depth=101, init_cfg=dict(checkpoint={TORCHVISION!r}))',
        rest='optim_wrapper = dict(optimizer=dict(lr=0.01))',
    ),
    'gcnet_r101_512x1024_80k_cityscapes': dict(
        parts='models/segmentor_r50_mmseg datasets/cityscapes_512x1024 schedules/sgd_80k runtime',
        model='data_preprocessor=dict(size=_base_.crop_size), '
        f'backbone=dict(depth=101, init_cfg=dict(checkpoint={DEEP_STEM.format(101, "e67eebb6")!r}'
        ')), decode_head=dict(type="mmattn.GCHead", ratio=1 / 4)',
    ),
    'ccnet_r50_cityscapes': dict(
        parts='models/segmentor_r50 datasets/cityscapes_ccnet schedules/sgd_60k runtime',
        model='data_preprocessor=dict(size=_base_.crop_size), '
        'decode_head=dict(type="mmattn.CCHead", recurrence=2, align_corners=True), '
        'auxiliary_head=dict(align_corners=True), '
        'test_cfg=dict(mode="slide", crop_size=_base_.crop_size, stride=(513, 513))',
    ),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_a_name_says_what_one_would_write_by_hand(name, tmp_path):
    hand = BY_HAND[name]
    values = written(
        tmp_path, *hand['parts'].split(), model=hand['model'], rest=hand.get('rest', '')
    )
    assert not (CONFIGS / f'{name}.py').exists()
    assert load_config(CONFIGS / f'{name}.py').to_dict() == values


def test_both_spellings_and_where_it_is_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    path = load_config('configs/mask_rcnn_r50_se_coco.py')
    name = load_config('mask_rcnn_r50_se_coco')
    assert path.filename == 'configs/mask_rcnn_r50_se_coco.py'
    assert name.filename == str(CONFIGS / 'mask_rcnn_r50_se_coco.py')
    assert path.to_dict() == name.to_dict()
    assert load_config('ccnet_r101_cityscapes').filename == str(
        CONFIGS / 'ccnet_r101_cityscapes.py'
    )
    # a network and a block that no row of the index has together
    assert find_model('retinanet_r50_bam_coco').config == CONFIGS / 'retinanet_r50_bam_coco.py'
    assert load_config('retinanet_r50_bam_coco').model.plugins[0].cfg.type == 'mmattn.BAM'
    assert 'retinanet_r50_bam_coco' not in list_models()


@pytest.mark.parametrize(
    'name, message',
    [
        ('faster_rcnn_r50_cbm_coco', 'model faster_rcnn_r50_cbm_coco: no such name in the index; .*cbam'),
        ('configs/faster_rcnn_r50_cbm_coco.py', r'does not exist. Did you mean faster_rcnn_r50_cbam_coco\?'),
        ('faster_rcnn_r50_cmpese_coco', 'no such name in the index'),  # no plugin: --attention cmpese
        ('faster_rcnn_r50_se_gc_coco', 'no such name in the index'),  # --attention se,gc
        ('faster_rcnn_r18_coco', 'no such name in the index'),  # other channels: no part
        ('faster_rcnn_r101_bccd', 'no such name in the index'),
        ('elsewhere/faster_rcnn_r50_cbam_coco.py', 'does not exist'),
    ],
)  # fmt: skip
def test_names_of_nothing(name, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match=message):
        load_config(name)


def test_a_file_counts_before_its_name(tmp_path):
    shutil.copytree(CONFIGS, tmp_path / 'configs')
    own = tmp_path / 'configs' / 'faster_rcnn_r50_cbam_coco.py'
    assert config_text(own)
    own.write_text('_base_ = "faster_rcnn_r50_coco.py"\nmodel = dict(train_cfg=None)\n')
    assert config_text(own) is None and load_config(own).model.train_cfg is None


def test_it_is_a_parent_like_a_file(tmp_path):
    parent, path = CONFIGS / 'faster_rcnn_r101_se_coco.py', tmp_path / 'own.py'
    path.write_text(f'_base_ = {str(parent)!r}\nval_cfg = dict(type="ValLoop")\n')
    cfg = load_config(path)
    assert cfg.model == load_config(parent).model and cfg.val_cfg.type == 'ValLoop'
    path.write_text(f'_base_ = {str(parent)!r}\nplugins = []\n')
    with pytest.raises(UsageError, match='faster_rcnn_r101_se_coco.py.*model.plugins'):
        check_config(load_config(path))
    data = tmp_path / 'own.json'
    data.write_text(f'{{"_base_": "{parent}"}}')
    assert load_config(data).model == cfg.model


def test_what_a_run_writes_down_is_read_again(tmp_path):
    cfg = load_config(CONFIGS / 'faster_rcnn_r50_sge_coco.py')
    check_config(cfg)
    cfg.dump(tmp_path / 'faster_rcnn_r50_sge_coco.py')
    again = load_config(tmp_path / 'faster_rcnn_r50_sge_coco.py')
    check_config(again)
    assert again.to_dict() == cfg.to_dict()


def test_every_row_of_the_metafile_has_a_config():
    assert len(ROWS) + 15 == len(list_models()) == 144
    assert {row['Name'] for row in ROWS} <= set(list_models())
    assert len(WITHOUT_FILE) == 144 - len(list(CONFIGS.glob('*.py')))


def test_no_file_says_only_what_its_name_says(tmp_path):
    """But those of measured results stay: their commands name them."""
    folder = tmp_path / 'configs'
    shutil.copytree(CONFIGS, folder)
    measured = {row['Name'] for row in ROWS if row.get('Results')}
    for path in sorted(folder.glob('*.py')):
        text = path.read_text()
        path.unlink()
        assert config_text(path) is None or path.stem in measured, path.name
        path.write_text(text)


def test_the_notes_name_the_parent_the_parts_and_the_source():
    text = config_text(CONFIGS / 'danet_r101_769x769_40k_cityscapes.py')
    assert text.startswith(
        '"""danet_r50_769x769_40k_cityscapes.py with _base_/backbones/r101.py.\n\n'
        'DANet on ResNet-101, Cityscapes'
    )
    assert 'mmsegmentation, danet_r101-d8_4xb2-40k_cityscapes-769x769.\n' in text
    assert 'r50' not in text.split('\n', 1)[1].split('"""')[0]


def test_the_module_needs_the_standard_library_alone():
    code = (
        'import sys; before = set(sys.modules)\n'
        f'sys.path.insert(0, {str(ROOT / "mmattn" / "config")!r}); import names\n'
        'print({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)'
    )
    process = subprocess.run(
        [sys.executable, '-I', '-S', '-c', code], capture_output=True, text=True
    )
    assert process.stdout.strip() == "{'names'}", process.stderr


def test_a_wheel_has_a_file_for_every_row(tmp_path):
    """OpenMIM opens the path that a row names, below the package's `.mim`."""
    code = 'import sys; sys.argv = ["setup.py", "-q", "build_py", "--build-lib", sys.argv[1]]\n'
    code += 'exec(open("setup.py").read())'
    process = subprocess.run(
        [sys.executable, '-c', f'__file__ = "setup.py"\n{code}', str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    home = tmp_path / 'mmattn' / '.mim'
    for row in ROWS:
        assert (home / row['Config']).is_file(), row['Config']
    assert config_names(home / 'configs') == list_models()
    for name in WITHOUT_FILE[::4]:
        stock = Config.fromfile(home / 'configs' / f'{name}.py')
        assert stock.to_dict() == load_config(CONFIGS / f'{name}.py').to_dict()


def test_files_are_written_once(tmp_path):
    shutil.copytree(CONFIGS, tmp_path / 'configs')
    write_configs(tmp_path / 'configs')
    texts = {path.name: path.read_text() for path in (tmp_path / 'configs').glob('*.py')}
    write_configs(tmp_path / 'configs')
    assert len(texts) == 144
    assert texts == {path.name: path.read_text() for path in (tmp_path / 'configs').glob('*.py')}
    assert re.search(
        r"'faster_rcnn_r50_coco.py', '_base_/attention/cbam.py'",
        texts['faster_rcnn_r50_cbam_coco.py'],
    )


def test_it_is_found_as_a_file_is():
    path = CONFIGS / 'mask_rcnn_r101_nl_coco.py'
    assert find_config(path) == path == find_config('mask_rcnn_r101_nl_coco')


def test_a_network_is_built_and_published_weights_are_looked_up_by_name():
    model, cfg = build_network('retinanet_r50_se_coco', {'model.backbone.init_cfg': None})
    assert sum(type(module).__name__ == 'SE' for module in model.modules()) == 16
    assert Path(cfg.filename).name == 'retinanet_r50_se_coco.py'
    with pytest.raises(UsageError, match='retinanet_r50_se_coco has no published weights'):
        load_model('retinanet_r50_se_coco')
    assert find_model('ccnet_r101_ade20k').weights  # of others, in the metafile


@pytest.mark.parametrize('config', ['retinanet_r50_se_coco', 'configs/retinanet_r50_se_coco.py'])
@pytest.mark.parametrize(
    'name, code', [('check_data', 3), ('train', 3), ('test', 4), ('publish', 4)]
)
def test_tools_take_names_and_paths(config, name, code, tmp_path, capsys, monkeypatch):
    """They come as far as the missing data or the missing checkpoint."""
    monkeypatch.chdir(ROOT)
    missing = dict(test=['none.pth'], publish=['none.pth']).get(name, [])
    options = ['--work-dir', str(tmp_path)] if name in ('train', 'test') else []
    main = import_module(f'mmattn.cli.{name}').main
    assert main([config, *missing, *options]) == code
    assert (
        'data/coco' in (text := ''.join(capsys.readouterr())) or 'none.pth does not exist' in text
    )
