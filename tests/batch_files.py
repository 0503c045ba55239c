"""Inputs of batches, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def request(custom_id: str, model: str = "tiny", url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    """One line of an input: by default a greedy completion of two tokens."""
    asked = {"prompt": custom_id, "max_tokens": 2, "temperature": 0} if url == COMPLETIONS else {}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": model} | asked | body}


def jsonl(entries: Iterable[Any]) -> bytes:
    """Entries that are bytes stand as they are."""
    return b"\n".join(e if isinstance(e, bytes) else json.dumps(e).encode() for e in entries) + b"\n"


def by_custom_id(content: bytes) -> dict[str, dict[str, Any]]:
    """The lines of an output or error file. Fails where a custom_id is there twice."""
    lines = [json.loads(line) for line in content.splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines), "a line is answered twice"
    assert all(set(line) == {"id", "custom_id", "response", "error"} for line in lines)
    return found
