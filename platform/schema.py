"""The tables of tenants, API keys, people's accounts and sessions, use of limits, names that clients gave to requests,
tenants' files, batches and stored responses.

Knows columns and constraints, on the metadata of the adapter registry. Knows no query.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from loraplex.adapters.names import MAX_BASE_NAME_LENGTH
from loraplex.adapters.schema import Base, JobRow, Json, JsonOrNull, Name, RowId, Slug, UtcDateTime, new_id, now

FileId = Name(40)
BatchId = Name(40)
ResponseId = Name(64)

MAX_ISSUER_CHARS = 255
MAX_SUBJECT_CHARS = 255
"""What OpenID Connect allows."""


def new_salt() -> bytes:
    return secrets.token_bytes(32)


class Tenant(Base):
    """One customer. `cache_salt` goes into the hashes of its cached prefixes, so that no other tenant can hit them.
    limits, budget: as `limits.rules` and `budgets.rules` read them. content_days: how long what its requests ask and
    are answered is kept; None: not at all."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(RowId, primary_key=True, default=new_id)
    slug: Mapped[str] = mapped_column(Slug, unique=True)
    name: Mapped[str] = mapped_column(String(200))
    cache_salt: Mapped[bytes] = mapped_column(LargeBinary(32), default=new_salt)
    weight: Mapped[float] = mapped_column(default=1.0)
    limits: Mapped[dict[str, int] | None] = mapped_column(JsonOrNull)
    budget: Mapped[dict[str, Any] | None] = mapped_column(JsonOrNull)
    content_days: Mapped[int | None]
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
    """An API key by the SHA-256 of its text. Without a tenant it is an operator's. Never deleted, only revoked.
    limits, budget: as `limits.rules` and `budgets.rules` read them. adapters: as `key_terms` has them. `old_sha256`:
    of the text from before `rotated_at`, which holds until `old_ends_at`."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(Name(12), primary_key=True)
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    revision: Mapped[int] = mapped_column(default=1)
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary(32))
    rotated_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    old_sha256: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    old_ends_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    old_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    scopes: Mapped[list[str]] = mapped_column(Json)
    adapters: Mapped[list[str] | None] = mapped_column(JsonOrNull)
    limits: Mapped[dict[str, int] | None] = mapped_column(JsonOrNull)
    budget: Mapped[dict[str, Any] | None] = mapped_column(JsonOrNull)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Account(Base):
    """A person who may sign in on the admin pages. Without a tenant it is an operator's. It has a password, or else an
    identity by which a provider vouches for it. `failed_logins`: since the last one that succeeded."""

    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(Name(12), primary_key=True)
    login: Mapped[str] = mapped_column(Slug, unique=True)
    tenant_id: Mapped[str | None] = mapped_column(ForeignKey("tenants.id"), index=True)
    password_hash: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_login_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    failed_logins: Mapped[int] = mapped_column(default=0)


class AccountIdentity(Base):
    """Whom an OpenID provider knows as `subject`, which is unique to it and never given to somebody else."""

    __tablename__ = "account_identities"

    issuer: Mapped[str] = mapped_column(Name(MAX_ISSUER_CHARS), primary_key=True)
    subject: Mapped[str] = mapped_column(Name(MAX_SUBJECT_CHARS), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class WebSession(Base):
    """A session of an account on the admin pages, by the SHA-256 of its token."""

    __tablename__ = "web_sessions"

    token_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class RateUse(Base):
    """Of the requests and tokens that all servers have admitted for a tenant, key or adapter, those that had not come
    back to its buckets `at` that second since 1970. subject: `tenant/`, `key/` or `adapter/`, and its id."""

    __tablename__ = "rate_use"

    subject: Mapped[str] = mapped_column(Name(48), primary_key=True)
    requests: Mapped[float]
    tokens: Mapped[float]
    at: Mapped[float] = mapped_column(index=True)


class StoredFile(Base):
    """A tenant's file; its bytes are where `FileStore` keeps them, under the same id. `created_by`: an API key's id,
    or an account's."""

    __tablename__ = "files"
    __table_args__ = (Index(None, "tenant_id", "created_at"),)

    id: Mapped[str] = mapped_column(FileId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    created_by: Mapped[str | None] = mapped_column(String(12))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class Batch(JobRow):
    """Requests in a file, to be answered in a file. `status`: see `batches.rows.BatchStatus`; beside it the moment of
    each that it has had. `api_key_id`: of the key that asked for it, as which its requests run.

    `base_model`: of the servers that work on it. `input_file_id` and the others may be of files that are gone.
    `errors`: what is wrong with lines of the input: {code, line, message, param} of each. `output_seconds`: how long
    its output is kept. `total`, `completed` and `failed` count requests.
    """

    __tablename__ = "batches"
    __table_args__ = (Index(None, "tenant_id", "created_at"), Index(None, "status", "due_at"))

    id: Mapped[str] = mapped_column(BatchId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    base_model: Mapped[str] = mapped_column(Name(MAX_BASE_NAME_LENGTH))
    endpoint: Mapped[str] = mapped_column(String(64))
    input_file_id: Mapped[str] = mapped_column(FileId, index=True)
    output_file_id: Mapped[str | None] = mapped_column(FileId)
    error_file_id: Mapped[str | None] = mapped_column(FileId)
    output_seconds: Mapped[int]
    labels: Mapped[dict[str, str] | None] = mapped_column(JsonOrNull)
    status: Mapped[str] = mapped_column(String(16))
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JsonOrNull)
    total: Mapped[int] = mapped_column(default=0)
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    in_progress_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finalizing_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    failed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    expired_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancelling_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    cancelled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class BatchAnswer(Base):
    """The answer to a line of a batch that has not ended: a line of its output or, where `is_error`, of its errors."""

    __tablename__ = "batch_answers"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    is_error: Mapped[bool]
    content: Mapped[bytes] = mapped_column(LargeBinary)


class StoredResponse(Base):
    """An answer of the Responses API that its client asked to be stored. `input`, `output`: items; `head`: the response
    without its output; all of them JSON. `previous_id`: the one that it goes on from, which may be gone."""

    __tablename__ = "responses"
    __table_args__ = (Index(None, "tenant_id", "created_at", "id", "size_bytes"),)

    id: Mapped[str] = mapped_column(ResponseId, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    previous_id: Mapped[str | None] = mapped_column(ResponseId)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    head: Mapped[bytes] = mapped_column(LargeBinary)
    input: Mapped[bytes] = mapped_column(LargeBinary)
    output: Mapped[bytes] = mapped_column(LargeBinary)
