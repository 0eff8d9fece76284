"""Downloading checkpoints, over https only."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
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

_SCHEMES = ('https',)
_MAX_BYTES = 4 << 30  # of one download
_TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 20  # bytes


def fetch(address: str | Path) -> Path:
    """Download an address into torch's cache, if it is not there; a path is returned as it is.

    Args:
        address: a path, `https://...`, `torchvision://resnet50`, or `open-mmlab://` with a name of
            OpenMMLab's list. The eight digits of a hash in a name, as in resnet50-0676ba61.pth, are
            checked against the sha256 of the file, whether it is downloaded now or was before.

    Returns:
        the path of the file.

    Raises:
        CheckpointError: unknown name; the download fails; the hash differs.
    """
    scheme, _, name = str(address).partition('://')
    if not name:
        return Path(address)
    url = str(address) if scheme in _SCHEMES else _alias_url(scheme, name)
    file = unquote(urlparse(url).path).rpartition('/')[2]
    if not re.fullmatch(r'[\w+.-]*\w', file):
        raise CheckpointError(f'weights {address}: the address does not end in the name of a file.')
    path = Path(torch.hub.get_dir()) / 'checkpoints' / file
    digits = re.search(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$', path.name)  # no date
    digits = digits[1] if digits else ''
    if path.is_file():
        actual = sha256(path) if digits else ''
        if not actual.startswith(digits):
            raise CheckpointError(
                f'{path}, downloaded before, has sha256 {actual}, expected {digits}...: it is '
                'damaged. Delete it.'
            )
        return path
    print_log(f'downloading {url} to {path}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, path, digits)
    except (OSError, HTTPException) as error:  # URLError and its kind
        raise CheckpointError(
            f'cannot download weights {address}: {error}. Download them elsewhere and name '
            'the file.'
        ) from error
    return path


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
            f'weights {scheme}://{name}: allowed https://, torchvision://, open-mmlab:// or a path.'
        )
    if not table.get(name):  # some names of torchvision have no weights
        near = difflib.get_close_matches(name, [k for k in table if table[k]], n=3)
        hint = f' Did you mean {", ".join(near)}?' if near else ''
        raise CheckpointError(f'weights {scheme}://{name}: no such name is known.{hint}')
    url = table[name]
    return url if '://' in url else f'https://download.openmmlab.com/{url}'
