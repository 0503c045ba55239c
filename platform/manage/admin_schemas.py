"""The bodies of what operators look at and stop: all tenants' adapters, the engine's batch, quarantines."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from loraplex.adapters.quarantine import MAX_REASON_LENGTH
from loraplex.adapters.registry import AdapterInfo, VersionInfo
from loraplex.engine.client import EngineClient
from loraplex.engine.messages import Inspection, Ready, ResidentAdapter, RunningSequence, Status, StepRecord
from loraplex.platform.manage.alias_schemas import AliasView
from loraplex.platform.use_log import Tier


class Quarantine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reason`: the tenant sees it."""

    reason: Annotated[str, Meta(min_length=1, max_length=MAX_REASON_LENGTH)]


class ResidentVersion(Struct, frozen=True, kw_only=True):
    """`leases`: running sequences that hold it on the device."""

    version: int
    digest: str
    size_bytes: int
    rank: int
    residency: list[Tier]
    leases: int


class ResidentAdapterView(Struct, frozen=True, kw_only=True):
    tenant: str
    name: str
    base_model: str
    aliases: dict[str, AliasView]
    versions: list[ResidentVersion]

    @classmethod
    def of(cls, adapter: AdapterInfo, inspection: Inspection | None) -> ResidentAdapterView:
        host = _by_digest(inspection.host if inspection else [])
        device = _by_digest(inspection.device if inspection else [])
        return cls(
            tenant=adapter.tenant,
            name=adapter.name,
            base_model=adapter.base_model,
            aliases={name: AliasView.of(alias) for name, alias in adapter.aliases.items()},
            versions=[_resident(version, host, device) for version in adapter.versions],
        )


class ResidentAdapterPage(Struct, frozen=True):
    """`next`: give it as `after` to get the next page; null on the last one."""

    data: list[ResidentAdapterView]
    next: str | None


class EngineView(Struct, frozen=True, kw_only=True):
    """`adapters_in_batch`: digests of the adapters that running sequences use. `recent_steps`: oldest first."""

    base_model: str
    model: Ready
    status: Status
    seconds_since_progress: float
    adapters_in_batch: list[str]
    running: list[RunningSequence]
    recent_steps: list[StepRecord]

    @classmethod
    def of(cls, base_model: str, engine: EngineClient, inspection: Inspection) -> EngineView:
        return cls(
            base_model=base_model,
            model=engine.ready,
            status=inspection.status,
            seconds_since_progress=engine.seconds_since_progress(),
            adapters_in_batch=sorted({digest for row in inspection.running for digest in row.adapters}),
            running=inspection.running,
            recent_steps=inspection.recent_steps,
        )


def _by_digest(residents: list[ResidentAdapter]) -> dict[str, ResidentAdapter]:
    return {resident.digest: resident for resident in residents}


def _resident(
    version: VersionInfo, host: dict[str, ResidentAdapter], device: dict[str, ResidentAdapter]
) -> ResidentVersion:
    residency: list[Tier] = ["disk"]
    if version.digest in host:
        residency.append("host")
    if version.digest in device:
        residency.append("device")
    return ResidentVersion(
        version=version.number,
        digest=version.digest,
        size_bytes=version.size_bytes,
        rank=version.max_rank,
        residency=residency,
        leases=device[version.digest].leases if version.digest in device else 0,
    )
