"""The bodies of the residency API: where versions are, for their tenant and for operators."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta, Struct

from loraplex.adapters.blobs import DiskUse
from loraplex.adapters.registry import VersionInfo
from loraplex.engine.messages import LoadTimes, Ready, Status, Whereabouts
from loraplex.platform.use_log import Tier, Use

MAX_PIN_SECONDS = 7 * 24 * 3600


class PinVersion(Struct, frozen=True, forbid_unknown_fields=True):
    """`seconds`: how long from now, a week at most."""

    seconds: Annotated[int, Meta(ge=1, le=MAX_PIN_SECONDS)]


class LoadView(Struct, frozen=True):
    """Milliseconds of a load: from the disk, 0 where the host's memory had it; to the device; and all of it."""

    read: float
    copy: float
    total: float

    @classmethod
    def of(cls, times: LoadTimes | None) -> LoadView | None:
        return None if times is None else cls(*(round(seconds * 1000, 3) for seconds in times))


class Residency(Struct, frozen=True, kw_only=True):
    """Where an adapter is on this server, and what it takes and did there, as far as whoever looks may know."""

    digest: str
    tier: Tier
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    leases: int
    last_used_at: datetime | None
    loads: int
    last_load_ms: LoadView | None
    pinned_until: datetime | None
    is_loading: bool


class ResidencyView(Residency, frozen=True, kw_only=True):
    """Where a version is on this server, and the bytes that it takes there; 0 in a tier where it is not.

    `leases`, `last_used_at`, `loads` and `last_load_ms` are of your own requests on this server since its start: those
    in hand, the last one, those that found it missing, and what the last of them waited for. `pinned_until`: of your
    own pins. What others with the same bytes do is not told: a version that your requests have not brought to a tier
    is shown below it.
    """

    version: int
    model: str

    @classmethod
    def of(
        cls, version: VersionInfo, found: Whereabouts, tier: Tier, disk_bytes: int, use: Use, pinned: datetime | None
    ) -> ResidencyView:
        return cls(
            version=version.number,
            model=version.canonical_name,
            digest=version.digest,
            tier=tier,
            device_bytes=found.device_bytes if tier == "device" else 0,
            host_bytes=found.host_bytes if tier != "disk" else 0,
            disk_bytes=disk_bytes,
            leases=use.running,
            last_used_at=_moment(use.last_used_at),
            loads=use.loads,
            last_load_ms=LoadView.of(use.last_load),
            pinned_until=pinned,
            is_loading=found.is_loading and use.told is None,
        )


class ResidencyList(Struct, frozen=True):
    """Newest version first."""

    data: list[ResidencyView]


class ResidentView(Residency, frozen=True, kw_only=True):
    """An adapter that is in some memory, as the engine has it for all tenants. `versions`: those of these bytes.

    `pins`: tenants that pin it; `pinned_until`: when the last pin ends.
    """

    versions: list[str]
    pins: int

    @classmethod
    def of(cls, found: Whereabouts, versions: list[str], disk_bytes: int) -> ResidentView:
        now = datetime.now(UTC).timestamp()
        return cls(
            digest=found.digest,
            versions=versions,
            tier=tier_of(found),
            device_bytes=found.device_bytes,
            host_bytes=found.host_bytes,
            disk_bytes=disk_bytes,
            leases=found.leases,
            last_used_at=_moment(found.last_used_at),
            loads=found.loads,
            last_load_ms=LoadView.of(found.last_load),
            pins=found.pins,
            pinned_until=_moment(now + found.pinned_seconds if found.pins else None),
            is_loading=found.is_loading,
        )


class TierView(Struct, frozen=True):
    """`capacity_bytes`: null where nothing but the disk itself is the limit."""

    adapters: int
    used_bytes: int
    capacity_bytes: int | None


class MemoryView(Struct, frozen=True, kw_only=True):
    """The device's memory that is shared: `adapter_bytes` and `kv_cache_bytes`, and how much of each is in use.

    `kv_cache_used_bytes`: by sequences; the rest holds reusable prefixes or nothing. `loads` and `evictions`: of
    adapters, since the engine's start.
    """

    adapter_bytes: int
    adapter_used_bytes: int
    adapter_pinned_bytes: int
    kv_cache_bytes: int
    kv_cache_used_bytes: int
    loads: int
    evictions: int

    @classmethod
    def of(cls, ready: Ready, status: Status) -> MemoryView:
        return cls(
            adapter_bytes=ready.adapter_device_bytes,
            adapter_used_bytes=status.adapter_device_bytes_used,
            adapter_pinned_bytes=status.adapter_pinned_bytes,
            kv_cache_bytes=ready.kv_cache_bytes,
            kv_cache_used_bytes=ready.kv_cache_bytes * status.pages_used // status.pages_total,
            loads=status.adapter_loads,
            evictions=status.adapter_evictions,
        )


class ResidencyOverview(Struct, frozen=True, kw_only=True):
    """`data`: adapters in some memory, those on the device first and of these the last used first, up to a limit."""

    memory: MemoryView
    tiers: dict[Tier, TierView]
    data: list[ResidentView]


def tier_of(found: Whereabouts) -> Tier:
    if found.device_bytes:
        return "device"
    return "host" if found.host_bytes else "disk"


def tiers_of(found: list[Whereabouts], ready: Ready, host_capacity: int, disk: DiskUse) -> dict[Tier, TierView]:
    def tier(sizes: list[int], capacity: int) -> TierView:
        return TierView(sum(size > 0 for size in sizes), sum(sizes), capacity)

    return {
        "device": tier([entry.device_bytes for entry in found], ready.adapter_device_bytes),
        "host": tier([entry.host_bytes for entry in found], host_capacity),
        "disk": TierView(disk.adapters, disk.size_bytes, None),
    }


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
