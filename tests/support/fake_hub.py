"""A fake Hugging Face hub: answers the requests of huggingface_hub from local folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.raw_http import Quiet, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Repositories by name. What happens can be changed while it runs."""

    address: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)
    """Repository → the token that may read it."""
    cut: dict[str, int] = field(default_factory=dict)
    """File → bytes after which its bodies break off."""
    sent: dict[str, int] = field(default_factory=dict)
    """File → bytes of bodies so far."""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """File → headers that say something else than the true ones."""
    endless: str = ""
    """File whose body has no length and no end."""
    is_silent: bool = False
    """Whether requests are read and not answered."""
    page: bytes = b""
    """Body of every answer, as of a portal that asks people to sign in; empty: none."""
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    stopped: threading.Event = field(default_factory=threading.Event)

    def environment(self, cache: Path, **others: str) -> dict[str, str]:
        """Variables of a process that is to use it and nothing else."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "",
            "HF_HUB_DISABLE_XET": "1",
        } | others


@contextmanager
def running(repositories: Mapping[str, Path] | None = None) -> Iterator[FakeHub]:
    hub = FakeHub(repositories=dict(repositories or {}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        try:
            yield hub
        finally:
            hub.stopped.set()


class _Handler(Quiet, BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if self.hub.is_silent:
            self.hub.stopped.wait()
            return None
        if self.hub.page:
            return self._body(self.hub.page, "text/html")
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts == ["api", "models"]:
            return self._search(parse_qs(url.query))
        if parts[:2] == ["api", "models"]:
            repository, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            return self._model(repository, revision) if self._may(repository, revision) else None
        repository = "/".join(parts[:2])
        if parts[2:3] == ["resolve"] and self._may(repository, parts[3]):
            return self._file(self.hub.repositories[repository] / "/".join(parts[4:]), body=body)
        return None if parts[2:3] == ["resolve"] else self._error(404, "EntryNotFound")

    def _may(self, repository: str, revision: str) -> bool:
        """Return whether the request may go on; otherwise it is answered."""
        hub = self.hub
        if repository not in hub.repositories:
            self._error(404, "RepoNotFound")
        elif repository in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.gated[repository]}":
            self._error(401, "GatedRepo")
        elif revision not in hub.revisions:
            self._error(404, "RevisionNotFound")
        else:
            return True
        return False

    def _search(self, query: Mapping[str, list[str]]) -> None:
        owner, text = query.get("author", [""])[0], query.get("search", [""])[0]
        names = [name for name in self.hub.repositories if name.startswith(f"{owner}/") and text in name]
        self._json([{"id": name, "_id": name, "sha": COMMIT} for name in names])

    def _model(self, repository: str, revision: str) -> None:
        names = sorted(path.name for path in self.hub.repositories[repository].iterdir())
        files = [{"rfilename": name} for name in names]
        self._json({"id": repository, "_id": repository, "sha": COMMIT, "siblings": files, "tags": [], "private": False})

    def _file(self, path: Path, *, body: bool) -> None:
        if not path.is_file():
            return self._error(404, "EntryNotFound")
        content = path.read_bytes()
        etag, first = hashlib.sha256(content).hexdigest(), 0
        requested = self.headers.get("Range")
        if requested:
            first = int(requested.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if requested else 200)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes", "Content-Length": str(len(content) - first)}
        if requested:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        if body and path.name == self.hub.endless:
            del headers["Content-Length"]
            self.close_connection = True
        for name, value in (headers | self.hub.headers.get(path.name, {})).items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return None
        if path.name == self.hub.endless:
            return self._endless()
        end = self.hub.cut.get(path.name, len(content))
        self.wfile.write(content[first:end])
        self.hub.sent[path.name] = self.hub.sent.get(path.name, 0) + max(0, end - first)
        if end < len(content):
            self.close_connection = True
        return None

    def _endless(self) -> None:
        with suppress(ConnectionError):
            while not self.hub.stopped.is_set():
                self.wfile.write(bytes(1 << 20))

    def _json(self, content: Any) -> None:
        self._body(json.dumps(content).encode(), "application/json")

    def _body(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("ETag", 'W/"2a-q/Zx+8="')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
