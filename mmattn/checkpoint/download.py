"""Downloading checkpoints, over https alone."""

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
from mmattn.files import sha256 as sha256
from mmattn.progress import track

_SCHEMES = ('https',)  # that are downloaded


_LARGEST = 4 << 30  # bytes of a download


_PATIENCE = 60  # seconds without a byte


_BLOCK = 1 << 20  # bytes


def fetch(address: str | Path) -> Path:
    """The file of an address, downloaded once into torch's cache; a path as it is.

    Args:
        address: a path, `https://...`, `torchvision://resnet50`, or `open-mmlab://` with a name of
            OpenMMLab's list. The eight digits of a hash in a name, as in resnet50-0676ba61.pth, are
            checked against the sha256 of what came, now or before.

    Raises:
        CheckpointError: no such name; it cannot be had; the hash differs.
    """
    scheme, _, name = str(address).partition('://')
    if not name:
        return Path(address)
    url = str(address) if scheme in _SCHEMES else _known_address(scheme, name)
    file = unquote(urlparse(url).path).rpartition('/')[2]
    if not re.fullmatch(r'[\w+.-]*\w', file):
        raise CheckpointError(f'weights {address}: the address does not end in the name of a file.')
    path = Path(torch.hub.get_dir()) / 'checkpoints' / file
    digits = re.search(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$', path.name)  # no date
    digits = digits[1] if digits else ''
    if path.is_file():
        found = sha256(path) if digits else ''
        if not found.startswith(digits):
            raise CheckpointError(
                f'{path}, downloaded before, has sha256 {found}, expected {digits}...: it is '
                'damaged. Delete it.'
            )
        return path
    print_log(f'downloading {url} to {path}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, path, digits)
    except (OSError, HTTPException) as error:  # URLError and its kind
        raise CheckpointError(
            f'weights {address} cannot be had: {error}. Download them elsewhere and name the file.'
        ) from error
    return path


class _OnlySafely(HTTPRedirectHandler):
    """Follows no redirection to an address that is not encrypted."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urlparse(url).scheme not in _SCHEMES:
        raise CheckpointError(f'{url} is not downloaded: allowed is https://.')


def _download(url: str, path: Path, digits: str) -> None:
    """Download to `path`, where it appears when all of it is there and its hash is right.

    Raises:
        CheckpointError: cut short, too large, or its sha256 does not begin with `digits`.
        OSError, HTTPException: it cannot be had.
    """
    _check_scheme(url)
    part, digest, done = path.with_name(f'{path.name}.{os.getpid()}.part'), hashlib.sha256(), 0
    try:
        with build_opener(_OnlySafely).open(url, timeout=_PATIENCE) as source:
            size = int(source.headers.get('Content-Length') or 0)
            with open(part, 'wb') as file:
                blocks = track(_pieces(source), total=-(-size // _BLOCK) or None, title=path.name)
                for block in blocks:
                    done += len(block)
                    if max(done, size) > _LARGEST:
                        raise CheckpointError(
                            f'{url} has {max(done, size)} bytes or more, allowed {_LARGEST}.'
                        )
                    digest.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        if size and done != size:
            raise CheckpointError(f'{url} was cut short: {done} of {size} bytes came.')
        if not digest.hexdigest().startswith(digits):
            raise CheckpointError(
                f'downloaded {url} has sha256 {digest.hexdigest()}, expected {digits}...: it is '
                'not what was published.'
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _pieces(source: HTTPResponse) -> Iterator[bytes]:
    while block := source.read(_BLOCK):
        yield block


def _known_address(scheme: str, name: str) -> str:
    """The URL behind a name of torchvision or OpenMMLab."""
    if scheme == 'torchvision':
        # without importing torchvision, which need not be there
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
    found = table[name]
    return found if '://' in found else f'https://download.openmmlab.com/{found}'
