"""A stand-in for the Hugging Face Hub: what huggingface_hub asks of it, on dicts of files."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_standin'


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: owner/name -> name of a file -> bytes.
        private: owner/name -> whether it is private.
        commits: owner/name -> summary and names of files of every commit.
        asked: method and path of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(('127.0.0.1', 0), _Handler)
        self.repositories, self.private, self.commits, self.asked = {}, {}, {}, []

    @property
    def endpoint(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def sha(self, name: str) -> str:
        """The commit at the head of a repository: it changes with the files."""
        digest = hashlib.sha1(name.encode())
        for path, data in sorted(self.repositories[name].items()):
            digest.update(path.encode() + data)
        return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_) -> None:
        pass

    def _answer(self, content, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {'Content-Type': 'application/json', 'Content-Length': str(len(data)), **headers}
        for key, value in headers.items():
            self.send_header(key.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def _missing(self, code: str) -> None:
        self._answer(dict(error=code), 404, X_Error_Code=code)

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append(f'{self.command} {path}')
        parts = path.strip('/').split('/')
        is_api = parts[0] == 'api'
        name = '/'.join(parts[2:4] if is_api else parts[:2])
        if name not in hub.repositories:
            self._missing('RepoNotFound')
            return
        files, sha = hub.repositories[name], hub.sha(name)
        if is_api and parts[4:5] == ['tree']:
            rows = [dict(type='file', path=p, size=len(d), oid='0') for p, d in files.items()]
            self._answer(rows)
        elif is_api:
            rows = [dict(rfilename=file) for file in files]
            self._answer(dict(id=name, sha=sha, siblings=rows, private=hub.private[name]))
        elif (file := '/'.join(parts[4:])) not in files:
            self._missing('EntryNotFound')
        else:
            etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            self._answer(files[file], X_Repo_Commit=sha, ETag=etag)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append(f'POST {path}')
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0)).decode()
        if path == '/api/validate-yaml':
            self._answer(dict(errors=[], warnings=[]))
            return
        if self.headers.get('Authorization') != f'Bearer {TOKEN}':
            self._answer(dict(error='Invalid username or password.'), 401)
            return
        if path == '/api/repos/create':
            asked = json.loads(body)
            owner = asked.get('organization')
            name = f'{owner}/{asked["name"]}' if owner else asked['name']
            is_new = name not in hub.repositories
            hub.repositories.setdefault(name, {})
            hub.private.setdefault(name, asked.get('visibility') == 'private')
            url = f'{hub.endpoint}/{name}'
            self._answer(dict(url=url, id=name), 200 if is_new else 409)
            return
        parts = path.strip('/').split('/')
        name, action = '/'.join(parts[2:4]), parts[4]
        if name not in hub.repositories:
            self._missing('RepoNotFound')
        elif action == 'preupload':
            rows = [
                dict(path=file['path'], uploadMode='regular', shouldIgnore=False, oid=None)
                for file in json.loads(body)['files']
            ]
            self._answer(dict(files=rows))
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            added = [line['value'] for line in lines if line['key'] == 'file']
            for file in added:
                hub.repositories[name][file['path']] = base64.b64decode(file['content'])
            header = next(line['value'] for line in lines if line['key'] == 'header')
            names = sorted(file['path'] for file in added)
            hub.commits.setdefault(name, []).append((header['summary'], names))
            sha = hub.sha(name)
            self._answer(
                dict(success=True, commitUrl=f'{hub.endpoint}/{name}/commit/{sha}', commitOid=sha)
            )


@contextmanager
def hub_server():
    """A running server; its threads end with the block."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.02))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
