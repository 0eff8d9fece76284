"""`--cfg-options` reads a value as what the config has in its place."""

import shlex

import pytest
from mmengine.config import Config, DictAction

from mmattn.config.load import load_config, parse_options
from mmattn.config.options import command_line
from mmattn.engine.commands import option_flags
from mmattn.errors import UsageError
from tests.conftest import ROOT

CONFIG = """
default_scope = 'mmdet'
folder, nothing, flag, number, rate = 'data', None, True, 3, 0.1
words, sizes, names = ['mIoU'], (64, 64), ('a', 'b')
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
neck = dict(type='FPN', add_extra_convs='on_input')
data = dict(type='CocoDataset', data_root='data', data_prefix=dict(img='images'))
hooks = [dict(type='CheckpointHook', save_best='auto')]
"""
KEPT = [  # where the config has a string, what is typed is one
    ('folder=my set', 'my set'),
    ("folder='my set'", 'my set'),
    ('folder="my set"', 'my set'),
    ('folder=2021_07', '2021_07'),
    ("folder='2021_07'", '2021_07'),
    ('folder=01', '01'),
    ('folder=2021', '2021'),
    ('folder=1e3', '1e3'),
    ('folder=my,set', 'my,set'),
    ('folder=true', 'true'),
    ('folder=False', 'False'),
    ('folder=a=b', 'a=b'),
    ('folder=a(b', 'a(b'),
    ("folder=it's", "it's"),
    ('folder=', ''),
    ("folder='[a]'", '[a]'),
    ("folder='None'", 'None'),
    ('data.data_root=2021', '2021'),
    ('data.data_prefix.img=01', '01'),
    ('hooks.0.save_best=mIoU', 'mIoU'),
    ('names=[traffic light,stop sign]', ('traffic light', 'stop sign')),
    ('names=[1,2]', ('1', '2')),
    ('nothing=my set', 'my set'),
    ('nothing=2021_07', '2021_07'),
    ("nothing='1'", '1'),
    ('new.key=01', '01'),
    ("new.list=['a b','1',2]", ['a b', '1', 2]),
    ("new.list=['a,b',c]", ['a,b', 'c']),
]
OTHERWISE = [  # what mmengine makes of it stays
    ('folder=None', None),
    ('folder=[a,b]', ['a', 'b']),
    ('folder=(a,b)', ('a', 'b')),
    ('optim_wrapper.loss_scale=512.', 512.0),
    ('neck.add_extra_convs=true', True),
    ('flag=false', False),
    ('number=1_000', 1000),
    ("number='5'", 5),
    ('rate=1e-3', 0.001),
    ('nothing=7', 7),
    ('nothing=a,b', ['a', 'b']),
    ('words=[mDice,mFscore]', ['mDice', 'mFscore']),
    ('words=mDice', 'mDice'),
    ('sizes=[32,64]', (32, 64)),
    ('sizes=(32,64)', (32, 64)),
    ('new.key=[(1,2),[a,b],c]', [(1, 2), ['a', 'b'], 'c']),
    ('new.key="[(1,2)]"', [(1, 2)]),
    ('new.key=(1,)', (1,)),
    ('new.key=[]', []),
    ('new.key=0.5', 0.5),
    ('new.key=true', True),
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'a.py').write_text(CONFIG)
    return tmp_path / 'a.py'


def value_at(cfg, key):
    for part in key.split('.'):
        cfg = cfg[int(part)] if isinstance(cfg, list) else cfg[part]
    return cfg


@pytest.mark.parametrize('option, value', KEPT + OTHERWISE, ids=lambda v: str(v))
def test_a_value_is_read_as_what_it_replaces(option, value, config):
    found = value_at(load_config(config, parse_options([option])), option.partition('=')[0])
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize('option, value', OTHERWISE, ids=lambda v: str(v))
def test_what_mmengine_reads_otherwise_stays(option, value, config):
    key, _, text = option.partition('=')
    theirs = DictAction._parse_iterable(text)
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({key: theirs})
    found = value_at(cfg, key)
    assert found == value or tuple(found) == value  # a tuple where the config has one


@pytest.mark.parametrize('option', ['new.key=(a,b', 'new.key=a],b', 'words=[[a]'])
def test_brackets_that_do_not_match_are_named_with_their_key(option, config):
    with pytest.raises(UsageError, match=r'--cfg-options (new.key|words)=.*do not match'):
        load_config(config, parse_options([option]))


def test_an_option_that_does_not_fit_is_shown_as_it_was_parsed(config):
    with pytest.raises(UsageError, match=r'does not fit .*a.py: .*It was parsed as hooks.7.type=3'):
        load_config(config, parse_options(['hooks.7.type=3']))


def test_a_command_that_is_written_down_can_be_typed(config):
    given = ['folder=my set', "names=['a b','1']", 'number=4']
    written = option_flags(parse_options(given)).removeprefix(' --cfg-options ')
    assert shlex.split(written) == given
    again = load_config(config, parse_options(shlex.split(written)))
    assert again.to_dict() == load_config(config, parse_options(given)).to_dict()
    assert shlex.split(command_line({'sizes': (32, 64)})) == ['sizes=(32, 64)']


def test_a_folder_with_a_blank_is_trained_from(street, call, tmp_path):
    root = tmp_path / 'my set'
    root.symlink_to(street)
    assert call('train', root=root).code == 0
    assert call('check_data', root=root).code == 0
    digits = tmp_path / '2021_07'
    digits.symlink_to(street)
    config = ROOT / 'configs/ccnet_r18_street.py'
    options = parse_options(
        [f'{x}_dataloader.dataset.data_root={digits}' for x in ('train', 'val')]
    )
    assert load_config(config, options).train_dataloader.dataset.data_root == str(digits)
