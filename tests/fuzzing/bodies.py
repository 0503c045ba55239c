"""Bodies of requests with the headers that say what they are: JSON, forms and raw bytes, right and damaged.

Knows HTTP. Knows no operation.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from typing import Any

from fuzzing.pools import TEXTS
from fuzzing.values import documents, encodings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Known = dict[str, Sequence[Any]]
"""By the name of a parameter or a field: what there is on the server."""

Body = tuple[bytes | None, dict[str, bytes]]
"""Its bytes and its headers."""

_TYPES = (
    b"application/json; charset=utf-8", b"application/json; charset=utf-16", b"application/json;", b"text/plain", b"",
    b"application/xml",
    b"application/x-www-form-urlencoded", b"multipart/form-data", b"multipart/form-data; boundary=x",
    b"application/msgpack", b"\xff/\xfe", b"a" * 2000,
    b"application/problem+json", b"application/json, text/plain", b";;;", b"application/json; charset=nonsense",
    b'application/json; charset="', b"*/*",
)  # fmt: skip
_GARBAGE = (
    b"",
    b"\x00",
    b"null",
    b"[]",
    b'""',
    b"1",
    b"\xff\xfe{\x00}\x00",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"--b0undary--\r\n",
    b"a=b&c=d",
    b"\x1f\x8b\x08\x00",
    b"9" * 5000,
    b"-",
    b'{"\x00": 1}',
    b'{"model": "\\ud800"}',
)
_ENCODED = (
    (b"gzip", gzip.compress), (b"deflate", zlib.compress), (b"gzip", bytes), (b"deflate", bytes), (b"br", bytes),
    (b"gzip, gzip", gzip.compress),
    (b"identity", bytes), (b"", bytes), (b"\xff", bytes), (b"gzip", lambda body: gzip.compress(body)[:-3]), (b"gzip",
    lambda body: gzip.compress(body) + b"x"),
    (b"gzip", lambda body: gzip.compress(b" " * 9_000_000 + body)), (b"deflate", lambda body: zlib.compress(body)[2:]),
)  # fmt: skip


def json_bodies(struct: type, known: Known) -> SearchStrategy[Body]:
    written = st.tuples(documents(struct, known), encodings()).map(lambda pair: pair[1](pair[0]))
    plain = st.tuples(written, st.just({"content-type": b"application/json"}))
    mistyped = st.tuples(written, st.sampled_from(_TYPES).map(lambda kind: {"content-type": kind}))
    encoded = st.tuples(written, st.sampled_from(_ENCODED)).map(
        lambda pair: (pair[1][1](pair[0]), {"content-type": b"application/json", "content-encoding": pair[1][0]})
    )
    garbage = st.tuples(
        st.sampled_from(_GARBAGE) | st.binary(max_size=40), st.just({"content-type": b"application/json"})
    )
    nothing: Body = (None, {})
    return st.integers(0, 19).flatmap(
        lambda dice: (
            plain
            if dice < 16
            else mistyped
            if dice == 16
            else encoded
            if dice == 17
            else garbage
            if dice == 18
            else st.just(nothing)
        )
    )


_FIELD_VALUES = (
    b"batch",
    b"created_at",
    b"3600",
    b"0",
    b"",
    b"\xff",
    b"9" * 60,
    b"9" * 100,
    b"\x00",
    b"-1",
    b"assistants",
    b"\xd9\xa3" * 4,
)
_FILE_NAMES = (
    '"a.jsonl"',
    '""',
    '"' + "x" * 400 + '"',
    '"\x00"',
    '"é👩.jsonl"',
    '"../../x"',
    '"a\\"b"',
    "a b",
    '"',
    "*=utf-8''%ff",
    '"%00"',
)
_DAMAGE = (
    lambda form: form, lambda form: form, lambda form: form, lambda form: form[:-6],
    lambda form: form[: len(form) // 2], lambda form: form + form, lambda form: b"",
    lambda form: b"x" + form, lambda form: form.replace(b"\r\n", b"\n"), lambda form: form.replace(b"form-data",
    b"attachment"), lambda form: form.replace(b"name=", b"nam="),
    lambda form: form + b"\x00" * 100, lambda form: form.replace(b"Content-Disposition", b"X" * 9000),
    lambda form: form.replace(b"\r\n\r\n", b"\r\n"),
)  # fmt: skip
_FORM_TYPES = (
    "multipart/form-data; boundary=b0undary", 'multipart/form-data; boundary="b0undary"', "multipart/form-data",
    "multipart/form-data; boundary=", "multipart/mixed; boundary=b0undary",
    "multipart/form-data; boundary=other", "multipart/form-data; boundary=" + "b" * 71,
    "multipart/form-data; boundary=\xe9", "application/json", "", "multipart/form-data; boundary=b0undary; boundary=x",
)  # fmt: skip


def forms(parts: tuple[str, ...], files: dict[str, bytes]) -> SearchStrategy[Body]:
    @st.composite
    def form(draw: st.DrawFn) -> Body:
        names = [name for name in parts if name in files or draw(st.integers(0, 4)) == 0]
        change = draw(st.integers(0, 5))
        if change == 0:
            names.append(draw(st.sampled_from([*parts, *TEXTS[:24]])))
        elif change == 1 and names:
            names.remove(draw(st.sampled_from(names)))
        content = b""
        for name in names:
            right = files.get(name, b"")
            value = draw(
                st.sampled_from([right, right, right, right[: len(right) // 2], right + b"\x00", *_FIELD_VALUES])
                | st.binary(max_size=30)
            )
            disposition = f'form-data; name="{name}"; filename={draw(st.sampled_from(_FILE_NAMES))}'
            content += b"--b0undary\r\nContent-Disposition: " + as_bytes(disposition) + b"\r\n\r\n" + value + b"\r\n"
        damaged = draw(st.sampled_from(_DAMAGE))(content + b"--b0undary--\r\n")
        return damaged, {
            "content-type": draw(st.sampled_from([_FORM_TYPES[0]] * 20 + list(_FORM_TYPES))).encode("latin-1")
        }

    return form()


def raw_bodies(kind: str) -> SearchStrategy[Body]:
    types = st.sampled_from([kind.encode()] * 8 + list(_TYPES)).map(lambda value: {"content-type": value})
    return st.tuples(st.sampled_from([b"", b"0" * 10, b"x", b"0" * 11, b"0" * 100_000]) | st.binary(max_size=20), types)


def as_bytes(value: Any) -> bytes:
    return str(value).encode("utf-8", errors="surrogatepass")
