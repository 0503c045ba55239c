"""The text of an API key: `lk_<12 id>_<43 secret>_<6 checksum>`, all base62.

The prefix and the checksum let scanners find leaked keys, and typing errors be told from unknown keys, without a
database. Knows nothing about who owns a key.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib

_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_KEY = re.compile(r"(lk_([0-9A-Za-z]{12})_[0-9A-Za-z]{43})_([0-9A-Za-z]{6})")


def new_key(key_id: str | None = None) -> tuple[str, str]:
    """(id, whole text of the key). The secret part has 256 bits. key_id: of a key that there is; else a new one."""
    key_id = key_id or _random(12)
    body = f"lk_{key_id}_{_random(43)}"
    return key_id, f"{body}_{_checksum(body)}"


def key_id_of(text: str) -> str | None:
    """The public id in a well-formed key; None for every other text."""
    match = _KEY.fullmatch(text)
    if match is None or match[3] != _checksum(match[1]):
        return None
    return match[2]


def fingerprint(text: str) -> bytes:
    """What is stored of a key: SHA-256. A slow hash would add nothing, for 256 random bits cannot be guessed."""
    return hashlib.sha256(text.encode()).digest()


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _checksum(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        digits = _BASE62[digit] + digits
    return digits
