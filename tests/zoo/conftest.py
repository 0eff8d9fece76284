"""A hub of one's own for the tests of publishing and loading."""

import pytest

from tests.zoo.hub_server import TOKEN, hub_server


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for the hub, to which huggingface_hub turns instead."""
    from huggingface_hub import constants, hf_api

    with hub_server() as server:
        # what HF_ENDPOINT, HF_HOME and HF_TOKEN set in a process of its own
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        address = template.replace(constants.ENDPOINT, server.endpoint)
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', address)
        monkeypatch.setattr(constants, 'ENDPOINT', server.endpoint)
        monkeypatch.setattr(hf_api.api, 'endpoint', server.endpoint)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub_cache'))
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        yield server
