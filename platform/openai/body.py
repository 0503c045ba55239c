"""Request bodies from bytes, strictly: the right types, no unknown field, and nothing asked for that is not served.

Knows no body: `*_types` have what is served, `unserved` what is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from loraplex.platform.content_encoding import content_encoding, decompress
from loraplex.platform.errors import ApiError, malformed_json

T = TypeVar("T")


class PreparedBody(msgspec.Struct, frozen=True):
    """A body whose JSON is looked at as a whole before its types are."""

    @classmethod
    def prepare(cls, document: dict[str, Any]) -> None:
        """Leave out what says nothing. Raises ApiError for what is not served."""


def read_body(body: bytes, target: type[T]) -> T:
    """JSON to `target`, strictly: no "1" for 1. Raises ApiError or msgspec.ValidationError, which name the field, and
    msgspec.DecodeError for what is no JSON."""
    try:
        document = msgspec.json.decode(body)
    except (RecursionError, UnicodeDecodeError) as error:
        nested = isinstance(error, RecursionError)
        raise malformed_json("it is nested too deeply" if nested else "it is not UTF-8") from error
    if isinstance(document, dict) and issubclass(target, PreparedBody):
        target.prepare(document)
    return msgspec.convert(document, target, str_keys=True)  # the keys of a JSON object are strings


def drop_unserved(
    fields: dict[str, Any],
    unserved: Mapping[str, tuple[Any, ...]],
    path: str,
    *,
    served: tuple[str, ...] = (),
    instead: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Take out what asks for nothing. Raises ApiError for what asks for something that is not served.

    unserved: the values of each field that ask for nothing. path: before the names. served: fields that are left alone.
    instead: what to do about a field, where leaving it out is not all.
    """
    for field, neutral in unserved.items():
        if field in fields and field not in served and fields.pop(field) not in neutral:
            param = path + field
            remedy = instead.get(field, "Leave it out.")
            message = f"Unsupported parameter: '{param}' is not supported by this server. {remedy}"
            raise ApiError(400, "unsupported_parameter", message, param=param)


def objects_in(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Those of a list, each with its place. What is no list has none: its types will be refused."""
    for index, entry in enumerate(value if isinstance(value, list) else ()):
        if isinstance(entry, dict):
            yield index, entry


class JsonRequest(Request[Any, Any, Any]):
    """Reads a handler's `data: JSONBody[...]` with `read_body`; Litestar's own way turns "1" into 1. The bound on
    bodies holds for what was sent and, where that is compressed, for what is in it."""

    async def json(self) -> Any:
        data_field = self.route_handler.parsed_data_field
        assert data_field is not None
        encoding = content_encoding(self.headers.getall("content-encoding", []))
        try:
            if encoding is None:
                body = await self.body()
            else:
                most = self.route_handler.resolve_request_max_body_size()
                body = await decompress(self.stream(), encoding, sys.maxsize if most is None else most)
        except InternalServerException as error:
            raise ApiError(499, "client_closed_request", "The client went away before its request was read.") from error
        return read_body(body, data_field.annotation)
