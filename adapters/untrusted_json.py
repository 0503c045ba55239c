"""JSON from strangers: bounded in nesting, numbers and containers, no duplicate names; and how a check says no.

Knows no file and no meaning of any field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

MAX_CONTAINERS = 65_536
"""Most objects and arrays in one document: bounds the memory a parser can be made to take."""

_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class CheckFailure:
    """One failed check. `code` is stable; `where` names the field or tensor; `message` says what to do."""

    code: str
    where: str
    message: str
    expected: str | None = None
    got: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class CheckFailed(Exception):
    """A check failed and nothing after it makes sense."""

    def __init__(self, failure: CheckFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def shown(value: object) -> str:
    """A stranger's value, fit for a message: ASCII and short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_object(data: bytes, kind: str, max_depth: int) -> dict[str, Any]:
    """The JSON object in `data`. Raises CheckFailed with a code `<kind>_not_json`, `_duplicate_key` or `_too_deep`.

    `kind` (config, header) begins the codes. The outermost object has depth 1.
    """
    too_deep = CheckFailure(
        f"{kind}_too_deep",
        kind,
        f"the {kind} is nested deeper than {max_depth} levels or holds more than {MAX_CONTAINERS} objects and arrays;"
        " save the adapter again with PEFT",
    )
    if data.count(b"{") + data.count(b"[") > MAX_CONTAINERS:
        raise CheckFailed(too_deep)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=lambda pairs: _unique(pairs, kind),
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
        )
    except RecursionError:
        raise CheckFailed(too_deep) from None
    except ValueError as error:
        message = f"the {kind} is not valid JSON ({shown(str(error))}); save the adapter again with PEFT"
        raise CheckFailed(CheckFailure(f"{kind}_not_json", kind, message)) from None
    if not isinstance(value, dict):
        message = f"the {kind} must be a JSON object; save the adapter again with PEFT"
        raise CheckFailed(CheckFailure(f"{kind}_not_json", kind, message, "object", type(value).__name__))
    if _depth(value) > max_depth:
        raise CheckFailed(too_deep)
    return value


def _unique(pairs: Sequence[tuple[str, Any]], kind: str) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            message = f"{shown(name)} appears twice in the {kind}; save the adapter again with PEFT"
            raise CheckFailed(CheckFailure(f"{kind}_duplicate_key", shown(name), message))
        unique[name] = value
    return unique


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _bounded_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _depth(document: object) -> int:
    depth, level = 0, [document]
    while level:
        containers = [value for value in level if isinstance(value, (dict, list))]
        depth += bool(containers)
        level = [item for value in containers for item in (value.values() if isinstance(value, dict) else value)]
    return depth
