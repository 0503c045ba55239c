"""What the ledger keeps of one inference request, and how it is written down until the database has it.

A line is the CRC-32 of its JSON, in hexadecimal, and the JSON: so what a crash cut off is told from what is whole.
"""

from __future__ import annotations

import zlib
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from loraplex.adapters.schema import storable

Endpoint = Literal["chat", "completions", "responses", "messages", "embeddings"]

Finish = Literal["stop", "length", "tool_calls", "client_closed", "error", "refused", "server_lost"]
"""How a request ended: as the model ended it, by a client that went away, by an error after it had begun, by a refusal
before it ran, or with the server that ran it."""

MAX_ASKED_CHARS = 128
MAX_MODEL_CHARS = 512
MAX_ADAPTER_CHARS = 255
MAX_RECORD_BYTES = 8 << 10
"""Of a line without contents: names are cut where they are longer, and JSON may write a character in six bytes."""

CRC_CHARS = 8


class Tokens(NamedTuple):
    """prompt_tokens: with the cached ones."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


NO_TOKENS = Tokens(0, 0, 0)


class Contents(msgspec.Struct, frozen=True):
    """What was asked and answered, for a tenant that wants it kept for so many days. Cut where it is too long."""

    days: int
    request: str
    answer: str


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. `request_id`: of its header x-request-id; clients choose them, so `id` is what is unique.

    asked: what the client called the model. model: what it was resolved to. adapter, version, digest: of a single
    version; of the base "" and 0; of a sum of adapters their names, 0, and a hash of its terms. Milliseconds are None
    where the request did not get so far.
    """

    id: str
    request_id: str
    server_id: str
    started_at: datetime
    tenant_id: str
    key_id: str
    endpoint: Endpoint
    asked: str = ""
    model: str = ""
    adapter: str = ""
    version: int = 0
    digest: str = ""
    choices: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_ms: int | None = None
    load_ms: int | None = None
    ttft_ms: int | None = None
    total_ms: int = 0
    finish_reason: Finish = "server_lost"
    status: int = 200
    contents: Contents | None = None

    @property
    def is_error(self) -> bool:
        return self.status >= 400 or self.finish_reason in ("error", "server_lost")

    @property
    def hour(self) -> int:
        """In which it began, counted since 1970."""
        return int(self.started_at.timestamp()) // 3600


class Damaged(Exception):
    """A line is not what was written."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(UsageRecord)


def shortened(text: str, chars: int) -> str:
    """As both databases store it."""
    return str(storable(text[:chars]))


def encode(record: UsageRecord) -> bytes:
    return _encoder.encode(record)


def decode(data: bytes) -> UsageRecord:
    """Raises Damaged."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Damaged(str(error)) from error


def to_line(record: UsageRecord) -> bytes:
    data = _encoder.encode(record)
    return b"%08x%b\n" % (zlib.crc32(data), data)


def from_line(line: bytes) -> UsageRecord:
    """Raises Damaged."""
    data = line[CRC_CHARS:-1]
    if not line.endswith(b"\n") or line[:CRC_CHARS] != b"%08x" % zlib.crc32(data):
        raise Damaged("its checksum is wrong")
    return decode(data)
