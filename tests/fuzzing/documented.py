"""Whether an answer is what the OpenAPI document says. Knows the document and OpenAI's event streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from loraplex.platform.anthropic.routes import MESSAGES_PATH
from loraplex.platform.anthropic.unserved import UNSERVED as OF_MESSAGES
from loraplex.platform.openai.responses import unserved as of_responses
from loraplex.platform.openai.unserved import UNSERVED, UNSERVED_IN_MESSAGES

METHODS = ("get", "head", "post", "put", "patch", "delete")


class Undocumented(AssertionError):
    """An answer that the document does not have."""


class Documented:
    """An OpenAPI document, asked about answers."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._validator = cache(self._validator_of)

    @property
    def operations(self) -> list[tuple[str, str]]:
        """(method, path) of all, as the document has them."""
        return [(method, path) for path, item in self.document["paths"].items() for method in item]

    def check(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Raises Undocumented for a status, content type or body that the operation does not have, and for any 5xx."""
        text = body[:600].decode(errors="replace")
        if status >= 500 and _reason(body) not in ALLOWED_5XX:
            raise Undocumented(f"{status}: {text}")
        if status == 405 and method != "head":
            return self._check_error(path, body)  # of another operation: the path was cut short or has a slash more
        described = self.document["paths"][path][method]["responses"].get(str(status))
        if described is None:
            raise Undocumented(f"the status {status} is not documented: {text}")
        if (
            not headers.get("x-request-id") and _reason(body) != "invalid_request"
        ):  # no request at all, so without an id
            raise Undocumented(f"{status} without x-request-id: {text}")
        content = described.get("content", {})
        if method == "head" or not content:
            if body:
                raise Undocumented(f"{status} has a body: {text}")
            return None
        kind = headers.get("content-type", "").partition(";")[0]
        if kind not in content:
            raise Undocumented(f"{status} is {kind or 'of no type'}, not {' or '.join(content)}: {text}")
        if status >= 400:
            self._check_error(path, body)
        if kind == "application/json":
            self._conform(method, path, str(status), kind, _decoded(body))
        elif kind == "text/event-stream":
            self._check_events(method, path, body)
        return None

    def check_accepted(self, method: str, path: str, body: bytes) -> None:
        """Raises Undocumented where the document forbids a JSON body that was accepted."""
        name = "/".join(map(_pointed, ("paths", path, method, "requestBody", "content", "application/json", "schema")))
        for error in self._validator(f"#/{name}").iter_errors(_decoded(body)):
            if error.validator != "additionalProperties" or not _is_neutral(error):
                raise Undocumented(f"accepted, though at {error.json_path}: {error.message[:300]}")

    def _check_error(self, path: str, body: bytes) -> None:
        schema = "MessagesError" if path.startswith(MESSAGES_PATH) else "Error"
        self._conform_to(f"#/components/schemas/{schema}", _decoded(body))

    def _check_events(self, method: str, path: str, body: bytes) -> None:
        frames = body.decode().split("\n\n")
        if frames.pop() or not frames:
            raise Undocumented(f"the stream ends within an event: {body[-300:]!r}")
        for frame in frames:
            fields = dict(line.partition(": ")[::2] for line in frame.split("\n") if not line.startswith(":"))
            if not set(fields) <= {"event", "data"}:
                raise Undocumented(f"an event has other fields: {frame!r}")
            if fields.get("data") not in (None, "[DONE]"):
                payload = _decoded(fields["data"].encode())
                if (
                    "error" in payload
                    and payload["error"] is not None
                    and payload["error"].get("type") in ("server_error", "api_error")
                ):
                    raise Undocumented(f"the stream failed: {frame!r}")

    def _conform(self, method: str, path: str, status: str, kind: str, value: Any) -> None:
        pointer = "/".join(map(_pointed, ("paths", path, method, "responses", status, "content", kind, "schema")))
        self._conform_to(f"#/{pointer}", value)

    def _conform_to(self, reference: str, value: Any) -> None:
        error = next(iter(self._validator(reference).iter_errors(value)), None)
        if error is not None:
            raise Undocumented(f"at {error.json_path}: {error.message[:300]}")

    def _validator_of(self, reference: str) -> Draft202012Validator:
        return Draft202012Validator({**self.document, "$ref": reference})


ALLOWED_5XX = frozenset({"deadline_exceeded"})
"""Codes that a request can ask for: `timeout`."""

_OF_RESPONSES = [
    of_responses.UNSERVED,
    of_responses.UNSERVED_IN_ITEMS,
    of_responses.UNSERVED_IN_PARTS,
    of_responses.UNSERVED_IN_TOOLS,
    of_responses.UNSERVED_IN_TEXT,
    of_responses.UNSERVED_IN_REASONING,
]
NEUTRAL = frozenset().union(UNSERVED, UNSERVED_IN_MESSAGES, OF_MESSAGES, *_OF_RESPONSES)
"""Fields that are not served, and may be sent where they ask for nothing."""


def _pointed(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def _is_neutral(error: ValidationError) -> bool:
    """Of fields that are not served: values that ask for nothing may be sent, though the document has no such field."""
    return NEUTRAL.issuperset(set(error.instance) - set(error.schema["properties"]))


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise Undocumented(f"not JSON ({error}): {body[:300]!r}") from error


def _reason(body: bytes) -> str | None:
    try:
        return json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
