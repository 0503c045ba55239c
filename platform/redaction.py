"""What never leaves the process in a log line: keys, tokens, passwords and cookies, by the name of a field and by how
they look. Knows no logger."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
MAX_DEPTH = 6
MAX_ITEMS = 100
"""Of a list or a mapping in a field; the rest is left out."""

_SECRET_FIELD = re.compile(
    r"(?:^|_)(?:authorization|cookie|password|passwd|secret|token|credentials?|(?:api|access|private|secret)_?key)$",
    re.IGNORECASE,
)
TOKEN_CHARS = 43
"""Of 32 random bytes in URL-safe base64: tokens of sessions, the set-up token."""

_LOOKS = (
    ("lk_", re.compile(r"\b()lk_[A-Za-z0-9_]{8,}")),  # API keys
    ("://", re.compile(r"(://)[^/@\s:]*:[^/@\s]*(?=@)")),  # who connects to a database, and the password
    ("$argon2", re.compile(r"()\$argon2\w*\$\S+")),  # hashes of passwords
    ("=", re.compile(r"((?:password|passwd|secret|token|api_?key)=)[^\s&;,]+", re.IGNORECASE)),
    ("earer ", re.compile(r"(bearer )\S{8,}", re.IGNORECASE)),
    ("asic ", re.compile(r"(basic )[\w+/=-]{16,}", re.IGNORECASE)),
)
"""What a text has to have in it, which is quickly seen, and how the secret looks then, after what stays."""
_TOKEN = re.compile(rf"(?<![\w-])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])[\w-]{{{TOKEN_CHARS}}}(?![\w-])", re.ASCII)


def without_secrets(text: str) -> str:
    """The text, with what looks like a secret cut out."""
    for mark, look in _LOOKS:
        if mark in text:
            text = look.sub(rf"\1{REDACTED}", text)
    return _TOKEN.sub(REDACTED, text) if len(text) >= TOKEN_CHARS else text


def redacted(field: str, value: Any, depth: int = 0) -> Any:
    """The value of a field as it may be shown, through lists and mappings. What is no plain value is its `repr`."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if _SECRET_FIELD.search(field.replace("-", "_")):
        return REDACTED
    if isinstance(value, str):
        return without_secrets(value)
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        items = list(value.items())[:MAX_ITEMS]
        return {without_secrets(str(key)): redacted(str(key), item, depth + 1) for key, item in items}
    if depth < MAX_DEPTH and isinstance(value, (list, tuple, set, frozenset)):
        return [redacted(field, item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    return without_secrets(repr(value))
