"""The tables of the adapter registry.

Knows columns and constraints. Knows no query. The table `tenants`, which owns adapters, is platform's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator, TypeEngine

from loraplex.adapters.names import MAX_BASE_NAME_LENGTH, MAX_SLUG_LENGTH

Json = JSON().with_variant(JSONB(), "postgresql")
JsonOrNull = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
RowId = String(32)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: aware going in, aware coming out, on both engines. Refuses naive datetimes."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Name(TypeDecorator[str]):
    """Printable ASCII, which both engines sort by code point. Any other text equals no name, instead of failing."""

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        collation = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(String(self.length, collation=collation))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value if value is not None and value.isascii() and value.isprintable() else None


Slug = Name(MAX_SLUG_LENGTH)


def storable(value: Any) -> Any:
    """A text that a stranger had a part in, alone or within JSON, as both engines store it: PostgreSQL takes no NUL and
    no half of a surrogate pair."""
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    if isinstance(value, Mapping):
        return {storable(key): storable(entry) for key, entry in value.items()}
    return [storable(entry) for entry in value] if isinstance(value, list | tuple) else value


class Base(DeclarativeBase):
    """All tables of Loraplex hang on this metadata. Constraints have names, so that migrations can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def new_id() -> str:
    return uuid4().hex


def now() -> datetime:
    return datetime.now(UTC)


class BaseModel(Base):
    """A base model that is or was served here. `shape_digest` is BaseShape.digest: what adapters must fit."""

    __tablename__ = "base_models"

    id: Mapped[str] = mapped_column(RowId, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Name(MAX_BASE_NAME_LENGTH), unique=True)
    shape_digest: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class Adapter(Base):
    """A name that a tenant gives to a line of versions. `last_number` never falls, so no number is used twice."""

    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[str] = mapped_column(RowId, primary_key=True, default=new_id)
    tenant_id: Mapped[str] = mapped_column(RowId, ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(Slug)
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    description: Mapped[str] = mapped_column(Text, default="")
    last_number: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    base_model: Mapped[BaseModel] = relationship(viewonly=True, lazy="raise")
    versions: Mapped[list[AdapterVersion]] = relationship(
        viewonly=True, lazy="raise", order_by="AdapterVersion.number", back_populates="adapter"
    )
    aliases: Mapped[list[Alias]] = relationship(viewonly=True, lazy="raise", order_by="Alias.name")


class AdapterVersion(Base):
    """Immutable weights, named by their digest. `created_by` is the id of the API key or account that published
    them.

    `state`: see `lookup.VersionState`. `profile` is a ServingProfile, `profile_digest` names it; both are NULL where
    there is none, and every change raises `profile_revision`. `report` and `profile`, which can be large, are read only
    where they are asked for. `received_sha256`: `types.received_digest` of the files that last became this version;
    none before there was one.
    """

    __tablename__ = "adapter_versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        UniqueConstraint("adapter_id", "digest"),
        Index(None, "state", "created_at"),  # those that are validating, found again and again among all
    )

    id: Mapped[str] = mapped_column(RowId, primary_key=True, default=new_id)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    max_rank: Mapped[int]
    targets: Mapped[list[str]] = mapped_column(Json)
    invocation_tokens: Mapped[list[int] | None] = mapped_column(JsonOrNull)
    is_additive: Mapped[bool] = mapped_column(default=True)
    vocab_size: Mapped[int | None]
    report: Mapped[list[dict[str, Any]]] = mapped_column(Json, deferred=True, deferred_raiseload=True)
    state: Mapped[str] = mapped_column(String(16))
    state_reason: Mapped[str] = mapped_column(Text, default="")
    received_sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    created_by: Mapped[str | None] = mapped_column(String(12))
    profile: Mapped[dict[str, Any] | None] = mapped_column(JsonOrNull, deferred=True, deferred_raiseload=True)
    profile_digest: Mapped[str | None] = mapped_column(String(64))
    profile_revision: Mapped[int] = mapped_column(default=0)

    adapter: Mapped[Adapter] = relationship(viewonly=True, lazy="raise", back_populates="versions")


class Alias(Base):
    """A movable name of one version or of several that share its traffic. `revision` is that of its last move."""

    __tablename__ = "aliases"

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Slug, primary_key=True)
    revision: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    targets: Mapped[list[AliasTarget]] = relationship(viewonly=True, lazy="raise")


class AliasTarget(Base):
    """A version that an alias stands for. The foreign key keeps the version while an alias points at it."""

    __tablename__ = "alias_targets"
    __table_args__ = (ForeignKeyConstraint(["adapter_id", "alias"], ["aliases.adapter_id", "aliases.name"]),)

    adapter_id: Mapped[str] = mapped_column(RowId, primary_key=True)
    alias: Mapped[str] = mapped_column(Slug, primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("adapter_versions.id"), primary_key=True, index=True)
    weight: Mapped[int]


class AliasMove(Base):
    """What an alias was made to stand for, once. `split`: version number, as text, -> weight; none: it was deleted.

    `restores`: the revision that a rollback went back to. Moves outlive their alias, so that no revision comes twice.
    """

    __tablename__ = "alias_moves"

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(Slug, primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    split: Mapped[dict[str, int]] = mapped_column(Json)
    restores: Mapped[int | None]
    moved_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    moved_by: Mapped[str | None] = mapped_column(String(12))


class JobRow(Base):
    """What every table of jobs has. `due_at`: when a server may take a job up; one that is held, whose server renews
    it, when its lease has ended. `lease_owner`: another one each time that it is taken up; none while nobody has it."""

    __abstract__ = True

    id: Mapped[str] = mapped_column(Name(32), primary_key=True, default=new_id)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime)
    lease_owner: Mapped[str | None] = mapped_column(RowId)
    attempt: Mapped[int] = mapped_column(default=0)


class ImportJob(JobRow):
    """Files that a server is to fetch and publish as a version. `state`: see `import_jobs.ImportState`.

    `version`: its number, written when it is published. `error`: {code, message, details} of the last attempt.
    `created_by`: the id of the API key or account.
    """

    __tablename__ = "import_jobs"
    __table_args__ = (Index(None, "state", "due_at"),)

    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), index=True)
    source: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    file: Mapped[str | None] = mapped_column(String(64))
    bytes_done: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_total: Mapped[int | None] = mapped_column(BigInteger)
    version: Mapped[int | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_by: Mapped[str | None] = mapped_column(String(12))


class Upload(Base):
    """Files that come in pieces: `files` has name, size_bytes and sha256 of each, `size_bytes` is their sum.

    `version_number`: of the version that they became; none while bytes are still to come.
    """

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(RowId, primary_key=True, default=new_id)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), index=True)
    files: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    version_number: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    created_by: Mapped[str | None] = mapped_column(String(12))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class Lease(Base):
    """Work that one server at a time does, and until when whoever does it has it for itself."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AdapterPin(Base):
    """A version that is to stay on the device until then. `created_by`: the id of the API key or account."""

    __tablename__ = "adapter_pins"

    version_id: Mapped[str] = mapped_column(ForeignKey("adapter_versions.id"), primary_key=True)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"), index=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    created_by: Mapped[str | None] = mapped_column(String(12))


class RegistryState(Base):
    """One row: the revision of the last change that is committed."""

    __tablename__ = "registry_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(BigInteger)


class RegistryChange(Base):
    """What one change was about, as `changes` names it."""

    __tablename__ = "registry_changes"

    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    subject: Mapped[str] = mapped_column(String(100))


class AuditEntry(Base):
    """One entry of the audit log, as `audit` writes it. Never changed and never deleted: triggers of the database see
    to it. It outlives what it is about, so no column refers to another table.

    `before`, `after`: JSON as text, since the hash covers its bytes, which a database's own type would not keep.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index(None, "tenant_id", "number"),
        Index(None, "tenant_id", "object", "number"),
        Index(None, "action", "number"),
        Index(None, "actor_id", "number"),
        Index(None, "actor_name", "number"),
    )

    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    tenant_id: Mapped[str | None] = mapped_column(RowId)
    action: Mapped[str] = mapped_column(Name(40))
    object: Mapped[str] = mapped_column(Name(200))
    actor_kind: Mapped[str] = mapped_column(String(16))
    actor_id: Mapped[str | None] = mapped_column(String(64))
    actor_name: Mapped[str | None] = mapped_column(String(64))
    actor_tenant_id: Mapped[str | None] = mapped_column(RowId)
    request_id: Mapped[str | None] = mapped_column(String(128))
    address: Mapped[str | None] = mapped_column(String(64))
    before: Mapped[str | None] = mapped_column(Text)
    after: Mapped[str | None] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(Base):
    """One row: the number and the hash of the newest entry. Who appends holds it until its transaction ends."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))
