"""The tables of the adapter registry.

Knows columns and constraints. Knows no query. The table `tenants`, which owns adapters, is platform's.
"""

from __future__ import annotations

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
NullableJson = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
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
    """Immutable weights, named by their digest. `created_by` is the id of the API key that published them.

    `state`: see `lookup.VersionState`. `report`, the one large column, is read only where it is asked for.
    """

    __tablename__ = "adapter_versions"
    __table_args__ = (UniqueConstraint("adapter_id", "number"), UniqueConstraint("adapter_id", "digest"))

    id: Mapped[str] = mapped_column(RowId, primary_key=True, default=new_id)
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64), index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    max_rank: Mapped[int]
    targets: Mapped[list[str]] = mapped_column(Json)
    invocation_tokens: Mapped[list[int] | None] = mapped_column(NullableJson)
    is_additive: Mapped[bool] = mapped_column(default=True)
    report: Mapped[list[dict[str, Any]]] = mapped_column(Json, deferred=True, deferred_raiseload=True)
    state: Mapped[str] = mapped_column(String(16))
    state_reason: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    created_by: Mapped[str | None] = mapped_column(String(12))

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
