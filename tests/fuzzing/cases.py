"""Requests to every operation of an application: bodies, forms, headers, queries and paths, right and wrong ones.

Knows HTTP and how the application's routes say what they read. Knows no operation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fuzzing.bodies import Body, Known, as_bytes, forms, json_bodies, raw_bodies
from fuzzing.pools import NAMES, NUMBERS, TEXTS
from fuzzing.values import odd_ones
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from litestar import Litestar


@dataclass(frozen=True)
class Operation:
    """As the routes have it. struct: of its JSON body. form: of a multipart body, its parts. raw: the body's type."""

    method: str
    path: str
    scope: str | None
    struct: type | None = None
    parts: tuple[str, ...] = ()
    raw: str | None = None
    parameters: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    @property
    def path_names(self) -> list[str]:
        return [part[1:-1].partition(":")[0] for part in self.path.split("/") if part.startswith("{")]

    @property
    def can_be_wrong(self) -> bool:
        """Whether the document forbids any request; every text may stand in a path."""
        checked = [p for p in self.parameters if p["in"] != "path" or p["schema"].get("type") != "string"]
        return self.reads_body or bool(checked)

    @property
    def reads_body(self) -> bool:
        return bool(self.struct or self.parts or self.raw)


@dataclass(frozen=True)
class Sent:
    """One request. who: whose key, None for none."""

    operation: Operation
    target: str
    who: str | None
    headers: dict[str, bytes] = field(default_factory=dict)
    body: bytes | None = None

    @property
    def plain_json(self) -> bytes | None:
        return self.body if self.headers.get("content-encoding", b"identity") == b"identity" else None

    def __str__(self) -> str:
        body = "" if self.body is None else f" {self.body[:2000]!r}"
        return f"{self.operation.method.upper()} {self.target} as {self.who or 'nobody'} {self.headers}{body}"


def operations_of(app: Litestar, document: dict[str, Any]) -> list[Operation]:
    """Of all routes that the document has."""
    found = []
    for route in app.routes:
        for handler in getattr(route, "route_handlers", []):
            if not handler.resolve_include_in_schema():
                continue
            data, form = handler.parsed_data_field, handler.opt.get("request_body", {})
            parts = form.get("multipart/form-data", {}).get("schema", {}).get("properties", {})
            raw = next((kind for kind in form if kind != "multipart/form-data"), None)
            for method in sorted(handler.http_methods - {"OPTIONS"}):
                described = document["paths"][route.path_format][method.lower()]
                found.append(
                    Operation(
                        method.lower(),
                        route.path_format,
                        handler.opt.get("scope"),
                        None if data is None else data.annotation,
                        tuple(parts),
                        raw,
                        tuple(described.get("parameters", ())),
                    )
                )
    return found


def requests_to(operation: Operation, known: Known, files: dict[str, bytes]) -> SearchStrategy[Sent]:
    """files: by the name of a form's part, what is right there."""
    body: SearchStrategy[Body] = st.just((None, {}))
    if operation.struct is not None:
        body = json_bodies(operation.struct, known)
    elif operation.parts:
        body = forms(operation.parts, files)
    elif operation.raw is not None:
        body = raw_bodies(operation.raw)

    @st.composite
    def made(draw: st.DrawFn) -> Sent:
        path, query, headers = draw(_paths(operation, known)), [], {}
        for parameter in operation.parameters:
            where, name = parameter["in"], parameter["name"]
            if where == "path" or not (parameter.get("required") or draw(st.integers(0, 2)) == 0):
                continue
            value = draw(_parameter_values(name, known))
            if where == "query":
                query.append(f"{quote(name)}={quote(as_bytes(value), safe='')}")
            else:
                headers[name.lower()] = _header(value)
        content, content_headers = draw(body)
        target = path + ("?" + "&".join(query) if query else "")
        return Sent(operation, target, draw(_callers(operation)), {**headers, **content_headers}, content)

    return made()


def odd_requests_to(operation: Operation, known: Known) -> Iterator[Sent]:
    """As its owner, to what there is: a body for each odd value of each field, and each odd value of each parameter."""
    there = {name: quote(str(_own(operation, name, known)[0]), safe="") for name in operation.path_names}
    path = _filled(operation, there)
    who = _owner(operation)
    if operation.struct is not None:
        for document in odd_ones(operation.struct, known):
            body = json.dumps(document).encode()
            yield Sent(operation, path, who, {"content-type": b"application/json"}, body)
    for parameter in operation.parameters:
        name = parameter["name"]
        for value in dict.fromkeys([*_PARAMETERS, *_ODD_SEGMENTS]):
            quoted = quote(as_bytes(value), safe="")
            if parameter["in"] == "query":
                yield Sent(operation, f"{path}?{quote(name)}={quoted}", who)
            elif parameter["in"] == "path" and quoted:
                yield Sent(operation, _filled(operation, there | {name: quoted}), who)


# -- who, where ----------------------------------------------------------------------------------------------------


def _owner(operation: Operation) -> str:
    return "operator" if operation.scope == "admin" else "acme"


def _own(operation: Operation, name: str, known: Known) -> Sequence[Any]:
    """What there is of a parameter of the path."""
    return known.get(f"{operation.path.split('/')[-2]}/{name}", known.get(name, ("1",)))


def _filled(operation: Operation, values: dict[str, str]) -> str:
    parts = operation.path.split("/")
    return "/".join(values[part[1:-1].partition(":")[0]] if part.startswith("{") else part for part in parts)


def _callers(operation: Operation) -> SearchStrategy[str | None]:
    owner = _owner(operation)
    return st.sampled_from([owner] * 16 + ["acme", "operator", "globex", None])


_ODD_SEGMENTS = (
    *TEXTS,
    *NAMES,
    *map(str, NUMBERS[:25]),
    "1" * 5000,
    "1" * 4301,
    "x" * 9000,
    "0",
    "01",
    "+1",
    "1_0",
    "１",
    "1.0",
    "--",
    "*",
    "@",
    "a@b",
    "%",
)


def _paths(operation: Operation, known: Known) -> SearchStrategy[str]:
    parts = operation.path.split("/")

    def segment(part: str) -> SearchStrategy[str]:
        if not part.startswith("{"):
            return st.just(part)
        name = part[1:-1].partition(":")[0]
        own = [str(value) for value in _own(operation, name, known)]
        others = [str(value) for values in known.values() for value in values]
        value = st.integers(0, 9).flatmap(
            lambda dice: (
                st.sampled_from(own if dice < 7 else others if dice == 7 else _ODD_SEGMENTS)
                if dice < 9
                else st.text(max_size=6)
            )
        )
        return value.filter(bool).map(lambda text: quote(as_bytes(text), safe=""))

    return st.tuples(*map(segment, parts)).map("/".join)


_PARAMETERS = (
    *TEXTS,
    *map(str, NUMBERS),
    "true",
    "false",
    "yes",
    "asc",
    "desc",
    "batch",
    "1e3",
    "nan",
    "inf",
    "1" * 5000,
)
_HEADER_VALUES: dict[str, tuple[str, ...]] = {
    "Upload-Offset": ("0", "0", "0", "0", "10", "1", "9" * 30, "-1", "1.5", "", "9" * 5000, "+0", "00", "٠"),
    "Idempotency-Key": ("a", "c", "d", "e", "f", '"a"', "b", "x" * 64, "x" * 65, "", '"', '""', "é", 'a"b', "\x7f"),
    "If-Match": (
        '"1"',
        '"1"',
        '"2"',
        '"3"',
        '"4"',
        "1",
        "*",
        '"0"',
        '"999999999"',
        '"9999999999"',
        'W/"1"',
        '"1", "2"',
        "",
        '"x"',
        "²",
    ),
    "If-None-Match": ("*", "*", '"1"', "", "**", "1"),
}


def _parameter_values(name: str, known: Known) -> SearchStrategy[Any]:
    right = _HEADER_VALUES.get(name) or (*known.get(name, ()), "1", "20")
    return st.integers(0, 2).flatmap(lambda dice: st.sampled_from(right if dice else _PARAMETERS))


def _header(value: Any) -> bytes:
    """A value that clients can put on the wire."""
    return as_bytes(value).replace(b"\r", b"").replace(b"\n", b"").replace(b"\x00", b"").strip()
