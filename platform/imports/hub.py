"""Files of a repository on a Hugging Face hub, over the hub's `resolve` URLs.

Knows HTTP. Knows no job and no staging. Requests go to the operator's endpoint and to where that redirects, encrypted
unless the endpoint itself is not; the token goes to the endpoint alone.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

import httpx

from loraplex import __version__
from loraplex.adapters.blobs import CONFIG_FILE
from loraplex.platform.errors import ApiError, unavailable
from loraplex.platform.imports.download import Download
from loraplex.platform.imports.source_names import HubRepo
from loraplex.platform.settings import Settings

TIMEOUT = httpx.Timeout(60, connect=10)
MAX_REDIRECTS = 5
MAX_CONNECTIONS = 5
"""For one file: a connection that breaks is taken up where it broke, as long as each brings something."""

RETRY_SECONDS = 5

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_SIZE = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/[0-9*]{1,18}")


@dataclass
class _Facts:
    """What the hub itself says of a file, before it sends to where the bytes are."""

    commit: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None

    def note(self, headers: httpx.Headers) -> None:
        if match := _COMMIT.fullmatch(headers.get("x-repo-commit", "")):
            self.commit = match[0]
        if match := _SIZE.fullmatch(headers.get("x-linked-size", "")):
            self.size_bytes = int(match[0])
        if match := _SHA256.fullmatch(headers.get("x-linked-etag", "")):
            self.sha256 = match[1]


class HubSource:
    """One repository at one revision. To be used inside `open_hub`."""

    def __init__(self, client: httpx.AsyncClient, endpoint: str, token: str | None, repo: HubRepo) -> None:
        self._client = client
        self._endpoint = httpx.URL(endpoint.rstrip("/") + "/")
        self._token = token
        self._repo = repo

    async def pinned(self) -> HubRepo:
        """The repository at the commit that the revision stands for now. Raises ApiError."""
        try:
            async with self._open(CONFIG_FILE) as (_, facts):
                if facts.commit is None:
                    raise unavailable("source_unavailable", "The hub does not tell the commit.", RETRY_SECONDS)
                return HubRepo(self._repo.repo, facts.commit)
        except httpx.TransportError as error:
            raise _unreachable(error) from error

    async def fetch(self, file: str, download: Download) -> None:
        for _ in range(MAX_CONNECTIONS):
            received_bytes = download.received_bytes
            try:
                return await self._receive(file, download)
            except httpx.TransportError as error:
                failure = error
            if download.received_bytes == received_bytes:
                break
        raise _unreachable(failure) from failure

    async def _receive(self, file: str, download: Download) -> None:
        """The file from where it stands to its end. Raises ApiError, httpx.TransportError."""
        async with self._open(file, download) as (response, facts):
            ranged = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if response.status_code != 206 or ranged is None or int(ranged[1]) != download.received_bytes:
                download.restart()
                if size := _SIZE.fullmatch(response.headers.get("content-length", "")):
                    download.expect(int(size[0]))
            # Raw: what a hub compresses although it was asked not to is none of the files. As it comes, in pieces
            # of at most 64 KiB: what a larger one had gathered would be lost when the connection breaks.
            async for block in response.aiter_raw():
                await download.write(block)
        if download.total_bytes not in (None, download.received_bytes) or facts.sha256 not in (None, download.sha256):
            raise unavailable("source_unavailable", f"{file} came damaged from the hub.", RETRY_SECONDS)

    @asynccontextmanager
    async def _open(self, file: str, download: Download | None = None) -> AsyncIterator[tuple[httpx.Response, _Facts]]:
        """The response that has the bytes, from where the download stands. Raises ApiError, httpx.TransportError."""
        resume = {"range": f"bytes={download.received_bytes}-"} if download and download.received_bytes else {}
        url = self._endpoint.join(f"{self._repo.repo}/resolve/{quote(self._repo.revision, safe='')}/{file}")
        facts = _Facts()
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request("GET", url, headers=resume | self._authorization(url))
            response = await self._client.send(request, stream=True)
            try:
                facts.note(response.headers)
                if download and facts.size_bytes is not None:
                    download.expect(facts.size_bytes)
                if not response.has_redirect_location:
                    self._require_success(response, file)
                    yield response, facts
                    return
                url = self._redirected(response)
            finally:
                await response.aclose()
        raise ApiError(400, "source_refused", f"The hub redirects more than {MAX_REDIRECTS} times.", param="source")

    def _authorization(self, url: httpx.URL) -> dict[str, str]:
        if self._token is None or _origin(url) != _origin(self._endpoint):
            return {}
        return {"authorization": f"Bearer {self._token}"}

    def _redirected(self, response: httpx.Response) -> httpx.URL:
        try:
            url = response.url.join(response.headers["location"])
        except httpx.InvalidURL as error:
            raise ApiError(400, "source_refused", "The hub redirects to what is no URL.", param="source") from error
        if url.scheme != "https" and url.scheme != self._endpoint.scheme:
            raise ApiError(400, "source_refused", "The hub redirects to an unencrypted URL.", param="source")
        own = f"{self._endpoint.path}{self._repo.repo}/resolve/".lower()
        if _origin(url) == _origin(self._endpoint) and "/resolve/" in url.path and not url.path.lower().startswith(own):
            # A repository that was renamed. Where it is now the operator may not allow.
            message = f"{self._repo.place} has moved on the hub. Give the source by the name that it has now."
            raise ApiError(404, "source_not_found", message, param="source")
        return url

    def _require_success(self, response: httpx.Response, file: str) -> None:
        status, source = response.status_code, f"{self._repo}"
        if response.is_success:
            return
        if status in (401, 403):
            message = (
                f"The hub does not give {source}: there is no such repository, or it is private or gated. "
                "For those the operator sets hf_token to a token that may read it."
            )
            raise ApiError(403, "source_forbidden", message, param="source")
        if status in (404, 410):
            message = f"The hub has no {file} in {source}. Check the name, and that PEFT saved it as safetensors."
            raise ApiError(404, "source_not_found", message, param="source")
        if status in (408, 416, 425, 429) or status >= 500:
            seconds = _SIZE.fullmatch(response.headers.get("retry-after", ""))
            raise unavailable(
                "source_unavailable", f"The hub answers {status} now.", int(seconds[0]) if seconds else RETRY_SECONDS
            )
        raise ApiError(400, "source_refused", f"The hub answers {status} for {file} in {source}.", param="source")


@asynccontextmanager
async def open_hub(settings: Settings, repo: HubRepo) -> AsyncIterator[HubSource]:
    """Connections to the hub, closed at the end."""
    token = None if settings.hf_token is None else settings.hf_token.get_secret_value()
    headers = {"accept-encoding": "identity", "user-agent": f"loraplex/{__version__}"}
    async with httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False, headers=headers, verify=_tls()) as client:
        yield HubSource(client, settings.hf_endpoint, token, repo)


@cache
def _tls() -> ssl.SSLContext:
    """Once: it takes tens of milliseconds."""
    return httpx.create_ssl_context()


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _unreachable(error: httpx.TransportError) -> ApiError:
    """Its class alone is told: its text may hold a signed URL."""
    return unavailable("source_unavailable", f"The hub cannot be reached now ({type(error).__name__}).", RETRY_SECONDS)
