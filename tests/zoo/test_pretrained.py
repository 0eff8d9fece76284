"""Saving, loading and sharing blocks and networks: bit for bit, and nothing is executed."""

import json

import pytest
import torch

import mmattn
from mmattn.blocks.base import registered_blocks
from mmattn.errors import CheckpointError, UsageError
from mmattn.files import sha256
from mmattn.registry import MODELS
from mmattn.zoo import pretrained
from tests.conftest import ROOT, randomise

OURS = sorted(name for name, cls in registered_blocks().items() if cls.__module__.startswith('mmattn.blocks'))  # fmt: skip


def small(name):
    """A block with the first arguments that its tests build, random everywhere."""
    cls = registered_blocks()[name]
    return randomise(cls.build(**cls.examples[0])).eval()


@pytest.mark.parametrize('name', OURS)
def test_every_block_is_the_same_after_it_was_saved(name, tmp_path):
    block = small(name)
    block.save_pretrained(tmp_path / 'block')
    again = type(block).from_pretrained(tmp_path / 'block')
    assert again.arguments == block.arguments and not again.training
    inputs = [torch.randn(shape) for shape in block.input_shapes(1, 7, 6)]
    assert torch.equal(again(*inputs), block(*inputs))
    assert all(p.requires_grad for p in again.parameters())


def test_the_files_of_a_block(tmp_path):
    from huggingface_hub import ModelCard

    block = small('SE').half()
    block.save_pretrained(tmp_path, license='mit')
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'README.md', 'config.json', 'model.safetensors',
    ]  # fmt: skip
    content = json.loads((tmp_path / 'config.json').read_text())
    assert content['type'] == 'SE' and content['arguments'] == block.arguments
    assert content['library_name'] == 'mmattn' and content['mmattn_version'] == mmattn.__version__
    assert content['sha256'] == sha256(tmp_path / 'model.safetensors')
    card = ModelCard.load(tmp_path / 'README.md')
    assert card.data.license == 'mit' and card.data.tags == ['attention', 'SE', 'channel']
    assert mmattn.from_pretrained(tmp_path).state_dict()['fc1.weight'].dtype == torch.half
    (tmp_path / 'README.md').write_text('by hand')
    block.save_pretrained(tmp_path)
    assert (tmp_path / 'README.md').read_text() == 'by hand'


def test_a_block_on_the_hub(hub):
    block = small('CBAM')
    address = block.push_to_hub('us/cbam', private=True, commit_message='the first')
    assert address == f'{hub.endpoint}/us/cbam/commit/{hub.sha("us/cbam")}'
    assert hub.private['us/cbam']
    assert hub.commits['us/cbam'] == [
        ('the first', ['README.md', 'config.json', 'model.safetensors'])
    ]
    for source in 'us/cbam', 'hf://us/cbam':
        again = mmattn.CBAM.from_pretrained(source)
        for name, value in block.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(CheckpointError, match='us/cbam holds a CBAM, not a SE'):
        mmattn.SE.from_pretrained('us/cbam')
    asked = len(hub.asked)
    mmattn.from_pretrained('us/cbam', local_files_only=True)
    assert len(hub.asked) == asked
    with pytest.raises(CheckpointError, match='cannot download hf://us/none'):
        mmattn.from_pretrained('us/none')


# ---- networks --------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def network():
    from mmattn.engine.network import build_network

    model, _ = build_network(ROOT / 'configs' / 'fcn_r18_street.py', attention='se')
    return randomise(model).eval()


@pytest.fixture(scope='module')
def saved(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    from mmattn.config.load import load_config

    config = load_config(ROOT / 'configs' / 'fcn_r18_street.py', attention='se')
    config.work_dir = str(folder / 'of_this_machine')
    network.save_pretrained(folder, config=config, metrics=dict(mIoU=12.5))
    return folder


def test_a_network_is_the_same_after_it_was_saved(network, saved, tmp_path):
    again = mmattn.EncoderDecoder.from_pretrained(saved, device='cpu')
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), network(x)) and not again.training
    text = (saved / 'config.json').read_text()
    assert 'of_this_machine' not in text and str(ROOT) not in text
    assert '| mIoU | 12.5 |' in (saved / 'README.md').read_text()
    again.save_pretrained(tmp_path / 'a')  # it knows its config
    mmattn.from_pretrained(tmp_path / 'a', device='cpu').save_pretrained(tmp_path / 'b')
    for name in 'config.json', 'model.safetensors':
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    assert sha256(tmp_path / 'a' / 'model.safetensors') == sha256(saved / 'model.safetensors')


def test_a_loaded_network_predicts(saved):
    import numpy as np

    photo = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    network = mmattn.from_pretrained(saved, device='cpu')
    result = mmattn.Predictor(network, network.cfg)(photo)
    assert result.pred_sem_seg.data.shape[-2:] == (48, 64)


def test_a_network_without_its_config_and_with_that_of_another(network, tmp_path):
    with pytest.raises(UsageError, match='does not know its config. Name it: save_pretrained'):
        network.save_pretrained(tmp_path / 'a')
    with pytest.raises(CheckpointError, match='does not fit the model'):
        network.save_pretrained(tmp_path / 'a', config=ROOT / 'configs' / 'fcn_r18_street.py')
    assert not any((tmp_path / 'a').iterdir())


# ---- what strangers write --------------------------------------------------------------------------
def changed(folder, tmp_path, **changes):
    """A copy of a saved folder with other content in its `config.json`."""
    target = tmp_path / 'changed'
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / 'config.json').read_text())
    for key, value in changes.items():
        part, *path = key.split('__')[::-1]
        inner = content
        for name in path[::-1]:
            inner = inner[name]
        inner[part] = value
    (target / 'config.json').write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    'changes, kind, reason',
    [
        (dict(config__custom_imports=dict(imports=['os'])), CheckpointError, 'custom_imports in'),
        (dict(config___base_='x.py'), CheckpointError, '_base_ in config.json is refused'),
        (dict(config__model__type='os.mkdir'), UsageError, "'os.mkdir', which is not registered"),
        (dict(name='../../a'), CheckpointError, 'not that of a config'),
        (dict(weights='../a.safetensors'), CheckpointError, 'not a .safetensors'),
        (dict(weights='a.pth'), CheckpointError, 'not a .safetensors'),
        (dict(weights='other.safetensors'), CheckpointError, 'has no other.safetensors'),
        (dict(sha256='0' * 64), CheckpointError, 'is damaged: its sha256'),
        (dict(config=None), CheckpointError, r"mmattn.load_model\('fcn_r18_street', weights"),
        (dict(kind='code'), CheckpointError, "kind is 'code'"),
        (dict(library_name='timm'), CheckpointError, 'is not of mmattn'),
    ],
)
def test_a_network_of_a_stranger(saved, tmp_path, changes, kind, reason):
    with pytest.raises(kind, match=reason):
        mmattn.from_pretrained(changed(saved, tmp_path, **changes), device='cpu')


@pytest.mark.parametrize(
    'changes, kind, reason',
    [
        (dict(type='Conv2d'), UsageError, "a block 'Conv2d', which is not registered here"),
        (dict(type='CCHead'), UsageError, "a block 'CCHead', which is not registered here"),
        (dict(type='os.mkdir'), UsageError, 'which is not registered here'),
        (dict(type=['SE']), UsageError, 'which is not registered here'),
        (
            dict(arguments=dict(in_channels=-1)),
            CheckpointError,
            'SE cannot be built: .*in_channels',
        ),
        (dict(arguments=dict(channels=3)), CheckpointError, 'SE cannot be built'),
        (dict(arguments=[1]), CheckpointError, 'SE cannot be built'),
        (
            dict(arguments=dict(in_channels=48)),
            CheckpointError,
            r'SE cannot be built: (?s:.*)size mismatch',
        ),
    ],
)
def test_a_block_of_a_stranger(tmp_path, changes, kind, reason):
    small('SE').save_pretrained(tmp_path / 'se')
    with pytest.raises(kind, match=reason):
        mmattn.from_pretrained(changed(tmp_path / 'se', tmp_path, **changes))


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(CheckpointError, match='has no config.json'):
        mmattn.from_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text('{"a": ')
    with pytest.raises(CheckpointError, match='config.json is damaged'):
        mmattn.from_pretrained(tmp_path)
    for source in 'none', 'a/b/c', '../none':
        with pytest.raises(UsageError, match='there is no such folder'):
            mmattn.from_pretrained(source)
    with pytest.raises(UsageError, match='is a folder: revision are for the hub'):
        mmattn.from_pretrained(tmp_path, revision='main')
    with pytest.raises(UsageError, match='unknown option strict; allowed are revision'):
        mmattn.from_pretrained('us/net', strict=True)


def test_what_cannot_be_saved(tmp_path, monkeypatch):
    class Own(mmattn.AttentionBlock):
        kind = 'channel'

        def __init__(self, in_channels, function=None, init='paper'):
            super().__init__(in_channels, init)

    with pytest.raises(UsageError, match='Own is not registered'):
        Own(4).save_pretrained(tmp_path)
    monkeypatch.setitem(MODELS._module_dict, 'Mine', Own)
    with pytest.raises(UsageError, match='an argument of Mine is no plain value'):
        Own(4, function=print).save_pretrained(tmp_path)
    Own(4).save_pretrained(tmp_path / 'own')  # under the name that it has in the registry
    assert isinstance(mmattn.from_pretrained(tmp_path / 'own'), Own)
    block = small('SE')
    with torch.no_grad():
        next(block.parameters()).fill_(float('nan'))
    with pytest.raises(CheckpointError, match='holds .* non-finite values'):
        block.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match='config and metrics are those of a network'):
        block.save_pretrained(tmp_path, metrics=dict(mIoU=1))
    monkeypatch.setattr(pretrained, 'is_installed', lambda *_: False)
    with pytest.raises(UsageError, match=r'need safetensors. Run: pip install "mmattn\[hub\]"'):
        mmattn.from_pretrained(tmp_path / 'own')
