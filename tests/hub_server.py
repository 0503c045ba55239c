"""A Hugging Face hub as a client sees one: resolve URLs, a redirect to another host for weights, ranges, and faults."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIGNATURE = "X-Amz-Signature=5ec2e7"
"""Stands in the URLs of the content server, as a secret does in real ones."""

_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/]+)")


@dataclass
class Hub:
    """What it has and how it misbehaves. `token`: what private repositories ask for.

    failures: statuses of the next answers of the hub itself. cuts: after how many bytes the next answers of the content
    server break off. proceed: while it is clear, the content server stops half-way. sha256: told, true or not.
    """

    url: str = ""
    content_url: str = ""
    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    token: str = "hf_tokenofthetests"
    failures: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    proceed: threading.Event = field(default_factory=threading.Event)
    redirect: str | None = None
    sha256: str | None = None
    asked: list[tuple[str, Message]] = field(default_factory=list)

    def add(self, repo: str, folder: Path, commit: str = COMMIT, branch: str = "main") -> None:
        """Let the repository have the files of a PEFT folder at this commit, which the branch stands for."""
        self.repos[repo, commit] = {path.name: path.read_bytes() for path in folder.glob("adapter_*")}
        self.branches[repo, branch] = commit

    def content(self, digest: str) -> bytes:
        files = (data for repo in self.repos.values() for data in repo.values())
        return next(data for data in files if hashlib.sha256(data).hexdigest() == digest)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.hub.asked.append((self.path, self.headers))
        if self.path.startswith("/content/"):
            self.send_content(self.path.removeprefix("/content/").partition("?")[0])
        elif self.hub.failures:
            self.answer(self.hub.failures.pop(0), {"Retry-After": "7"})
        elif match := _RESOLVE.fullmatch(self.path):
            self.resolve(match[1], unquote(match[2]), match[3])
        else:
            self.answer(404)

    def resolve(self, repo: str, revision: str, file: str) -> None:
        if repo in self.hub.moved:
            return self.answer(307, {"Location": f"/{self.hub.moved[repo]}/resolve/{revision}/{file}"})
        if repo in self.hub.private and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            return self.answer(401)
        commit = self.hub.branches.get((repo, revision), revision)
        data = self.hub.repos.get((repo, commit), {}).get(file)
        if data is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        told = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if file.endswith(".json"):
            return self.answer(200, told, data)
        digest = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{self.hub.sha256 or digest}"'}
        location = self.hub.redirect or f"{self.hub.content_url}/content/{digest}?{SIGNATURE}"
        self.answer(302, {**told, **linked, "Location": location})

    def send_content(self, digest: str) -> None:
        data, status, headers = self.hub.content(digest), 200, {"ETag": f'"{digest}"'}
        if ranged := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, total = int(ranged[1]), len(data)
            data, status = data[start:], 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        cut = self.hub.cuts.pop(0) if self.hub.cuts else None
        self.answer(status, headers, data, cut)

    def answer(
        self, status: int, headers: dict[str, str] | None = None, data: bytes = b"", cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        half = len(data) // 2
        if cut is not None:
            self.wfile.write(data[:cut])
            self.close_connection = True
            return
        self.wfile.write(data[:half])
        self.wfile.flush()
        if self.path.startswith("/content/"):
            self.hub.proceed.wait(30)
        self.wfile.write(data[half:])


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is none of our faults."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Two servers on loopback: the hub, and the host that has the content."""
    hub = Hub()
    hub.proceed.set()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    hub.url, hub.content_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.proceed.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
