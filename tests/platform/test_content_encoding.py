"""Compressed bodies are read as if they were not, and cannot take more memory than a plain one may."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraplex.platform.content_encoding import content_encoding, decompress
from loraplex.platform.errors import ApiError

COMPRESS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}
LIMIT = 1 << 16


def opened(body: bytes, encoding: str, piece_bytes: int = 1000, limit: int = LIMIT) -> bytes:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), piece_bytes):
            yield body[start : start + piece_bytes]
        yield b""

    return anyio.run(decompress, pieces(), encoding, limit)


def refusal(body: bytes, encoding: str = "gzip", **options: int) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as error:
        opened(body, encoding, **options)
    return error.value.status, error.value.code


@given(content=st.binary(max_size=4000), encoding=st.sampled_from(sorted(COMPRESS)), piece_bytes=st.integers(1, 5000))
def test_content_comes_back_however_it_is_cut(content: bytes, encoding: str, piece_bytes: int) -> None:
    """Up to exactly as many bytes as are allowed; with one more it is too large."""
    body = COMPRESS[encoding](content)

    assert opened(body, encoding, piece_bytes, len(content)) == content
    assert refusal(COMPRESS[encoding](content + b"!"), encoding, limit=len(content)) == (413, "request_too_large")


@given(body=st.binary(max_size=300), cut=st.integers(0, 40), encoding=st.sampled_from(sorted(COMPRESS)))
def test_damaged_bodies_are_refused(body: bytes, cut: int, encoding: str) -> None:
    """Noise, an end that is missing, and bytes behind the end: each is a 400, none a crash."""
    whole = COMPRESS[encoding](body)
    damaged = (400, "invalid_content_encoding")

    assert refusal(whole[: len(whole) - 1 - cut % len(whole)], encoding) == damaged
    assert refusal(whole + b"\0" + body, encoding, piece_bytes=7) == damaged
    assert refusal(whole + b"\0", encoding, piece_bytes=len(whole)) == damaged
    assert refusal(b"{" + body, encoding) == damaged


def test_a_bomb_takes_no_memory() -> None:
    """A thousand times what is allowed, in a few kilobytes."""
    bomb = gzip.compress(b"\0" * (LIMIT * 1000))
    tracemalloc.start()
    try:
        assert refusal(bomb, piece_bytes=1 << 20) == (413, "request_too_large")
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("values", [[], [""], ["identity"], ["Identity, identity"]])
def test_no_encoding_is_none(values: list[str]) -> None:
    """Nor is identity one."""
    assert content_encoding(values) is None


@pytest.mark.parametrize("values", [["br"], ["gzip, gzip"], ["gzip", "deflate"], ["\N{SNOWMAN}" * 9999]])
def test_an_encoding_that_is_not_served_is_a_415(values: list[str]) -> None:
    """It says which are."""
    with pytest.raises(ApiError) as error:
        content_encoding(values)
    assert (error.value.status, error.value.headers) == (415, {"accept-encoding": "gzip, deflate"})
