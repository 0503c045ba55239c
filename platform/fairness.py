"""Who has how much of the engine: its opaque owners as the tenants that they are, with what each was refused.

Knows tenants and what the engine tells; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from loraplex.engine.messages import OwnerShare
from loraplex.platform.limits.refusals import Refusals
from loraplex.platform.tenants import TenantInfo


@dataclass(frozen=True, slots=True)
class TenantShare:
    """service: of the last five minutes, in the cost of a token of a prompt. share: of all service then; fair_share: of
    the weights of those that had any or wait now, 0 for one that did neither. ahead: its counter, over the lowest of
    those. refused: requests of the last five minutes, by reason."""

    tenant: TenantInfo
    refused: Mapping[str, int]
    service: float = 0.0
    share: float = 0.0
    fair_share: float = 0.0
    ahead: float = 0.0
    running: int = 0
    waiting: int = 0
    oldest_seconds: float = 0.0

    @property
    def is_active(self) -> bool:
        return self.fair_share > 0


def tenant_shares(tenants: Iterable[TenantInfo], owners: Sequence[OwnerShare], refusals: Refusals) -> list[TenantShare]:
    """Of all these tenants, those with most service first. What the server runs for itself, and what tenants that are
    not among these have, counts in the whole."""
    active = {owner.owner: owner for owner in owners if owner.recent_service or owner.running or owner.waiting}
    service = sum(owner.recent_service for owner in active.values())
    weights = sum(owner.weight for owner in active.values())
    lowest = min((owner.counter for owner in active.values()), default=0.0)
    shares = []
    for tenant in tenants:
        share = TenantShare(tenant, refusals.of(tenant.id))
        if owner := active.get(tenant.id):
            share = replace(
                share,
                service=owner.recent_service,
                share=owner.recent_service / service if service else 0.0,
                fair_share=owner.weight / weights,
                ahead=owner.counter - lowest,
                running=owner.running,
                waiting=owner.waiting,
                oldest_seconds=owner.oldest_seconds,
            )
        shares.append(share)
    return sorted(shares, key=lambda share: (-share.service, not share.waiting, share.tenant.slug))
