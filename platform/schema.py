"""The tables of tenants, API keys, and the names that clients gave to requests.

Knows columns and constraints, on the metadata of the adapter registry. Knows no query.
"""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from loraplex.adapters.schema import Base, Json, Name, RowId, Slug, UtcDateTime, new_id, now


def new_salt() -> bytes:
    return secrets.token_bytes(32)


class Tenant(Base):
    """One customer. `cache_salt` goes into the hashes of its cached prefixes, so that no other tenant can hit them."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(RowId, primary_key=True, default=new_id)
    slug: Mapped[str] = mapped_column(Slug, unique=True)
    name: Mapped[str] = mapped_column(String(200))
    cache_salt: Mapped[bytes] = mapped_column(LargeBinary(32), default=new_salt)
    weight: Mapped[float] = mapped_column(default=1.0)
    suspended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class IdempotencyKey(Base):
    """A request that a client named, and its answer once there is one (`status`, `body`). After `expires_at` the name
    is free again: soon while there is no answer, since its server may have died, later when there is one."""

    __tablename__ = "idempotency_keys"

    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class ApiKey(Base):
    """An API key by the SHA-256 of its text. Without a tenant it is an operator's. Never deleted, only revoked."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Name(12), primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
