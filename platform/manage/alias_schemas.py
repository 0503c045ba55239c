"""The bodies of the aliases API: moves and rollbacks, what an alias stands for, and what it stood for."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct, convert

from loraplex.adapters.aliases import MoveInfo
from loraplex.adapters.lookup import MAX_TARGETS, AliasInfo

VersionNumber = Annotated[int, Meta(ge=1, lt=1_000_000_000)]
Weight = Annotated[int, Meta(ge=1, le=1_000_000, description="Share of the traffic, relative to the sum of all.")]


class MoveAlias(Struct, frozen=True, forbid_unknown_fields=True):
    """Either a version, or a split: version number -> weight, relative to the sum of all."""

    version: VersionNumber | None = None
    split: Annotated[dict[VersionNumber, Weight], Meta(min_length=1, max_length=MAX_TARGETS)] | None = None

    def __post_init__(self) -> None:
        if (self.version is None) == (self.split is None):
            raise ValueError("Expected either `version` or `split`")

    def targets(self) -> dict[int, int]:
        if self.version is not None:
            return {self.version: 1}
        assert self.split is not None
        return self.split


class RollBackAlias(Struct, frozen=True, forbid_unknown_fields=True):
    """`to`: a revision of the alias's history; default is what it stood for before its last move."""

    to: Annotated[int, Meta(ge=1, lt=1_000_000_000)] | None = None


class AliasView(Struct, frozen=True, kw_only=True):
    """`split`: version number -> weight, newest first. Every move raises `revision`."""

    revision: int
    split: dict[int, int]
    updated_at: datetime

    @classmethod
    def of(cls, alias: AliasInfo) -> AliasView:
        return convert(alias, cls, from_attributes=True)


class MoveView(Struct, frozen=True, kw_only=True):
    """`split` is empty where the alias was deleted. `restores`: the revision that a rollback went back to.

    `moved_by`: the id of the API key or of the account.
    """

    revision: int
    split: dict[int, int]
    restores: int | None
    moved_at: datetime
    moved_by: str | None

    @classmethod
    def of(cls, move: MoveInfo) -> MoveView:
        return convert(move, cls, from_attributes=True)


class AliasHistory(Struct, frozen=True):
    data: list[MoveView]
