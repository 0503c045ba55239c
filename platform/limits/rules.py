"""What may be limited of a tenant and of a key, as operators write it. Plain data: knows no row and no request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

MOST = 10**12
"""The largest limit that can be set."""

Limit = Annotated[int, Meta(ge=1, le=MOST)]


class RateLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """None: not limited.

    tokens_per_minute: of prompts and answers. concurrent_requests, and queued_tokens (of the prompts of requests that
    have no answer yet), are counted by each server for itself: several servers together allow several times as much.
    """

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent_requests: Limit | None = None
    queued_tokens: Limit | None = None


class TenantLimits(RateLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Those of all of a tenant's keys together; None: what the server's settings say.

    adapter_requests_per_minute, adapter_tokens_per_minute: of each single adapter of the tenant.
    adapters, versions, stored_bytes: what it may keep; the same bytes count once.
    """

    adapter_requests_per_minute: Limit | None = None
    adapter_tokens_per_minute: Limit | None = None
    adapters: Limit | None = None
    versions: Limit | None = None
    stored_bytes: Limit | None = None

    @property
    def of_adapter(self) -> RateLimits:
        return RateLimits(
            requests_per_minute=self.adapter_requests_per_minute, tokens_per_minute=self.adapter_tokens_per_minute
        )


Limits = TypeVar("Limits", bound=RateLimits)

NO_LIMITS = RateLimits()


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What holds for requests with one key."""

    key: RateLimits
    tenant: RateLimits
    adapter: RateLimits


def caller_limits(key: RateLimits, tenant: TenantLimits) -> CallerLimits | None:
    """None where nothing is limited, so that such callers cost nothing."""
    of_tenant = RateLimits(**{field: getattr(tenant, field) for field in RateLimits.__struct_fields__})
    found = CallerLimits(key, of_tenant, tenant.of_adapter)
    return None if found == CallerLimits(NO_LIMITS, NO_LIMITS, NO_LIMITS) else found


def stored_limits(kind: type[Limits], row: Mapping[str, Any] | None, defaults: Limits | None = None) -> Limits:
    """As a row has them. What a later release may have put beside them is passed over."""
    given = {field: (row or {}).get(field) for field in kind.__struct_fields__}
    if defaults is not None:
        given = {field: getattr(defaults, field) if value is None else value for field, value in given.items()}
    return kind(**given)


def to_row(limits: RateLimits) -> dict[str, int] | None:
    """What `stored_limits` reads; None where there is nothing to keep."""
    return {field: value for field, value in msgspec.structs.asdict(limits).items() if value is not None} or None
