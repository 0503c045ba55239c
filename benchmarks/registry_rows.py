"""Thousands of adapters in a registry, made by its own calls, as uploads make them but without their weights.

Adapter n has 1 + n % 3 versions, each with the whole report of one that was really uploaded; `prod` is the newest and,
where there are two, `canary` is split over them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.audit import Actor
from loraplex.adapters.database import Database
from loraplex.adapters.registry import AdapterRegistry, VersionInfo

KEY_ID = "benchmark000"
BY = Actor("key", KEY_ID)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A version that a server took in: what the others are made after."""

    size_bytes: int
    rank: int
    targets: Sequence[str]
    report: Sequence[dict[str, Any]]


def adapter_name(number: int) -> str:
    """Names sort by number."""
    return f"adapter-{number:06}"


async def fill(
    database: Database,
    blobs: Path,
    tenant_id: str,
    base_model: str,
    pattern: Uploaded,
    numbers: Iterable[int],
    tell: Callable[[], None],
) -> None:
    """Add these adapters to a tenant's. Their blobs are empty folders, so that a sweep has as many to look at."""
    registry, aliases = AdapterRegistry(database), AdapterAliases(database)
    for number in numbers:
        name, newest = adapter_name(number), 1 + number % 3
        await registry.create_adapter(tenant_id, name, base_model)
        for version_number in range(1, newest + 1):
            version = await publish(registry, tenant_id, name, pattern, f"{name}@{version_number}")
            (blobs / version.digest[:2] / version.digest).mkdir(parents=True)
        await aliases.move(tenant_id, name, "prod", {newest: 1}, by=BY)
        if newest > 1:
            await aliases.move(tenant_id, name, "canary", {newest - 1: 90, newest: 10}, by=BY)
        tell()


async def publish(registry: AdapterRegistry, tenant_id: str, name: str, pattern: Uploaded, content: str) -> VersionInfo:
    """A version as an upload leaves it behind; its digest is that of `content`."""
    version = await registry.publish(
        tenant_id,
        name,
        digest=hashlib.sha256(content.encode()).hexdigest(),
        size_bytes=pattern.size_bytes,
        max_rank=pattern.rank,
        targets=pattern.targets,
        report=pattern.report[:1],
        by=BY,
    )
    return await registry.settle(version, "ready", report=pattern.report[1:])
