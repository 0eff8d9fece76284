"""Uploading published files, and loading them through torch.hub."""

import sys

import pytest
import torch

from mmattn.errors import CheckpointError, UsageError, WriteError
from mmattn.zoo.publish import publish, upload
from tests.conftest import ROOT
from tests.zoo.hub_server import hub_server

CONFIG = ROOT / 'configs' / 'fcn_r18_street.py'


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Published files of a network with random weights, measured, and its state dict."""
    import json

    from mmattn.engine.network import build_network
    from mmattn.files import sha256

    folder = tmp_path_factory.mktemp('published')
    network, _ = build_network(CONFIG)
    torch.save(dict(state_dict=network.state_dict()), folder / 'run.pth')
    record = dict(
        sha256=sha256(folder / 'run.pth'), metrics={'aAcc': 90.5, 'mIoU': 26.02, 'data_time': 0.1},
        command='python tools/test.py', hardware='a machine', torch='2.13',
    )  # fmt: skip
    (folder / 'metrics').mkdir()
    (folder / 'metrics' / 'run.json').write_text(json.dumps(record))
    paths = publish(CONFIG, folder / 'run.pth', folder / 'out', license='apache-2.0')
    return paths, network.state_dict()


def test_one_commit_from_which_the_network_is_loaded(published, hub):
    from mmattn.zoo import from_pretrained, load_model

    paths, weights = published
    assert upload(paths, 'us/net', private=True) == f'{hub.endpoint}/us/net'
    names = {paths[kind].name for kind in ('safetensors', 'pth', 'card')}
    ((summary, files),) = hub.commits['us/net']
    assert set(files) == names | {'README.md', 'config.json'} and hub.private['us/net']
    assert summary == f'Upload {paths["safetensors"].stem}'
    network = from_pretrained('us/net', device='cpu')
    again = load_model('fcn_r18_street', 'hf://us/net', device='cpu')
    for name, value in weights.items():
        assert torch.equal(network.state_dict()[name], value)
        assert torch.equal(again.state_dict()[name], value)
    assert not any(request.endswith('.pth') for request in hub.asked)


def test_the_card_is_what_the_hub_reads(published):
    from huggingface_hub import ModelCard

    data = ModelCard.load(published[0]['card']).data
    assert data.license == 'apache-2.0' and data.library_name == 'mmattn'
    assert data.pipeline_tag == 'image-segmentation' and data.datasets == ['street']
    assert {'attention', 'mmsegmentation'} <= set(data.tags)
    found = {result.metric_name: result for result in data.eval_results}
    assert data.model_name == 'fcn_r18_street' and found.keys() == {'mIoU', 'aAcc'}
    assert found['mIoU'].metric_value == 26.02 and found['mIoU'].metric_type == 'mean_iou'
    assert found['mIoU'].dataset_name == 'street' and found['mIoU'].dataset_split == 'test'


def test_in_half_precision(published, tmp_path):
    from mmattn.zoo import load_model

    paths, weights = published
    run = paths['safetensors'].parent.parent / 'run.pth'
    half = publish(CONFIG, run, tmp_path, half=True)
    sizes = [files['safetensors'].stat().st_size for files in (paths, half)]
    assert sizes[1] < 0.51 * sizes[0]
    network = load_model('fcn_r18_street', tmp_path, device='cpu')
    for name, value in network.state_dict().items():
        wanted = weights[name]
        if value.is_floating_point():
            wanted = wanted.half().float()
        assert value.dtype == wanted.dtype and torch.equal(value, wanted)
    assert 'Measured before the weights were rounded to float16.' in half['card'].read_text()
    assert 'float16' not in paths['card'].read_text()
    large = {k: v * 1e6 if v.is_floating_point() else v for k, v in weights.items()}
    torch.save(dict(state_dict=large), tmp_path / 'large.pth')
    with pytest.raises(CheckpointError, match='above 65504, .* Publish it without --half'):
        publish(CONFIG, tmp_path / 'large.pth', tmp_path, half=True)


def test_an_own_readme_stays(published, hub):
    paths, _ = published
    upload(paths, 'us/net')
    assert hub.repositories['us/net']['README.md'] == paths['card'].read_bytes()
    hub.repositories['us/net']['README.md'] = b'by hand'
    upload(paths, 'us/net')
    assert hub.repositories['us/net']['README.md'] == b'by hand'


def test_refused(published, hub, monkeypatch):
    from huggingface_hub import constants

    paths, _ = published
    with pytest.raises(UsageError, match='--hub net: write owner/name'):
        upload(paths, 'net')
    monkeypatch.setenv('HF_TOKEN', 'hf_of_another')
    with pytest.raises(WriteError, match=r'cannot upload to us/net: (?s:.*)401.*are written\.$'):
        upload(paths, 'us/net')
    assert 'us/net' not in hub.repositories
    with hub_server() as gone:
        endpoint = gone.endpoint
    monkeypatch.setattr(constants, 'ENDPOINT', endpoint)
    with pytest.raises(WriteError, match='cannot upload to us/net: .*refused.*are written'):
        upload(paths, 'us/net')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UsageError, match=r'pip install "mmattn\[hub\]"'):
        upload(paths, 'us/net')


def test_without_the_package_a_card_has_no_metadata_and_no_licence(monkeypatch, tmp_path):
    monkeypatch.setattr('mmattn.hub.is_installed', lambda *_: False)
    with pytest.raises(UsageError, match=r'license mit: .*pip install "mmattn\[hub\]"'):
        publish(CONFIG, 'none.pth', tmp_path, license='mit')
    from mmattn.hub import card_metadata

    assert card_metadata('net', license='mit') == ''


@pytest.mark.parametrize(
    'text, given, licence',
    [
        ('CC BY-NC 4.0; weights trained on it', None, 'cc-by-nc-4.0'),
        ('of the institute', None, 'other'),
        ('', None, None),
        ('CC BY-NC 4.0', 'mit', 'mit'),
    ],
)
def test_the_licence_is_that_of_the_data_unless_given(text, given, licence):
    from mmattn.zoo.card import license_id

    assert license_id(dict(licence=text) if text else {}, given) == licence


def test_weights_of_a_repository_that_is_not_there(hub):
    from mmattn.zoo import load_model

    with pytest.raises(CheckpointError, match='cannot download weights hf://us/none: .*404'):
        load_model('fcn_r18_street', 'hf://us/none')


def test_torch_hub_lists_and_loads():
    found = torch.hub.load(str(ROOT), 'list_models', 'ccnet_r18_*', source='local')
    assert found == ['ccnet_r18_camvid', 'ccnet_r18_street']
    with pytest.raises(UsageError, match='has no published weights'):
        torch.hub.load(str(ROOT), 'load_model', 'ccnet_r18_street', source='local')
