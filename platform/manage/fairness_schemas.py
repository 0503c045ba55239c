"""The body of the fairness view, for operators: who has how much of the engine."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from loraplex.platform.fairness import TenantShare


class TenantShareView(Struct, frozen=True, kw_only=True):
    """`service`: of the last five minutes, in the cost of a token of a prompt; a generated one costs two, a cached one
    a tenth. `share`: of all service; `fair_share`: by weight, of those that wanted any. `ahead`: its counter over the
    lowest, in service per weight. `oldest_seconds`: how long the oldest request that waits has done so. `refused`:
    requests of the last five minutes on this server, by reason."""

    tenant: str
    weight: float
    service: float
    share: float
    fair_share: float
    ahead: float
    running: int
    waiting: int
    oldest_seconds: float
    refused: dict[str, int]

    @classmethod
    def of(cls, share: TenantShare) -> TenantShareView:
        return cls(
            tenant=share.tenant.slug,
            weight=share.tenant.weight,
            service=share.service,
            share=share.share,
            fair_share=share.fair_share,
            ahead=share.ahead,
            running=share.running,
            waiting=share.waiting,
            oldest_seconds=share.oldest_seconds,
            refused=dict(share.refused),
        )


class FairnessView(Struct, frozen=True):
    """Those with most service first."""

    data: list[TenantShareView]

    @classmethod
    def of(cls, shares: Iterable[TenantShare]) -> FairnessView:
        return cls([TenantShareView.of(share) for share in shares])
