"""The tables of the usage ledger: requests, their sums by the hour and the day, contents that tenants want kept,
prices.

Knows columns. No foreign keys: what was used stays true, whatever becomes of keys and adapters, and a record that the
database refused could not be billed. Knows no query.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from loraplex.adapters.names import MAX_SLUG_LENGTH
from loraplex.adapters.schema import Base, Name, RowId, UtcDateTime, now
from loraplex.platform.ledger.record import MAX_ADAPTER_CHARS, MAX_ASKED_CHARS, MAX_MODEL_CHARS

Digest = String(64)


class UsageRow(Base):
    """One request, as `record.UsageRecord` has it, and what it cost in millionths of `currency`, "" where nothing has
    a price."""

    __tablename__ = "usage_records"
    __table_args__ = (Index(None, "tenant_id", "started_at", "id"), Index(None, "started_at", "id"))

    id: Mapped[str] = mapped_column(RowId, primary_key=True)
    request_id: Mapped[str] = mapped_column(Name(128), index=True)
    server_id: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    tenant_id: Mapped[str] = mapped_column(RowId)
    key_id: Mapped[str] = mapped_column(Name(12))
    endpoint: Mapped[str] = mapped_column(String(16))
    asked: Mapped[str] = mapped_column(String(MAX_ASKED_CHARS))
    model: Mapped[str] = mapped_column(String(MAX_MODEL_CHARS))
    adapter: Mapped[str] = mapped_column(Name(MAX_ADAPTER_CHARS))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(Digest)
    choices: Mapped[int]
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    queue_ms: Mapped[int | None] = mapped_column(BigInteger)
    load_ms: Mapped[int | None] = mapped_column(BigInteger)
    ttft_ms: Mapped[int | None] = mapped_column(BigInteger)
    total_ms: Mapped[int] = mapped_column(BigInteger)
    finish_reason: Mapped[str] = mapped_column(String(16))
    status: Mapped[int]
    cost_micros: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))


class UsageHour(Base):
    """Sums of requests that began in one hour, counted since 1970. `errors`: of the requests, those that failed.
    `answered`: those that had a first token, whose times until then are summed up in `ttft_ms`."""

    __tablename__ = "usage_hours"
    __table_args__ = (Index(None, "hour"),)

    tenant_id: Mapped[str] = mapped_column(RowId, primary_key=True)
    hour: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key_id: Mapped[str] = mapped_column(Name(12), primary_key=True)
    endpoint: Mapped[str] = mapped_column(String(16), primary_key=True)
    adapter: Mapped[str] = mapped_column(Name(MAX_ADAPTER_CHARS), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(Digest, primary_key=True)
    currency: Mapped[str] = mapped_column(String(3), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    answered: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_micros: Mapped[int] = mapped_column(BigInteger)
    queue_ms: Mapped[int] = mapped_column(BigInteger)
    load_ms: Mapped[int] = mapped_column(BigInteger)
    ttft_ms: Mapped[int] = mapped_column(BigInteger)
    total_ms: Mapped[int] = mapped_column(BigInteger)


class SpendingDay(Base):
    """What requests came to that began on one day, counted since 1970: budgets go by it, so it is kept for ever.
    subject: `tenant/` or `key/`, and its id. tokens: of prompts and answers."""

    __tablename__ = "spending_days"

    subject: Mapped[str] = mapped_column(Name(48), primary_key=True)
    day: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    currency: Mapped[str] = mapped_column(String(3), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
    cost_micros: Mapped[int] = mapped_column(BigInteger)


class UsageContents(Base):
    """What a request asked and was answered, by the id of its row, of a tenant that wants it kept until then."""

    __tablename__ = "usage_contents"

    id: Mapped[str] = mapped_column(RowId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(RowId, index=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    request: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)


class Price(Base):
    """What a million tokens cost, in millionths of `currency`, of an adapter (`tenant/name`) or, as "", of all that has
    no price of its own."""

    __tablename__ = "prices"

    adapter: Mapped[str] = mapped_column(Name(2 * MAX_SLUG_LENGTH + 1), primary_key=True)
    currency: Mapped[str] = mapped_column(String(3))
    prompt: Mapped[int] = mapped_column(BigInteger)
    cached: Mapped[int] = mapped_column(BigInteger)
    completion: Mapped[int] = mapped_column(BigInteger)
    changed_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
