"""A stand-in for the Hub on loopback, for the real client: one commit a repository, ranges, broken transfers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class HubServer(ThreadingHTTPServer):
    """Serves `root/<owner>/<name>/…` as repositories.

    `log` holds (method, path) of every request and `ranges` the Range headers. A path in `cut` is broken off after that
    many bytes, once; names in `gated` answer 403.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.log: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.cut: dict[str, int] = {}
        self.gated: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> set[str]:
        """The files whose content was asked for, as owner/name/file."""
        paths = [path for method, path in self.log if method == "GET" and "/resolve/" in path]
        return {re.sub(r"^/(.*)/resolve/[^/]+/", r"\1/", path) for path in paths}

    def client(self, code: str, cache: Path, **env: str) -> subprocess.CompletedProcess:
        """Run `code` in a fresh process whose Hub is this server."""
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **settings, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


class _Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.log.append((self.command, path))
        is_listing = path.startswith("/api/models/")
        repository, _, rest = (
            path.removeprefix("/api/models").lstrip("/").partition("/revision/" if is_listing else "/resolve/")
        )
        folder = self.server.root / repository
        if repository in self.server.gated:
            return self._refuse(403, "GatedRepo")
        if not rest or not folder.is_dir():
            return self._refuse(401, "RepoNotFound")
        revision, _, name = rest.partition("/")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        if is_listing:
            return self._list(folder, repository)
        if not (folder / name).is_file():
            return self._refuse(404, "EntryNotFound")
        return self._send((folder / name).read_bytes(), path, body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, folder: Path, repository: str) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        siblings = [{"rfilename": path.relative_to(folder).as_posix(), "size": path.stat().st_size} for path in files]
        answer = json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _send(self, content: bytes, path: str, body: bool) -> None:
        first, total, etag = 0, len(content), hashlib.sha1(content).hexdigest()
        wanted = self.headers.get("Range")
        if wanted:
            self.server.ranges.append(wanted)
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, content = int(start), content[: int(end) + 1] if end else content
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{total}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if not body:
            return
        limit = self.server.cut.pop(path.rsplit("/", maxsplit=1)[-1], None)
        self.wfile.write(content[first:] if limit is None else content[first : first + limit])
        self.wfile.flush()
        if limit is not None:
            self.close_connection = True


@contextmanager
def serve(root: Path) -> Iterator[HubServer]:
    """A running server over the repositories in `root`."""
    server = HubServer(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
