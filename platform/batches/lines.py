"""The lines of a batch: those of its input, read and checked, and those that answer them. Knows no engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from uuid import uuid4

import msgspec
from msgspec import Meta, Raw, Struct

from loraplex.platform.batches.leases import Answered
from loraplex.platform.errors import ApiError, to_api_error
from loraplex.platform.openai.generation import ADAPTER_FIELDS

MAX_LINES = 50_000

MAX_ERRORS = 1000
"""Wrong lines of one input that are told."""


class RequestLine(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a batch's input. `body` is read by the endpoint when it runs."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: str
    url: str
    body: Raw


@dataclass(frozen=True, slots=True)
class Line:
    """Where a request is in the input: its number, from 1 on, and its bytes. `weights`: what names its adapters."""

    number: int
    offset: int
    size_bytes: int
    custom_id: str
    weights: bytes


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a line, or all that have no answer, will have none."""

    code: str
    message: str


class InputRefused(Exception):
    """The input is wrong. `errors`: {code, line, message, param} of each wrong line, in their order."""

    def __init__(self, errors: Sequence[dict[str, Any]]) -> None:
        super().__init__(f"{len(errors)} errors in the input of a batch")
        self.errors = list(errors)


def read_lines(path: Path, endpoint: str, max_line_bytes: int) -> list[Line]:
    """The requests of an input. Empty lines are none. Raises InputRefused, OSError."""
    lines: list[Line] = []
    errors: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, offset, text in _numbered(file, max_line_bytes):
            if len(lines) + len(errors) >= MAX_LINES:
                message = f"The file has more than {MAX_LINES} requests, the most allowed; send several batches."
                raise InputRefused([_entry(ApiError(400, "too_many_requests", message), None)])
            try:
                line = _read(number, offset, text, endpoint, max_line_bytes)
                if line.custom_id in seen:
                    first = seen[line.custom_id]
                    message = f"Line {first} has this custom_id already; each must be unique in its file."
                    raise ApiError(400, "duplicate_custom_id", message, param="custom_id")
                seen[line.custom_id] = number
                lines.append(line)
            except (ApiError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                errors.append(_entry(_as_api_error(error), number))
                if len(errors) == MAX_ERRORS:
                    message = f"Lines after {number} were not looked at: {MAX_ERRORS} before them are wrong."
                    raise InputRefused([*errors, _entry(ApiError(400, "too_many_errors", message), None)]) from None
    if not lines and not errors:
        errors.append(_entry(ApiError(400, "empty_file", "The file has no requests; put one on each line."), None))
    if errors:
        raise InputRefused(errors)
    return lines


def _numbered(file: BinaryIO, max_line_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of each line that is not empty; of one that is too long, more bytes than are allowed."""
    number = offset = 0
    while text := file.readline(max_line_bytes + 2):
        number += 1
        size = len(text)
        while not text.endswith(b"\n") and (rest := file.readline(max_line_bytes + 2)):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        if text.strip() or size > len(text):
            yield number, offset, text.rstrip(b"\r\n")
        offset += size


def _read(number: int, offset: int, text: bytes, endpoint: str, max_line_bytes: int) -> Line:
    if len(text) > max_line_bytes:
        raise ApiError(400, "request_too_large", f"The line is longer than {max_line_bytes} bytes, the most allowed.")
    request = _REQUEST.decode(text)
    if request.method != "POST":
        raise ApiError(400, "invalid_method", "The method must be POST.", param="method")
    if request.url != endpoint:
        message = f"The url is not the endpoint of the batch, which is {endpoint}."
        raise ApiError(400, "mismatched_endpoint", message, param="url")
    try:
        body = _BODY.decode(request.body)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_body", "The body must be a JSON object.", param="body") from error
    if not isinstance(body.get("model"), str):
        raise ApiError(400, "missing_required_parameter", "The body must name a model.", param="body.model")
    if body.get("stream"):
        raise ApiError(400, "unsupported_value", "A batch cannot stream: leave `stream` out.", param="body.stream")
    named = [body.get(field) for field in ("model", *ADAPTER_FIELDS)]
    return Line(number, offset, len(text), request.custom_id, msgspec.json.encode(named))


_REQUEST = msgspec.json.Decoder(RequestLine)
_BODY = msgspec.json.Decoder(dict[str, Any])


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, msgspec.ValidationError):
        return to_api_error(error)
    return ApiError(400, "invalid_json", "The line is not a valid JSON object.")


def _entry(error: ApiError, line: int | None) -> dict[str, Any]:
    return {"code": error.code, "line": line, "message": error.message, "param": error.param}


def read_bodies(path: Path, lines: Iterable[Line]) -> Iterator[tuple[Line, bytes]]:
    """The bodies of lines of an input that was read before, as they stand there."""
    with path.open("rb") as file:
        for line in lines:
            file.seek(line.offset)
            yield line, bytes(_REQUEST.decode(file.read(line.size_bytes)).body)


def answer(line: Line, status: int, request_id: str, body: bytes) -> Answered:
    """What the endpoint said. Everything but a 200 is an error."""
    response = {"status_code": status, "request_id": request_id, "body": Raw(body)}
    return Answered(line.number, status != 200, _output_line(line, response, None))


def not_answered(line: Line, reason: LineError) -> bytes:
    """The line of the error file for a request that was not run."""
    return _output_line(line, None, {"code": reason.code, "message": reason.message})


def _output_line(line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    entry = {
        "id": f"batch_req_{uuid4().hex}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(entry) + b"\n"
