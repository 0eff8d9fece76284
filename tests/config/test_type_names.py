"""Parents of packages and configs whose types are classes say what their plain twins say."""

import functools

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmattn.config.check import check_config
from mmattn.config.load import load_config
from mmattn.config.registered import find_class
from mmattn.config.type_names import type_name
from mmattn.engine.network import build_network
from mmattn.engine.test import test as evaluate
from mmattn.engine.train import train
from mmattn.errors import UsageError
from mmattn.plugins import report
from tests.config.test_config import others
from tests.conftest import ROOT, tiny_options

CONFIG = ROOT / 'configs/ccnet_r18_street.py'
RETINA = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'


def checked(path) -> Config:
    cfg = load_config(path)
    check_config(cfg)
    return cfg


def as_classes(cfg: Config) -> str:
    """The text of a config with imported classes in place of types."""
    scope, imports, named = cfg.default_scope, {}, 'type'

    def text(value, key='') -> str:
        if isinstance(value, dict):
            return '{' + ', '.join(f'{k!r}: {text(v, k)}' for k, v in value.items()) + '}'
        if isinstance(value, list | tuple):
            inner = ''.join(f'{text(v)}, ' for v in value)
            return f'[{inner}]' if isinstance(value, list) else f'({inner})'
        cls = find_class(value, scope) if key == named and isinstance(value, str) else None
        if cls is None or not hasattr(cls, '__name__'):
            return repr(value)
        name = f'{cls.__name__}_{len(imports)}'
        imports.setdefault(cls, f'from {cls.__module__} import {cls.__name__} as {name}')
        return imports[cls].split()[-1]

    lines = [f'{key} = {text(value, key)}' for key, value in cfg.to_dict().items()]
    return '\n'.join([*imports.values(), *lines]) + '\n'


@pytest.mark.parametrize(
    'name', ['ccnet_r18_street', 'mask_rcnn_r18_dsb2018', 'faster_rcnn_r101_bam_coco', 'ann_r50_cityscapes']
)  # fmt: skip
def test_a_config_of_classes_says_what_the_same_in_text_says(name, tmp_path):
    cfg = checked(ROOT / 'configs' / f'{name}.py')
    (tmp_path / 'lazy.py').write_text(as_classes(cfg))
    (tmp_path / 'child.py').write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .lazy import *\n'
        'model.update(dict(init_cfg=None))\n'
    )
    assert 'import CCHead as' in as_classes(cfg) or name != 'ccnet_r18_street'
    lazy, child = checked(tmp_path / 'lazy.py'), checked(tmp_path / 'child.py')
    expected = cfg.to_dict()
    assert {k: v for k, v in lazy.to_dict().items() if k in expected} == expected
    assert child.model.pop('init_cfg', 0) is None and child.model.to_dict() == expected['model']
    (tmp_path / 'dumped.py').write_text(child.pretty_text)  # as a run writes it
    assert checked(tmp_path / 'dumped.py').to_dict() == child.to_dict()


@pytest.mark.parametrize(
    'target, scope, name',
    [
        ('mmdet.models.ResNet', 'mmdet', 'ResNet'),
        ('mmdet.models.ResNet', 'mmseg', 'mmdet.ResNet'),
        ('mmseg.models.ResNet', 'mmengine', 'mmseg.ResNet'),
        ('mmcv.transforms.LoadAnnotations', 'mmseg', 'mmcv.transforms.loading.LoadAnnotations'),
        ('mmcv.transforms.LoadImageFromFile', 'mmseg', 'LoadImageFromFile'),
        ('mmattn.blocks.CBAM', 'mmdet', 'mmattn.CBAM'),
        ('torch.nn.BatchNorm2d', 'mmdet', 'BN'),
        ('torch.nn.ReLU', 'mmseg', 'ReLU'),
        ('torch.optim.SGD', 'mmdet', 'SGD'),
        ('torch.nn.functional.relu', 'mmdet', 'torch.nn.functional.relu'),
    ],
)
def test_a_class_has_the_name_by_which_its_scope_finds_it(target, scope, name):
    module, _, own = target.rpartition('.')
    cls = getattr(__import__(module, fromlist=[own]), own)
    if name.startswith('mmcv.') and type_name(cls, scope).startswith('mm'):
        name = type_name(cls, scope)
    assert type_name(cls, scope) == name
    assert find_class(name, scope) is cls


def test_a_class_that_no_name_leads_to_is_refused():
    class Own(nn.Conv2d):
        pass

    assert type_name(Own, 'mmdet') is None
    with pytest.raises(UsageError, match='model.backbone.type is .*Own.*top of a module'):
        load_config(CONFIG, {'model.backbone.type': Own})
    partial = functools.partial(nn.Conv2d, bias=False)
    assert type_name(partial, 'mmdet') is None


def test_imports_that_are_not_there_are_named(tmp_path):
    text = 'from mmdet.models import RetinaNett\nmodel = dict(type=RetinaNett)\n'
    (tmp_path / 'a.py').write_text(text)
    with pytest.raises(UsageError, match='a.py cannot be read: Failed to import RetinaNett'):
        load_config(tmp_path / 'a.py')
    (tmp_path / 'b.py').write_text("custom_imports = dict(imports=['no_such_attention'])\n")
    with pytest.raises(UsageError, match="custom_imports.*No module named 'no_such_attention'"):
        load_config(tmp_path / 'b.py')


@pytest.mark.parametrize(
    'base',
    [
        repr(RETINA),
        f'[{RETINA!r}]',
        "'./' + 'own.py'",
        "['{{ fileDirname }}/own.py']",
    ],
)
def test_parents_are_found_as_mmengine_finds_them(base, tmp_path):
    (tmp_path / 'own.py').write_text(f'_base_ = {RETINA!r}\n')
    (tmp_path / 'a.py').write_text(
        f'_base_ = {base}\nmodel = dict(bbox_head=dict(stacked_convs=1))\n'
    )
    cfg, stock = checked(tmp_path / 'a.py'), Config.fromfile(tmp_path / 'a.py')
    assert cfg.model.to_dict() == stock.model.to_dict()
    assert cfg.model.bbox_head.stacked_convs == 1 and 'data_root' not in cfg
    model, cfg = build_network(tmp_path / 'a.py', attention='se')
    assert cfg.model.type == 'mmattn.RetinaNet'
    assert [row.type for row in report(model, (64, 64)).rows] == ['SE'] * 8


def test_parents_of_mmseg_are_found_whatever_its_package_is_called(tmp_path):
    name = 'ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
    (tmp_path / 'a.py').write_text(f"_base_ = 'mmseg::{name}'\n")
    cfg, stock = (
        checked(tmp_path / 'a.py').to_dict(),
        load_config(others(f'mmseg {name}')).to_dict(),
    )
    assert cfg['model'].pop('_scope_') == 'mmseg' and cfg['model'] == stock['model']
    for parent, package_or_path in (
        ('mmseg::no/such.py', 'no/such.py'),
        ('nobody::a/b.py', 'nobody'),
    ):
        (tmp_path / 'b.py').write_text(f"_base_ = '{parent}'\n")
        with pytest.raises(UsageError, match=f'b.py cannot be read: .*{package_or_path}'):
            load_config(tmp_path / 'b.py')


def test_parents_of_another_package_than_the_scope(tmp_path):
    text = f"_base_ = {RETINA!r}\ndefault_scope = 'mmseg'\n"
    (tmp_path / 'a.py').write_text(text)
    assert checked(tmp_path / 'a.py').model._scope_ == 'mmdet'
    text += 'model = dict(bbox_head=dict(num_clases=2))\n'
    (tmp_path / 'a.py').write_text(text)
    with pytest.raises(UsageError, match='RetinaHead has no num_clases. Did you mean num_classes'):
        checked(tmp_path / 'a.py')


def test_a_detector_of_ones_own_takes_attention(tmp_path, monkeypatch):
    """Registered by custom_imports with mmdet; or only imported by a config with classes."""
    (tmp_path / 'own_net_of_mine.py').write_text(
        'from mmdet.models import RetinaNet as Stock\nfrom mmdet.registry import MODELS\n\n\n'
        '@MODELS.register_module()\nclass MyRetina(Stock):\n    mine = 1\n\n\n'
        'class RetinaNet(Stock):\n    mine = 2\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'a.py').write_text(
        f"_base_ = {RETINA!r}\ncustom_imports = dict(imports=['own_net_of_mine'])\n"
        "model = dict(type='MyRetina')\n"
    )
    model, _ = build_network(tmp_path / 'a.py', attention='se')
    assert model.mine == 1 and len(report(model, (64, 64)).rows) == 8
    stock = Config.fromfile(tmp_path / 'a.py')
    stock.model.type = 'own_net_of_mine.RetinaNet'
    (tmp_path / 'b.py').write_text(stock.pretty_text)
    model, cfg = build_network(tmp_path / 'b.py', attention='se')
    assert model.mine == 2 and len(report(model, (64, 64)).rows) == 8
    assert cfg.model.type != 'mmattn.RetinaNet'  # which is not that class


def test_a_run_of_classes_goes_on_from_what_it_wrote(street, tmp_path):
    """Two steps from a child with read_base() give the weights that the text config gives."""
    options = {**tiny_options(street), 'train_cfg.max_iters': 2, 'randomness.seed': 3}
    cfg = load_config(CONFIG, options)
    check_config(cfg)
    plain = train(CONFIG, work_dir=tmp_path / 'plain', cfg_options=options, validate=False)
    (tmp_path / 'lazy.py').write_text(as_classes(cfg))
    (tmp_path / 'child.py').write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .lazy import *\n'
    )
    lazy = train(tmp_path / 'child.py', work_dir=tmp_path / 'lazy', validate=False)
    states = [
        torch.load(run / 'iter_2.pth', weights_only=True)['state_dict'] for run in (plain, lazy)
    ]
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))
    dumped = lazy / 'child.py'
    found = evaluate(dumped, lazy / 'iter_2.pth', work_dir=tmp_path / 'test')
    same = evaluate(CONFIG, plain / 'iter_2.pth', work_dir=tmp_path / 'test', cfg_options=options)
    assert found == pytest.approx(same, rel=0, abs=0, nan_ok=True)
    train(dumped, work_dir=lazy, resume='latest', validate=False)  # it changed nothing


def test_a_config_that_the_stock_tools_wrote_down_is_read(tmp_path):
    """It holds the variables of all its parents, which nothing uses any more."""
    stock = Config.fromfile(others('mmdet retinanet/retinanet_r18_fpn_1x_coco.py'))
    assert 'data_root' in stock and 'train_pipeline' in stock
    stock.dump(tmp_path / 'dumped.py')
    cfg = checked(tmp_path / 'dumped.py')
    assert cfg.model.to_dict() == stock.model.to_dict() and 'data_root' not in cfg
    text = '# mine\nzeta = 3\n' + (tmp_path / 'dumped.py').read_text()
    (tmp_path / 'own.py').write_text(text)  # as only a person writes it
    with pytest.raises(UsageError, match='nothing uses it'):
        checked(tmp_path / 'own.py')
