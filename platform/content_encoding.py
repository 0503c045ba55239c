"""Request bodies that were sent compressed, opened piece by piece, so that a small one cannot become a large one.

Knows gzip and deflate. Knows no request and no content.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterable

from loraplex.platform.errors import ApiError

_WBITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""deflate is zlib's format (RFC 9110, 8.4.1.2)."""


def content_encoding(values: Iterable[str]) -> str | None:
    """The encoding that the headers Content-Encoding name, None for none. Raises ApiError 415 for one not served."""
    names = [name for value in values for part in value.split(",") if (name := part.strip().lower())]
    names = [name for name in names if name != "identity"]
    if not names:
        return None
    if len(names) > 1 or names[0] not in _WBITS:
        shown = ascii(", ".join(names)[:64])
        message = f"The Content-Encoding {shown} is not supported here; send gzip, deflate or none."
        headers = {"accept-encoding": "gzip, deflate"}
        raise ApiError(415, "unsupported_content_encoding", message, headers=headers)
    return names[0]


async def decompress(pieces: AsyncIterator[bytes], encoding: str, max_bytes: int) -> bytes:
    """The content. Takes memory for `max_bytes` of it and no more, whatever is sent.

    encoding: of `content_encoding`. Raises ApiError: 413 for larger content, 400 for bytes that are not of that
    encoding, end too soon, or go on after the end.
    """
    decompressor = zlib.decompressobj(_WBITS[encoding])
    opened: list[bytes] = []
    room = max_bytes
    async for piece in pieces:
        if decompressor.eof and piece:
            raise _broken(encoding, "there are more bytes after its end")
        try:
            content = decompressor.decompress(piece, room + 1)  # 0 would mean no bound
        except zlib.error:
            raise _broken(encoding, "it is damaged, or something else") from None
        room -= len(content)
        if room < 0:
            message = f"What is in the compressed request body is larger than the {max_bytes} bytes accepted here."
            raise ApiError(413, "request_too_large", message)
        if decompressor.unused_data:
            raise _broken(encoding, "there are more bytes after its end")
        opened.append(content)
    if not decompressor.eof:
        raise _broken(encoding, "it ends too soon")
    return b"".join(opened)


def _broken(encoding: str, why: str) -> ApiError:
    return ApiError(400, "invalid_content_encoding", f"The request body is not valid {encoding}: {why}.")
