"""Models by name, and weights from wherever they are published."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from mmattn.config import index, published_weights
from mmattn.config.names import is_config
from mmattn.errors import CheckpointError, UsageError
from mmattn.zoo import list_models, load_model
from tests.conftest import ROOT

NAME = 'fcn_r18_street'


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A folder with the published files of a model at random weights, and those weights."""
    from mmengine.registry import MODELS, init_default_scope

    from mmattn.config.load import load_config
    from mmattn.zoo.publish import publish

    config = ROOT / 'configs' / f'{NAME}.py'
    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    folder = tmp_path_factory.mktemp('published')
    model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict()), folder / 'run.pth')
    publish(config, folder / 'run.pth', folder / 'out')
    return folder / 'out', model.state_dict()


def same(model, weights):
    found = model.state_dict()
    return set(found) == set(weights) and all(torch.equal(found[k], v) for k, v in weights.items())


def test_every_config_is_listed_by_pattern_and_by_weights():
    rows = yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())['Models']
    configs = {p.stem for p in (ROOT / 'configs').glob('*.py')}
    assert list_models() == sorted(configs | {row['Name'] for row in rows})
    assert list_models('cc*_r101_c*') == ['ccnet_r101_cityscapes']
    with_weights = list_models(weights=True)
    assert 'ann_r50_512x1024_40k_cityscapes' in with_weights and NAME not in with_weights
    addresses = {r['Name'] for r in rows if r.get('Weights')}
    assert set(with_weights) == addresses


def test_load_from_a_folder_a_file_and_an_address(published, tmp_path, monkeypatch):
    folder, weights = published
    for source in folder, next(folder.glob('*.pth')):
        model = load_model(NAME, source)
        assert not model.training and same(model, weights)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    file = next(folder.glob('*.safetensors'))
    (tmp_path / 'checkpoints').mkdir()
    shutil.copy(file, tmp_path / 'checkpoints')
    assert same(load_model(NAME, f'https://example.org/{file.name}'), weights)
    assert same(load_model(ROOT / 'configs' / f'{NAME}.py', folder), weights)


def test_published_weights_are_found_by_name_and_their_whole_hash_is_checked(
    published, tmp_path, monkeypatch
):
    from mmattn.files import sha256

    folder, weights = published
    file = next(folder.glob('*.safetensors'))
    config = ROOT / 'configs' / f'{NAME}.py'
    for digest, fits in (sha256(file), True), ('0' * 64, False):
        rows = {NAME: index.Model(NAME, config, str(file), digest)}
        monkeypatch.setattr(index, 'model_index', lambda rows=rows: rows)
        if fits:
            assert same(load_model(NAME), weights)
        else:
            with pytest.raises(CheckpointError, match='not what was published'):
                load_model(NAME)


def test_weights_of_the_repository_are_a_file_or_its_address(tmp_path):
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / 'a-01234567.safetensors').touch()
    for name, wanted in [
        ('weights/a-01234567.safetensors', str(tmp_path / 'weights' / 'a-01234567.safetensors')),
        (
            'weights/b-01234567.safetensors',
            'https://github.com/mmattn/mmattn/raw/main/weights/b-01234567.safetensors',
        ),
        ('https://x.org/c.pth', 'https://x.org/c.pth'),
        (None, None),
    ]:
        assert index._address(name, tmp_path / 'configs') == wanted


def test_files_that_were_changed_are_refused(published, tmp_path):
    folder, _ = published
    file = next(folder.glob('*.safetensors'))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    (tmp_path / file.name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f'their sha256 does not begin with {file.stem[-8:]}'):
        load_model(NAME, tmp_path)


def test_a_repository_of_the_hub(published, tmp_path, monkeypatch):
    folder, weights = published
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(folder / file)

    class HubError(Exception):
        pass

    files = [p.name for p in folder.iterdir()]
    hub = SimpleNamespace(hf_hub_download=download, list_repo_files=lambda repository: files)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    monkeypatch.setitem(
        sys.modules, 'huggingface_hub.errors', SimpleNamespace(HfHubHTTPError=HubError)
    )
    assert same(load_model(NAME, 'hf://someone/models'), weights)
    file = next(folder.glob('*.safetensors')).name
    assert asked == [('someone/models', file)]
    assert same(load_model(NAME, f'hf://someone/models/{file}'), weights)
    with pytest.raises(CheckpointError, match='hf://someone/models has no weights of fcn_r18_cam'):
        load_model('fcn_r18_camvid', 'hf://someone/models')

    def offline(*_):
        raise HubError('no network\nlong story')

    hub.list_repo_files = offline
    with pytest.raises(CheckpointError, match='cannot download weights .*: no network$'):
        load_model(NAME, 'hf://someone/models')


@pytest.mark.parametrize(
    'name, weights, kind, message',
    [
        ('ccnet_r101_cityscape', None, UsageError, 'nearest: ccnet_r101_cityscapes'),
        ('xyz', None, UsageError, 'model xyz: no such name'),
        (NAME, None, UsageError, 'has no published weights. Name a checkpoint'),
        (NAME, '.', CheckpointError, 'folder . has no weights of fcn_r18_street'),
        (NAME, 'nothing.pth', CheckpointError, 'does not exist'),
    ],
)
def test_refused(name, weights, kind, message):
    with pytest.raises(kind, match=message):
        load_model(name, weights)


def test_the_index_has_the_form_that_openmim_reads():
    """What `mim search`, `download` and `train` take: of OpenMIM's own code, which is not installed here."""
    (file,) = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    content = yaml.safe_load((ROOT / file).read_text())
    collections = {row['Name'] for row in content['Collections']}
    for row in content['Models']:
        assert row['In Collection'] in collections and is_config(ROOT / row['Config'])
        assert isinstance(row['Metadata'], dict) and isinstance(row.get('Weights', ''), str)
        for result in row['Results']:
            assert {'Task', 'Dataset', 'Metrics'} <= set(result)
    row = next(r for r in content['Models'] if r['Name'] == 'ccnet_r50_512x1024_40k_cityscapes')
    assert row['Weights'] == index.find_model(row['Name']).weights


# ---- published runs with attention ---------------------------------------------------------------
def published_as(folder, config, attention=None, kind='safetensors'):
    """A file as publish.py writes it, of a tensor alone."""
    import hashlib
    import json
    from io import BytesIO

    from safetensors.torch import save

    about = dict(config=config)
    if attention:
        about['attention'] = dict(names=attention, plugins=[], backbone={})
    weights = {'w': torch.tensor([float(len(list(folder.iterdir())))])}
    data = save(weights, metadata=dict(mmattn=json.dumps(about)))
    if kind == 'pth':
        buffer = BytesIO()
        torch.save(dict(state_dict=weights, meta=about), buffer)
        data = buffer.getvalue()
    stem = '_'.join([config, *(attention or '').split(',')]).rstrip('_')
    path = folder / f'{stem}-{hashlib.sha256(data).hexdigest()[:8]}.{kind}'
    path.write_bytes(data)
    return path


@pytest.mark.parametrize('kind', ['safetensors', 'pth'])
@pytest.mark.parametrize('attention', ['pam', 'se,gc'])
def test_a_run_with_attention_is_found_by_the_name_of_its_config(tmp_path, kind, attention):
    found = published_as(tmp_path, 'own', attention, kind)
    published_as(tmp_path, 'other', attention, kind)
    config = tmp_path / 'own.py'
    for given in None, attention:
        assert published_weights.resolve(config, tmp_path, given) == (config, found)
    with pytest.raises(
        CheckpointError, match='has no weights of own_cbam: files are named own_cbam-'
    ):
        published_weights.resolve(config, tmp_path, 'cbam')
    with pytest.raises(CheckpointError, match='has no weights of own: '):
        published_weights.resolve(config, tmp_path, 'none')


def test_the_plain_one_comes_first_and_of_several_one_is_to_be_named(tmp_path):
    pam, gc = (published_as(tmp_path, 'own', x) for x in ('pam', 'gc'))
    config = tmp_path / 'own.py'
    with pytest.raises(
        CheckpointError, match='different attention: .*Choose with --attention'
    ) as e:
        published_weights.resolve(config, tmp_path, None)
    assert pam.name in str(e.value) and gc.name in str(e.value)
    assert published_weights.resolve(config, tmp_path, 'gc')[1] == gc  # the remedy
    plain = published_as(tmp_path, 'own')
    assert published_weights.resolve(config, tmp_path)[1] == plain
    assert published_weights.resolve(config, tmp_path, 'pam')[1] == pam


def test_a_longer_name_is_another_model(tmp_path):
    published_as(tmp_path, 'fcn_r18_street')  # of the index
    published_as(tmp_path, 'fcn_r18_mine')  # its meta names no model
    published_as(tmp_path, 'fcn_r18_street', 'cbam')
    with pytest.raises(CheckpointError, match='has no weights of fcn_r18: '):
        published_weights.resolve(tmp_path / 'fcn_r18.py', tmp_path)
    mine = published_as(tmp_path, 'fcn_r18', 'se')
    assert published_weights.resolve(tmp_path / 'fcn_r18.py', tmp_path)[1] == mine


def test_a_repository_with_attention(tmp_path, monkeypatch):
    pam = published_as(tmp_path, 'own', 'pam')
    files = [p.name for p in tmp_path.iterdir()]
    hub = SimpleNamespace(
        hf_hub_download=lambda repository, file: str(tmp_path / file),
        list_repo_files=lambda repository: files,
    )
    monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
    errors = SimpleNamespace(HfHubHTTPError=type('HubError', (Exception,), {}))
    monkeypatch.setitem(sys.modules, 'huggingface_hub.errors', errors)
    for given in None, 'pam':
        assert published_weights.resolve(tmp_path / 'own.py', 'hf://a/b', given)[1] == pam
    files.append('fcn_r18_street-01234567.pth')  # of the index: no fcn_r18 with `street` added
    with pytest.raises(CheckpointError, match='hf://a/b has no weights of fcn_r18'):
        published_weights.resolve(tmp_path / 'fcn_r18.py', 'hf://a/b', None)
    files.append(published_as(tmp_path, 'own', 'gc').name)
    with pytest.raises(CheckpointError, match=r'different attention.*Name one, hf://a/b/FILE\.'):
        published_weights.resolve(tmp_path / 'own.py', 'hf://a/b', None)
    assert published_weights.resolve(tmp_path / 'own.py', f'hf://a/b/{pam.name}', None)[1] == pam


def test_a_card_names_every_data_set_and_no_path_of_this_machine(tmp_path, monkeypatch):
    from mmengine.config import Config

    from mmattn.zoo.card import Metrics, network_card

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a.pth').write_bytes(b'')
    sets = [dict(type='X', data_root=f'{tmp_path}/set/one', ann_file='train.txt'),
            dict(type='RepeatDataset', dataset=dict(type='Y', data_root='/srv/data/two/'))]  # fmt: skip
    cfg = Config(dict(
        train_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=sets)), work_dir='/x/y',
        model=dict(init_cfg=dict(checkpoint='https://x.org/a/b.pth'), scale=(1, 2)),
        test_evaluator=dict(ann_file=f'{tmp_path}/set/val.json'),
    ))  # fmt: skip
    meta = dict(command='python tools/train.py own.py --cfg-options a.b=[/srv/data/x.json,1]')
    names = dict(classes=['a'])
    files = [tmp_path / 'a.pth']
    card = network_card('own', 'configs/own.py', cfg, meta, names, Metrics(), files)
    assert '`X` at `set/one`, `train.txt`; `Y` at `two/`; 1 classes:' in card
    assert 'a.b=[x.json,1]' in card and "checkpoint='https://x.org/a/b.pth'" in card
    assert str(tmp_path) not in card and '/srv' not in card and '/x/y' not in card
    assert "ann_file='set/val.json'" in card and 'scale=(' in card
