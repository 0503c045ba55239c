"""Receive files from a multipart request, straight to disk, hashed and bounded on the way.

Nothing is held in memory beyond one block, nothing is written twice, and no name that the client sent becomes a path.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from anyio import to_thread
from litestar import Request
from litestar.exceptions import HTTPException, InternalServerException
from multipart import (  # type: ignore[import-untyped]  # it has no annotations
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from loraplex.platform.errors import ApiError

FRAMING_BYTES = 64 << 10
BLOCK_BYTES = 1 << 20
IDLE_SECONDS = 60
CLOSE = {"connection": "close"}
ADAPTER_FORM = "two files: `config` (adapter_config.json) and `weights` (adapter_model.safetensors)"


@dataclass(frozen=True)
class PartTarget:
    """Where a part goes and how large it may be."""

    path: Path
    max_bytes: int
    required: bool = True


@dataclass(frozen=True)
class ReceivedPart:
    """`filename`: as the client has it; it means nothing here."""

    size_bytes: int
    sha256: str
    filename: str | None = None


class UploadSink:
    """Feed it the body block by block; it writes each part to its target. A context manager that closes the files.

    form: what is to be sent, for messages.
    """

    def __init__(self, boundary: str, targets: dict[str, PartTarget], form: str = ADAPTER_FORM) -> None:
        self.received: dict[str, ReceivedPart] = {}
        self._targets = targets
        self._form = form
        self._parser = PushMultipartParser(boundary, max_segment_count=len(targets))
        self._part = ""
        self._filename: str | None = None
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._stack = ExitStack()

    def __enter__(self) -> UploadSink:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def feed(self, block: bytes) -> None:
        """Raises ApiError for a part that is unknown, repeated or too large, and for a body that is not multipart."""
        try:
            for event in self._parser.parse(block):
                if isinstance(event, MultipartSegment):
                    self._open_part(event.name)
                    self._filename = event.filename
                elif event is None:
                    self._finish_part()
                else:
                    self._write(event)
        except ParserLimitReached as error:
            raise ApiError(413, "request_too_large", f"The upload was refused: {error}.", headers=CLOSE) from error
        except MultipartError as error:
            raise _malformed(str(error)) from error

    def finish(self) -> dict[str, ReceivedPart]:
        """The parts by name. Raises ApiError when the body ended early or a part is missing."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise _malformed("it ended too early; send it again") from error
        for name, target in self._targets.items():
            if target.required and name not in self.received:
                message = f"The upload has no part `{name}`. Send {self._form}."
                raise ApiError(400, "missing_required_parameter", message, param=name)
        return self.received

    def _open_part(self, name: str) -> None:
        if name not in self._targets:
            expected = " and ".join(f"`{part}`" for part, target in self._targets.items() if target.required)
            message = f"The upload has a part `{name[:100]}` that is not known here. Send {expected}."
            raise ApiError(400, "unknown_parameter", message, param=name[:100], headers=CLOSE)
        if name in self.received:
            raise ApiError(400, "invalid_value", f"The upload has the part `{name}` twice.", param=name, headers=CLOSE)
        self._part = name
        self._file = self._stack.enter_context(self._targets[name].path.open("xb"))
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def _write(self, data: bytes | bytearray) -> None:
        assert self._file is not None
        self._size_bytes += len(data)
        if self._size_bytes > self._targets[self._part].max_bytes:
            raise _too_large(self._part, self._targets[self._part].max_bytes)
        self._hash.update(data)
        self._file.write(data)

    def _finish_part(self) -> None:
        assert self._file is not None
        self._file.close()
        self.received[self._part] = ReceivedPart(self._size_bytes, self._hash.hexdigest(), self._filename)


class UploadSlots:
    """Bounds the uploads that one tenant has under way, and with them its share of the staging disk."""

    def __init__(self, per_tenant: int) -> None:
        self._per_tenant = per_tenant
        self._taken: Counter[str] = Counter()

    @contextmanager
    def take(self, tenant_id: str) -> Iterator[None]:
        """Raises ApiError 429 when the tenant has all its slots in use."""
        if self._taken[tenant_id] >= self._per_tenant:
            message = f"You have {self._per_tenant} uploads under way, the most allowed. Try again when one has ended."
            raise ApiError(429, "too_many_uploads", message, type="requests", headers={"retry-after": "5", **CLOSE})
        self._taken[tenant_id] += 1
        try:
            yield
        finally:
            self._taken[tenant_id] -= 1
            if not self._taken[tenant_id]:
                del self._taken[tenant_id]


async def receive_parts(
    request: Request[Any, Any, Any], targets: dict[str, PartTarget], form: str = ADAPTER_FORM
) -> dict[str, ReceivedPart]:
    """Stream the request's parts to their targets. form: what is to be sent, for messages.

    Raises ApiError: 413 when too large (before reading, where Content-Length tells), 415 when not multipart, 400 when
    malformed, cut off, or not the parts that were asked for. Files that were begun stay for the caller to drop.
    """
    limit = FRAMING_BYTES + sum(target.max_bytes for target in targets.values())
    if (content_length(request) or 0) > limit:
        raise _too_large("upload", limit)
    with UploadSink(_boundary(request, form), targets, form) as sink:
        received_bytes = 0
        async for block in blocks(request):
            received_bytes += len(block)
            if received_bytes > limit:
                raise _too_large("upload", limit)
            await to_thread.run_sync(sink.feed, block)
        return sink.finish()


async def blocks(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """The body in pieces of about BLOCK_BYTES, so that few of them cross to the thread that writes.

    When the body stalls or breaks off, what came of it is yielded before ApiError 408 or 400 is raised.
    """
    block = bytearray()
    stream = aiter(request.stream())
    try:
        while chunk := await _next_chunk(stream):
            block += chunk
            if len(block) >= BLOCK_BYTES:
                yield bytes(block)
                block.clear()
    except ApiError:
        if block:
            yield bytes(block)
        raise
    if block:
        yield bytes(block)


async def _next_chunk(stream: AsyncIterator[bytes]) -> bytes:
    try:
        async with asyncio.timeout(IDLE_SECONDS):
            return await anext(stream, b"")
    except TimeoutError as error:
        raise ApiError(408, "upload_stalled", f"Nothing came for {IDLE_SECONDS} seconds.", headers=CLOSE) from error
    except InternalServerException as error:
        raise _malformed("the connection was closed before its end") from error


def content_length(request: Request[Any, Any, Any]) -> int | None:
    """What the request announces, if that is a number."""
    try:
        return request.content_length
    except HTTPException:
        return None


def _boundary(request: Request[Any, Any, Any], form: str) -> str:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = str(options.get("boundary", ""))
    if kind != "multipart/form-data" or not 0 < len(boundary) <= 70:
        message = f"Send multipart/form-data with {form}."
        raise ApiError(415, "unsupported_media_type", message, headers=CLOSE)
    return boundary


def _too_large(part: str, limit_bytes: int) -> ApiError:
    message = f"The part `{part}` is larger than {limit_bytes} bytes, which is the most this server accepts."
    return ApiError(413, "request_too_large", message, param=part, headers=CLOSE)


def _malformed(reason: str) -> ApiError:
    return ApiError(400, "invalid_upload", f"The upload could not be read: {reason}.", headers=CLOSE)
