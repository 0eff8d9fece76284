"""Uploading published files, and loading them through torch.hub."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from mmattn.errors import UsageError, WriteError
from mmattn.zoo.publish import upload
from tests.conftest import ROOT


class HubError(Exception):
    pass


class Hub:
    """What is asked of huggingface_hub, on a dict of repositories."""

    repositories: ClassVar[dict] = {}
    refusal = None

    def create_repo(self, name, exist_ok, private):
        if self.refusal:
            raise self.refusal
        self.repositories.setdefault(name, dict(private=private, files={}))

    def list_repo_files(self, name):
        return list(self.repositories[name]['files'])

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
        self.repositories[repo_id]['files'][path_in_repo] = path_or_fileobj.read_bytes()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, 'repositories', {})
    monkeypatch.setattr(Hub, 'refusal', None)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', SimpleNamespace(HfApi=Hub))
    errors = SimpleNamespace(HfHubHTTPError=HubError)
    monkeypatch.setitem(sys.modules, 'huggingface_hub.errors', errors)
    return Hub


@pytest.fixture
def paths(tmp_path):
    found = {}
    for kind, suffix in dict(safetensors='.safetensors', pth='.pth', card='.md').items():
        found[kind] = tmp_path / f'net-01234567{suffix}'
        found[kind].write_text(kind)
    return found


def test_files_and_card_are_there_and_an_own_readme_stays(hub, paths):
    assert upload(paths, 'us/net', private=True) == 'https://huggingface.co/us/net'
    files = hub.repositories['us/net']['files']
    assert files.keys() == {path.name for path in paths.values()} | {'README.md'}
    assert files['README.md'] == b'card' and hub.repositories['us/net']['private']
    files['README.md'] = b'by hand'
    upload(paths, 'us/net')
    assert files['README.md'] == b'by hand'


def test_refused(hub, paths, monkeypatch):
    with pytest.raises(UsageError, match='--hub net: write owner/name'):
        upload(paths, 'net')
    for refusal in HubError('403 Forbidden\nmore'), OSError('no network'):
        hub.refusal = refusal
        with pytest.raises(WriteError, match='cannot upload to us/net: (403|no).*are written'):
            upload(paths, 'us/net')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UsageError, match='pip install huggingface_hub'):
        upload(paths, 'us/net')


def test_torch_hub_lists_and_loads():
    found = torch.hub.load(str(ROOT), 'list_models', 'ccnet_r18_*', source='local')
    assert found == ['ccnet_r18_camvid', 'ccnet_r18_street']
    with pytest.raises(UsageError, match='has no published weights'):
        torch.hub.load(str(ROOT), 'load_model', 'ccnet_r18_street', source='local')
