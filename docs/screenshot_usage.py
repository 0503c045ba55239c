"""Thirty days of usage for the pictures of the admin pages, written into a server's ledger as the server does it."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from loraplex.adapters.database import Database
from loraplex.platform.ledger.record import Contents, UsageRecord
from loraplex.platform.ledger.rows import UsageRows
from loraplex.platform.schema import ApiKey, Tenant

DAYS = 30
AT_ONCE = 500

USES = (
    # tenant, adapter, version, requests at the busiest hour, tokens in and out, share in the cache
    ("acme", "concierge", 1, 26, 900, 160, 0.62),
    ("acme", "concierge", 2, 3, 900, 150, 0.58),
    ("acme", "ticket-router", 1, 14, 420, 12, 0.81),
    ("acme", "order-json", 1, 7, 1500, 240, 0.2),
    ("globex", "house-style", 1, 9, 2300, 620, 0.35),
    ("globex", "", 0, 4, 700, 300, 0.05),
)
CONTENTS = Contents(
    days=30,
    request='{"messages":[{"role":"user","content":"My parcel has not arrived yet. Where is it?"}],"max_tokens":64}',
    answer="I am sorry to hear that. Could you send me your order number? I will look up where the parcel is.",
)


async def write_usage(url: str) -> None:
    """url: of the database of a server that has the tenants."""
    database = Database(url)
    async with database.read() as session:
        tenants = dict((await session.execute(select(Tenant.slug, Tenant.id))).all())
        found = await session.scalars(select(ApiKey).order_by(ApiKey.created_at))
        keys = [(key.tenant_id, key.id) for key in found if "inference" in key.scopes]
    rows, records = UsageRows(database), list(usage(tenants, keys, datetime.now(UTC)))
    for begin in range(0, len(records), AT_ONCE):
        await rows.add(records[begin : begin + AT_ONCE])
    await database.dispose()


def usage(tenants: Mapping[str, str], keys: Sequence[tuple[str, str]], now: datetime) -> Iterator[UsageRecord]:
    """Busy by day, quiet by night and at weekends; now and then something fails. tenants: id by slug. keys: each after
    the id of its tenant."""
    chance = random.Random(6)  # noqa: S311  for pictures
    for tenant, adapter, version, most, prompt, completion, cached in USES:
        owner = tenants[tenant]
        own = [key for tenant_id, key in keys if tenant_id == owner]
        for hour in range(DAYS * 24):
            begins = now - timedelta(hours=hour + 1)
            for _ in range(_requests(chance, begins, most, hour)):
                moment = begins + timedelta(seconds=chance.uniform(0, 3600))
                tokens = chance.gauss(1, 0.25) * prompt, chance.gauss(1, 0.3) * completion
                yield _record(
                    chance, owner, _mostly_first(chance, own), moment, f"{tenant}/{adapter}", version, tokens, cached
                )


def _requests(chance: random.Random, moment: datetime, most: int, hours_ago: int) -> int:
    daylight = max(0.08, math.sin((moment.hour - 6) / 24 * 2 * math.pi) * 0.5 + 0.5)
    growth = 1 - 0.5 * hours_ago / (DAYS * 24)
    return round(most * daylight * growth * (0.3 if moment.weekday() >= 5 else 1) * chance.uniform(0.6, 1.2))


def _mostly_first(chance: random.Random, keys: Sequence[str]) -> str:
    return keys[0] if chance.random() < 0.7 else chance.choice(keys)


def _record(
    chance: random.Random,
    tenant_id: str,
    key_id: str,
    moment: datetime,
    name: str,
    version: int,
    tokens: tuple[float, float],
    cached: float,
) -> UsageRecord:
    slug, _, adapter = name.partition("/")
    prompt, completion = (max(1, round(number)) for number in tokens)
    queue, load = round(chance.expovariate(1 / 12)), round(chance.gauss(70, 15)) if chance.random() < 0.04 else 0
    ttft = queue + load + 30 + round(prompt * 0.05)
    model = f"{slug}/{adapter}@{version}" if adapter else "smollm2-135m-instruct"
    asked = {
        "id": f"{chance.getrandbits(128):032x}",
        "request_id": f"req_{chance.getrandbits(64):016x}",
        "server_id": "server-1",
        "started_at": moment,
        "tenant_id": tenant_id,
        "key_id": key_id,
        "endpoint": chance.choice(["chat", "chat", "chat", "responses", "messages"]),
        "asked": name if adapter else model,
    }
    if chance.random() < 0.012:
        return UsageRecord(**asked, total_ms=chance.randint(1, 4), finish_reason="refused", status=429)
    return UsageRecord(
        **asked,
        model=model,
        adapter=adapter,
        version=version,
        digest=hashlib.sha256(model.encode()).hexdigest() if adapter else "",
        choices=1,
        prompt_tokens=prompt,
        cached_tokens=round(prompt * cached * chance.uniform(0.7, 1.1)),
        completion_tokens=completion,
        queue_ms=queue,
        load_ms=load,
        ttft_ms=ttft,
        total_ms=ttft + round(completion * chance.uniform(7, 10)),
        finish_reason=chance.choices(["stop", "length", "client_closed", "error"], [90, 8, 1.5, 0.5])[0],
        status=200,
        contents=CONTENTS if adapter == "concierge" else None,
    )
