"""The bodies of the adapters API, and the names that bodies of other resources have too."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from loraplex.adapters.registry import AdapterInfo
from loraplex.platform.manage.alias_schemas import AliasView

Name = Annotated[str, Meta(min_length=1, max_length=63, description="a-z, 0-9, '.', '_' and '-'.")]


class CreateAdapter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`base_model`: default, and the only one now, is the model that is served."""

    name: Name
    description: Annotated[str, Meta(max_length=2000)] = ""
    base_model: Annotated[str, Meta(min_length=1, max_length=127)] | None = None


class AdapterView(Struct, frozen=True, kw_only=True):
    """`versions`: their numbers, rising. `aliases` by name."""

    tenant: str
    name: str
    base_model: str
    description: str
    created_at: datetime
    versions: list[int]
    aliases: dict[str, AliasView]

    @classmethod
    def of(cls, adapter: AdapterInfo) -> AdapterView:
        return cls(
            tenant=adapter.tenant,
            name=adapter.name,
            base_model=adapter.base_model,
            description=adapter.description,
            created_at=adapter.created_at,
            versions=[version.number for version in adapter.versions],
            aliases={name: AliasView.of(alias) for name, alias in adapter.aliases.items()},
        )


class AdapterPage(Struct, frozen=True):
    """`next`: give it as `after` to get the next page; null on the last one."""

    data: list[AdapterView]
    next: str | None
