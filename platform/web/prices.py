"""What tokens cost, as operators set it by forms: by default, and for adapters that have prices of their own."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from msgspec import Struct
from msgspec.structs import replace

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.errors import ApiError
from loraplex.platform.ledger.prices import MAX_PRICES, MILLION, PriceTable, TokenPrice
from loraplex.platform.services import Services
from loraplex.platform.web.errors import REFUSALS, refusal_of
from loraplex.platform.web.forms import Fields, form_fields, only, read_form
from loraplex.platform.web.rendering import go, page

PATH = "/prices"
KINDS = ("prompt", "cached", "completion")
MOST = 10**6
"""Of the currency's unit, for a million tokens."""

_DECIMAL = re.compile(r"\d{1,7}(\.\d{1,6})?", re.ASCII)


class CurrencyForm(Struct, forbid_unknown_fields=True):
    currency: str
    prompt: str = ""
    cached: str = ""
    completion: str = ""


class AdapterPriceForm(Struct, forbid_unknown_fields=True):
    adapter: str
    prompt: str = ""
    cached: str = ""
    completion: str = ""


class AdapterForm(Struct, forbid_unknown_fields=True):
    adapter: str


@get(PATH, opt={"page": "operator"})
async def show_prices(request: Request[Any, Any, Any], services: NamedDependency[Services]) -> Response[Any]:
    """The prices that hold now."""
    return await _prices_page(request, services)


@post(PATH, opt={"page": "operator"} | audited("prices.set"))
async def set_default_price(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Set the currency, and what costs nothing else: nothing at all, where the three fields are empty."""
    fields = await form_fields(request)
    try:
        form = read_form(fields, CurrencyForm)
        default = _price(form) if form.prompt or form.cached or form.completion else None
        await services.prices.change(lambda table: _with_default(table, form.currency.upper(), default), by=by)
    except REFUSALS as error:
        return await _prices_page(request, services, refusal=refusal_of(request, error), default=fields)
    return go("/admin" + PATH, "prices-set")


@post(PATH + "/adapters", opt={"page": "operator"} | audited("prices.set"))
async def set_adapter_price(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """Give one adapter prices of its own, or other ones."""
    fields = await form_fields(request)
    try:
        form = read_form(fields, AdapterPriceForm)
        price = _price(form)
        await services.prices.change(
            lambda table: replace(table, adapters=dict(sorted((table.adapters | {form.adapter: price}).items()))),
            by=by,
        )
    except REFUSALS as error:
        return await _prices_page(request, services, refusal=refusal_of(request, error), adapter=fields)
    return go("/admin" + PATH, "prices-set")


@post(PATH + "/adapters/delete", opt={"page": "operator"} | audited("prices.set"))
async def delete_adapter_price(
    request: Request[Any, Any, Any], services: NamedDependency[Services], by: NamedDependency[Actor]
) -> Response[Any]:
    """From here on the adapter costs what all others do."""
    name = read_form(await form_fields(request), AdapterForm).adapter
    await services.prices.change(lambda table: replace(table, adapters=_without(table, name)), by=by)
    return go("/admin" + PATH, "prices-set")


async def _prices_page(
    request: Request[Any, Any, Any],
    services: Services,
    refusal: ApiError | None = None,
    default: Fields | None = None,
    adapter: Fields | None = None,
) -> Response[Any]:
    """default, adapter: what was typed into a form that was refused."""
    table = await services.prices.get()
    return page(
        request,
        "prices.html",
        refusal=refusal,
        table=table,
        prices={name: _shown(price) for name, price in table.adapters.items()},
        default=_typed(default) if default else {"currency": table.currency} | _shown(table.default),
        new=_typed(adapter or {}),
        is_full=len(table.adapters) >= MAX_PRICES,
    )


def _price(form: CurrencyForm | AdapterPriceForm) -> TokenPrice:
    return TokenPrice(**{kind: _micros(getattr(form, kind), kind) for kind in KINDS})


def _micros(text: str, param: str) -> int:
    """Of a decimal number of the currency's unit. Raises ApiError."""
    micros = int(Decimal(text) * MILLION) if _DECIMAL.fullmatch(text) else None
    if micros is None or micros > MOST * MILLION:
        message = f"'{param}' is no price: write a number from 0 to {MOST}, as 0.15, with at most six decimals."
        raise ApiError(400, "invalid_value", message, param=param)
    return micros


def _with_default(table: PriceTable, currency: str, default: TokenPrice | None) -> PriceTable:
    """Raises ApiError where nothing would have a price in that currency, so that it would be forgotten."""
    if default is None and table.default is None and not table.adapters:
        message = "A currency alone sets nothing: give the prices for everything, or an adapter's own first."
        raise ApiError(400, "invalid_value", message, param="currency")
    return replace(table, currency=currency, default=default)


def _without(table: PriceTable, adapter: str) -> dict[str, TokenPrice]:
    return {name: price for name, price in table.adapters.items() if name != adapter}


def _shown(price: TokenPrice | None) -> dict[str, str]:
    return {kind: "" if price is None else decimal(getattr(price, kind)) for kind in KINDS}


def _typed(fields: Fields) -> dict[str, str]:
    return {name: only(fields, name) for name in ("currency", "adapter", *KINDS)}


def decimal(micros: int) -> str:
    """150000 -> "0.15"; at least two decimals."""
    whole, part = divmod(micros, MILLION)
    digits = f"{part:06}".rstrip("0")
    return f"{whole}.{digits:0<2}"


PRICE_PAGES = [show_prices, set_default_price, set_adapter_price, delete_adapter_price]
