"""Requests of two tenants as the ledger has them, written by its own rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from api_running import Api

from loraplex.adapters.database import Database
from loraplex.platform.ledger.record import Contents, UsageRecord
from loraplex.platform.ledger.rows import UsageRows

SAID = Contents(days=7, request='{"prompt":"<b>Where is it?</b>"}', answer="<i>On its way.</i>")


def this_hour() -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


async def write_records(api: Api, database: Database) -> None:
    """Of acme, in this hour, two of bot, of which one failed and one has contents, and one of the base five hours ago;
    of globex one of its bot ten days ago, and one in this hour."""
    acme, globex = await api.tenant_id("acme"), await api.tenant_id("globex")
    now, hour = this_hour(), timedelta(hours=1)
    bot: dict[str, Any] = {"adapter": "bot", "version": 3, "digest": "d" * 64}
    await UsageRows(database).add(
        [
            record(1, acme, now, model="acme/bot@3", tokens=(100, 40, 10), contents=SAID, **bot),
            record(2, acme, now, model="acme/bot@3", tokens=(0, 0, 0), finish_reason="error", status=503, **bot),
            record(3, acme, now - 5 * hour, model="tiny", tokens=(7, 0, 3), key_id="K" * 12),
            record(4, globex, now - 240 * hour, model="globex/bot@3", tokens=(1000, 0, 500), **bot),
            record(5, globex, now, model="globex/bot@3", tokens=(2000, 1000, 50), **bot),
        ]
    )


def record(number: int, tenant_id: str, moment: datetime, tokens: tuple[int, int, int], **more: Any) -> UsageRecord:
    """Its id is the number; of a request that took a second, 200 ms of it to the first token."""
    prompt, cached, completion = tokens
    answered = {"queue_ms": 20, "load_ms": 60, "ttft_ms": 200} if completion else {}
    given: dict[str, Any] = {"key_id": f"{tenant_id[:8]}-key", "finish_reason": "stop"} | answered | more
    return UsageRecord(
        id=record_id(number),
        request_id=f"req_{number}",
        server_id="s1",
        started_at=moment,
        tenant_id=tenant_id,
        endpoint="chat",
        asked="bot",
        choices=1,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        total_ms=1000,
        **given,
    )


def record_id(number: int) -> str:
    return f"{number:032x}"
