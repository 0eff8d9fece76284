"""Keys that mmengine's runner and its parts use of a config, and unused ones."""

import inspect
import re

import pytest
import torch
from mmengine.runner import Runner

from mmattn.config import check as config_module
from mmattn.config import runner_keys
from mmattn.config.check import check_config
from mmattn.config.load import load_config, parse_options
from mmattn.config.runner_keys import RUNNER_KEYS, read_from_config
from mmattn.engine.train import train
from mmattn.errors import UsageError
from tests.config.test_config import checked, others
from tests.conftest import ROOT, tiny_options

CONFIG = ROOT / 'configs/ccnet_r18_street.py'


def test_the_keys_are_those_of_the_source():
    assert read_from_config(Runner) >= {'compile', 'sync_bn', 'activation_checkpointing', 'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg'}  # fmt: skip
    assert not {'get', 'filename', 'dump', 'pretty_text', 'cfg'} & RUNNER_KEYS


def test_every_key_that_the_runner_reads_is_accepted():
    """The source is searched by patterns here, where the package reads its syntax tree."""
    source = inspect.getsource(inspect.getmodule(Runner))
    keys = set(re.findall(r"\bcfg(?:\.(?:get|pop|setdefault)\(|\[)\s*'(\w+)'", source))
    keys |= set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    assert len(keys) > 30 and keys <= RUNNER_KEYS
    assert RUNNER_KEYS - keys <= runner_keys._OTHER_KEYS  # and nothing is that nobody reads


@pytest.mark.parametrize(
    'name, where',
    [
        ('dataloader_cfg', 'train_dataloader'),
        ('env_cfg', 'env_cfg'),
        ('auto_scale_lr', 'auto_scale_lr'),
    ],
)
def test_every_key_that_the_runner_reads_of_a_part_is_accepted(name, where):
    source = inspect.getsource(inspect.getmodule(Runner))
    keys = set(re.findall(rf"\b{name}(?:\.(?:get|pop)\(|\[)\s*'(\w+)'", source))
    assert (
        keys
        >= dict(
            train_dataloader={'disable_subprocess_warning', 'num_batch_per_epoch', 'collate_fn'},
            env_cfg={'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
            auto_scale_lr={'enable', 'base_batch_size'},
        )[where]
    )
    for key in keys:
        cfg = load_config(CONFIG)
        part = cfg[where]
        part[key] = part.get(key, cfg.train_dataloader.get(key, False))
        check_config(cfg)
        part[f'{key}_'] = part.pop(key)
        with pytest.raises(UsageError, match=f'{where}.{key}_: .* mean {key}|has no {key}_'):
            check_config(cfg)


def test_a_class_says_which_keys_it_takes(tmp_path, monkeypatch):
    (tmp_path / 'readers_of_keys.py').write_text(
        'class Reader:\n    def run(self, cfg):\n'
        "        return cfg.get('one'), self.cfg.two, self.cfg['three'], cfg.pop('four'), cfg.dump\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import readers_of_keys

    assert read_from_config(readers_of_keys.Reader) == {'one', 'two', 'three', 'four'}


@pytest.fixture(scope='module')
def plain(street, tmp_path_factory):
    return weights(street, tmp_path_factory.mktemp('plain'))


def weights(street, folder, **options) -> dict:
    options = {**tiny_options(street), 'train_cfg.max_iters': 1, 'randomness.seed': 3, **options}
    run = train(CONFIG, work_dir=folder, cfg_options=options, validate=False)
    return torch.load(run / 'iter_1.pth', weights_only=True)['state_dict']


@pytest.mark.parametrize(
    'key, value',
    [
        ('compile', dict(backend='eager')),
        ('compile', False),
        ('sync_bn', 'torch'),
        ('activation_checkpointing', ['backbone.layer1', 'backbone.layer2']),
        ('efficient_conv_bn_eval', ['backbone']),
        ('runner_type', 'Runner'),
    ],
)
def test_a_run_with_the_key_learns_what_one_without_learns(key, value, plain, street, tmp_path):
    found = weights(street, tmp_path, **{key: value})
    assert list(found) == list(plain)
    for name, tensor in plain.items():
        if key == 'activation_checkpointing' and ('running' in name or 'tracked' in name):
            continue  # BN sees the batch once more when it is computed anew
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(runner_type='FlexibleRunner'),
            "runner_type='FlexibleRunner': .*resume exactly.*Leave",
        ),
        (dict(sync_bn='yes'), "sync_bn='yes': allowed are 'torch' and 'mmcv'"),
        (dict(channels_last='yes'), "channels_last='yes': allowed are True and False"),
        (dict(compile='max'), "compile='max': allowed are True, False"),
        (dict(compile=dict(bakend='eager')), 'compile.bakend: .* backend'),
        (dict(compile=dict(backend='egaer')), "compile.backend='egaer': torch.compile has .*eager"),
    ],
)
def test_a_value_that_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        check_config(load_config(CONFIG, options))


@pytest.mark.parametrize(
    'key, value, message',
    [
        (
            'activation_checkpointing',
            ['backbone.layer9'],
            "no module 'backbone.layer9'. It has .*backbone",
        ),
        ('efficient_conv_bn_eval', ['decode_head'], 'holds the block decode_head|cannot be traced'),
        ('efficient_conv_bn_eval', ['backbone'], 'holds the block backbone.layer1.0.se'),
    ],
)
def test_modules_that_cannot_be_taken_are_refused(key, value, message, street, tmp_path):
    options = {**tiny_options(street), key: value}
    with pytest.raises(UsageError, match=message):
        train(CONFIG, work_dir=tmp_path, cfg_options=options, validate=False, attention='se')


def test_without_a_compiler_compile_says_what_to_write(monkeypatch):
    monkeypatch.setattr(runner_keys, 'has_cpp_compiler', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(
        UsageError, match=r"needs a C\+\+ compiler.*write compile=dict\(backend='eager'\)"
    ):
        checked(['compile=True'])
    checked(['compile.backend=eager'])  # what it says helps


@pytest.mark.parametrize(
    'option, message',
    [
        ('model.backbone.output_stride=16', None),  # goes to timm
        ('model.backbone.drop_path_rate=0.1', None),
        ('model.decode_head.out_stride=16', 'has no out_stride'),
    ],
)
def test_what_goes_to_another_library_is_not_ours_to_refuse(option, message):
    options = parse_options([option])
    cfg = load_config(CONFIG)
    cfg.model.backbone = dict(type='mmseg.TIMMBackbone', model_name='resnet18', pretrained=False)
    cfg.merge_from_dict(options)
    if message:
        with pytest.raises(UsageError, match=message):
            check_config(cfg)
    else:
        check_config(cfg)


def test_initialisers_read_override():
    init = dict(type='Normal', std=0.01, override=dict(name='conv_seg', type='Constant', val=1))
    check_config(load_config(CONFIG, {'model.decode_head.init_cfg': init}))
    init['overide'] = init.pop('override')
    with pytest.raises(UsageError, match='Normal has no overide. Did you mean override'):
        check_config(load_config(CONFIG, {'model.decode_head.init_cfg': init}))


# ---- keys that come with a package -------------------------------------------------------------
@pytest.mark.parametrize(
    'path, key',
    [
        ('mmdet ssd/ssd300_coco.py', 'cudnn_benchmark'),
        ('mmdet solov2/solov2-light_r18_fpn_ms-3x_coco.py', 'train_cfg.by_epoch'),
        ('mmseg bisenetv2/bisenetv2_fcn_4xb4-ohem-160k_cityscapes-1024x1024.py', 'models'),
        ('mmseg dnlnet/dnl_r50-d8_4xb2-80k_cityscapes-769x769.py', 'wd_mult'),
    ],
)
def test_what_comes_with_a_package_is_named_and_no_error(path, key, tmp_path, monkeypatch):
    source, warnings, text = others(path), [], ''
    monkeypatch.setattr(config_module, 'warn', warnings.append)
    for config in source, tmp_path / 'own.py', tmp_path / 'dumped.py':
        if config.stem == 'own':
            config.write_text(f"_base_ = '{source}'\n")
        if config.stem == 'dumped':  # what a run of ours writes down
            config.write_text(text)
        cfg = load_config(config)
        check_config(cfg)
        text = cfg.pretty_text
        assert config.stem == 'dumped' or any(
            key in text and 'nothing uses' in text for text in warnings
        )
        warnings.clear()
    (tmp_path / 'own.py').write_text(f"_base_ = '{source}'\nmodel = dict(tset_cfg=dict())\n")
    with pytest.raises(UsageError, match='has no tset_cfg. Did you mean test_cfg'):
        check_config(load_config(tmp_path / 'own.py'))


def test_a_copy_of_a_clone_is_the_packages_too(tmp_path):
    source = others('mmdet ssd/ssd300_coco.py')
    home = source.parents[1]
    for file in home.glob('_base_/**/*.py'):
        twin = tmp_path / 'mmdetection/configs' / file.relative_to(home)
        twin.parent.mkdir(parents=True, exist_ok=True)
        twin.write_bytes(file.read_bytes())
    twin = tmp_path / 'mmdetection/configs/ssd/ssd300_coco.py'
    twin.parent.mkdir()
    twin.write_bytes(source.read_bytes())
    check_config(load_config(twin))
    file = next(f for f in twin.parents[1].rglob('*.py') if 'cudnn_benchmark' in f.read_text())
    file.write_text(file.read_text().replace('cudnn_benchmark', 'cudnn_bnchmark'))
    with pytest.raises(UsageError, match='cudnn_bnchmark: .* has no cudnn_bnchmark'):
        check_config(load_config(twin))


@pytest.mark.parametrize('name', ['CLASSES', 'PALETTE', 'Classes'])
def test_metainfo_of_mmdet_2_is_refused_and_the_remedy_helps(name):
    meta = {name: ('red',) * 19}
    with pytest.raises(UsageError, match=f'metainfo.{name}: .*metainfo=dict\\({name.lower()}'):
        check_config(load_config(CONFIG, {'train_dataloader.dataset.metainfo': meta}))
    meta = {name.lower(): meta[name]}
    check_config(load_config(CONFIG, {'train_dataloader.dataset.metainfo': meta}))


@pytest.mark.parametrize('name, value', [('data_root', "'/data/mine'"), ('train_pipeline', '[]')])
def test_a_variable_set_again_names_what_to_set_and_that_works(name, value, tmp_path):
    base = tmp_path / 'base.py'
    stock = load_config(CONFIG)
    pipeline = stock.train_dataloader.dataset.to_dict()['pipeline']
    text = CONFIG.read_text().replace("'_base_/", f"'{ROOT}/configs/_base_/")
    base.write_text(
        text + f"\ndata_root = 'data'\ntrain_pipeline = {pipeline!r}\n"
        'data = dict(data_root=data_root)\n'
        'train_dataloader = dict(dataset=dict(pipeline=train_pipeline, **data))\n'
        'val_dataloader = dict(dataset=data)\ntest_dataloader = val_dataloader\n'
    )
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = 'base.py'\n{name} = {value}\n")
    with pytest.raises(
        UsageError, match=f'{name} has no effect: it is a variable of .*base.py'
    ) as error:
        check_config(load_config(leaf))
    keys = str(error.value).partition('Set what uses it: ')[2].rstrip('.').split(', ')
    expected = [f'{x}_dataloader.dataset.data_root' for x in ('train', 'val', 'test')]
    assert sorted(keys) == sorted(
        expected if name == 'data_root' else ['train_dataloader.dataset.pipeline']
    )
    cfg = load_config(base, {key: eval(value) for key in keys})
    check_config(cfg)
    for key in keys:
        *path, last = key.split('.')
        part = cfg
        for step in path:
            part = part[step]
        assert part[last] == eval(value)
