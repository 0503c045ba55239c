"""Errors in the body that Anthropic's clients read. Knows no exception but ApiError: the table is in `platform/errors`.

The statuses are this API's own, 503 instead of Anthropic's 529 among them: proxies know it, and clients try again after
`retry-after` seconds in any case.
"""

from __future__ import annotations

from typing import Any

from loraplex.platform.errors import ApiError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status. Of the others, the client's are an `invalid_request_error`, the server's an `api_error`."""

TOO_LONG = "prompt is too long"
"""By these words agents know that it is time to shorten their conversation."""

ERROR_SCHEMA = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {"enum": ["invalid_request_error", *TYPES.values(), "api_error"]},
                "message": {"type": "string", "description": "What is wrong, where, and what to do about it."},
                "details": {"description": "For programs, where the API has some for this error."},
            },
        },
        "request_id": {"type": "string", "description": "As in the header `request-id`."},
    },
}


def error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """The field at fault, which has no place of its own, is named by the message."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if error.code == "context_length_exceeded":
        message = f"{TOO_LONG}: {message}"
    elif error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    told = {"type": kind, "message": message}
    with_details = told if error.details is None else {**told, "details": error.details}
    return {"type": "error", "error": with_details, "request_id": request_id}
