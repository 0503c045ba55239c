"""What tokens cost, as operators set it. A request costs what held when it was written into the ledger; a price that is
changed later changes nothing of that. Knows rows; knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from msgspec import Meta, Struct, convert, to_builtins
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from loraplex.adapters.audit import SERVER, Actor, record
from loraplex.adapters.database import Database
from loraplex.platform.ledger.record import Tokens
from loraplex.platform.ledger.schema import Price

MILLION = 1_000_000
MAX_PRICES = 1000

Micros = Annotated[int, Meta(ge=0, le=10**12)]
"""Millionths of a currency's unit: 150000 is 0.15."""


class TokenPrice(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of a million tokens each. cached: of those of the prompt that the cache had, which do not count as `prompt`."""

    prompt: Micros
    cached: Micros
    completion: Micros

    def cost_of(self, tokens: Tokens) -> int:
        """In millionths, rounded half up."""
        fresh = tokens.prompt_tokens - tokens.cached_tokens
        total = fresh * self.prompt + tokens.cached_tokens * self.cached + tokens.completion_tokens * self.completion
        return (total + MILLION // 2) // MILLION


class PriceTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`currency`: three letters, as ISO 4217 has them. `adapters`: by `tenant/name`; what stands not there costs
    `default`, which may be null, as where nothing is charged."""

    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] = "USD"
    default: TokenPrice | None = None
    adapters: Annotated[
        dict[Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}$")], TokenPrice],
        Meta(max_length=MAX_PRICES),
    ] = {}

    def of(self, adapter: str) -> TokenPrice | None:
        """adapter: `tenant/name`, or "tenant/" where it is the base."""
        return self.adapters.get(adapter, self.default)


class Prices:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self) -> PriceTable:
        async with self._database.read() as session:
            return await price_table(session)

    async def set(self, table: PriceTable, *, by: Actor = SERVER) -> PriceTable:
        """Instead of all there were."""
        return await self.change(lambda _: table, by=by)

    async def change(self, edit: Callable[[PriceTable], PriceTable], *, by: Actor = SERVER) -> PriceTable:
        """What `edit` makes of those there are. Raises msgspec.ValidationError for a table that cannot be."""
        async with self._database.transaction() as session:
            before = await price_table(session)
            table = convert(to_builtins(edit(before)), PriceTable)
            await session.execute(delete(Price))
            session.add_all(_rows(table))
            told = {"before": to_builtins(before), "after": to_builtins(table)}
            await record(session, by, "prices.set", "prices", **told)
        return table


async def price_table(session: AsyncSession) -> PriceTable:
    rows: Sequence[Price] = (await session.scalars(select(Price))).all()
    if not rows:
        return PriceTable()
    prices: Mapping[str, TokenPrice] = {
        row.adapter: TokenPrice(prompt=row.prompt, cached=row.cached, completion=row.completion) for row in rows
    }
    adapters = {adapter: price for adapter, price in sorted(prices.items()) if adapter}
    return PriceTable(currency=rows[0].currency, default=prices.get(""), adapters=adapters)


def _rows(table: PriceTable) -> list[Price]:
    prices = table.adapters if table.default is None else {"": table.default, **table.adapters}
    return [
        Price(
            adapter=adapter,
            currency=table.currency,
            prompt=price.prompt,
            cached=price.cached,
            completion=price.completion,
        )
        for adapter, price in prices.items()
    ]
