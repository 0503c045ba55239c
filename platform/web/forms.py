"""Forms of pages: their fields, bounded, and read into the bodies that the API takes for the same thing.

Not Litestar's way: it keeps the last thousand forms, with the passwords in them, in memory.
"""

from __future__ import annotations

from typing import Any, TypeVar, get_origin, get_type_hints
from urllib.parse import parse_qs

import msgspec
from litestar import Request
from litestar.enums import RequestEncodingType

from loraplex.platform.errors import ApiError

CSRF_FIELD = "_csrf"
VERBATIM = frozenset({"password", "current"})
"""Fields whose white space counts."""
MAX_FORM_BYTES = 64 << 10
MAX_FIELDS = 200

Fields = dict[str, list[str]]
T = TypeVar("T", bound=msgspec.Struct)


async def form_fields(request: Request[Any, Any, Any]) -> Fields:
    """Each field's values, white space around them left out. Raises ApiError for what no page of ours sends."""
    if request.content_type[0] != RequestEncodingType.URL_ENCODED:
        raise ApiError(415, "unsupported_media_type", "Pages send their forms as application/x-www-form-urlencoded.")
    length = request.headers.get("content-length", "")
    if not (length.isdigit() and len(length) < 10 and int(length) <= MAX_FORM_BYTES):
        raise ApiError(413, "request_too_large", f"Forms have at most {MAX_FORM_BYTES} bytes, and say how many.")
    try:
        body = (await request.body()).decode("ascii")
        fields = parse_qs(body, keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS) if body else {}
    except ValueError as error:
        raise ApiError(400, "invalid_form", "The form cannot be read: it is not URL-encoded UTF-8.") from error
    return {
        name: values if name in VERBATIM else [value.strip() for value in values] for name, values in fields.items()
    }


def read_form(fields: Fields, target: type[T]) -> T:
    """The fields as a body of the API: one that is empty is left out, and a list has all that came under its name.

    Raises msgspec.ValidationError, which names the field.
    """
    hints = get_type_hints(target)
    given: dict[str, Any] = {}
    for name, values in fields.items():
        kept = [value for value in values if value]
        if name != CSRF_FIELD and kept:
            given[name] = kept if get_origin(hints.get(name)) is list else kept[0]
    return msgspec.convert(given, target, strict=False)


def only(fields: Fields, name: str) -> str:
    """The field's one value, "" where there is none."""
    return next(iter(fields.get(name, [])), "")
