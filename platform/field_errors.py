"""What is wrong with which field, out of msgspec's messages. Knows their wording; knows no HTTP."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_PARAM_CHARS = 100
"""Of a name that the client made up."""

_AT_PATH = re.compile(r" - at `(?:key` in `)?\$\.?(.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.+)`$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.+)`$", re.DOTALL)
_WRONG_TYPE = re.compile(r"Expected `[^`]+`, got `[^`]+`$")


class FieldError(NamedTuple):
    """`param`: the field's path; None for the body as a whole."""

    code: str
    message: str
    param: str | None


def field_error(message: str, path: str = "") -> FieldError:
    """From msgspec's message and, where that does not hold it, the field's path."""
    if at_path := _AT_PATH.search(message):
        message, path = message[: at_path.start()], at_path[1]
    if missing := _MISSING.match(message):
        param = _join(path, missing[1])
        return FieldError("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    if unknown := _UNKNOWN.match(message):
        param = _join(path, unknown[1])[:MAX_PARAM_CHARS]
        return FieldError("unknown_parameter", f"Unknown parameter: '{param}'.", param)
    code = "invalid_type" if _WRONG_TYPE.match(message) else "invalid_value"
    where = f"'{path}'" if path else "the request body"
    return FieldError(code, f"Invalid value for {where}: {message}.", path or None)


def _join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field
