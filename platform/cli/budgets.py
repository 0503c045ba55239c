"""`loraplex tenant budget` and `loraplex key budget`: show what may be spent and what was, and change it.

Knows click and the rows; what a budget is it takes from `budgets.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar, get_args

import click
import msgspec

from loraplex.platform.budgets.owners import BudgetOwners, BudgetUse
from loraplex.platform.budgets.rules import MOST, Budget, Period
from loraplex.platform.budgets.wording import MICROS, in_currency
from loraplex.platform.cli.database import by_command, database_options, print_json, print_table, run_with_database
from loraplex.platform.cli.limits import NONE

Command = TypeVar("Command", bound=Callable[..., Any])


class AmountType(click.ParamType[int | str]):
    """A number, in millionths where it is one of money, or `none`."""

    name = "NUMBER"

    def __init__(self, unit: int, example: str) -> None:
        self._unit = unit
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == NONE:
            return NONE
        try:
            amount = Decimal(value) * self._unit
        except InvalidOperation:
            amount = Decimal("NaN")
        if not (amount.is_finite() and 1 <= amount <= MOST and amount == int(amount)):
            self.fail(f"give a number such as {self._example}, or {NONE}", param, ctx)
        return int(amount)


def budget_options(command: Command) -> Command:
    """Those that are not given are None."""
    period = click.Choice(get_args(Period))
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--period", type=period, help="Of a day, of a month, both in UTC, or of all time."),
        click.option("--cost", "cost_micros", type=AmountType(MICROS, "250.50"), help="In the price table's currency."),
        click.option("--tokens", type=AmountType(1, "5000000"), help="Of prompts and answers."),
    ):
        command = option(command)
    return command


@click.command("budget")
@click.argument("slug")
@budget_options
@database_options
def tenant_budget(url: str, /, slug: str, as_json: bool, **given: Any) -> None:
    """Show what the tenant SLUG may spend and has spent, or change it: what is given is set, `none` takes an amount
    away."""
    if any(value is not None for value in given.values()):
        use = run_with_database(
            url, lambda database: BudgetOwners(database).set_tenant(slug, _changing(given), by=by_command())
        )
    else:
        use = run_with_database(url, lambda database: BudgetOwners(database).of_tenant(slug))
    _show(use, as_json)


@click.command("budget")
@click.argument("key_id")
@budget_options
@database_options
def key_budget(url: str, /, key_id: str, as_json: bool, **given: Any) -> None:
    """Show what may be spent with the key KEY_ID, of its tenant's budget, and what was, or change it: what is given is
    set, `none` takes an amount away."""
    if any(value is not None for value in given.values()):
        use = run_with_database(
            url, lambda database: BudgetOwners(database).set_key(key_id, _changing(given), by=by_command())
        )
    else:
        use = run_with_database(url, lambda database: BudgetOwners(database).of_key(key_id))
    _show(use, as_json)


def _changing(given: dict[str, Any]) -> Callable[[Budget], Budget]:
    changes = {field: None if value == NONE else value for field, value in given.items() if value is not None}
    return lambda budget: msgspec.structs.replace(budget, **changes)


def _show(use: BudgetUse, as_json: bool) -> None:
    if as_json:
        print_json(use)
        return
    cost = "-" if use.cost_micros is None else in_currency(use.cost_micros, use.currency)
    rows = (
        ("tokens", "-" if use.tokens is None else str(use.tokens), str(use.used_tokens)),
        ("cost", cost, in_currency(use.used_cost_micros, use.currency)),
    )
    print_table("budget", use.period, "used", rows=iter(rows))
    if use.renews_at is not None:
        click.echo(f"starts anew at {use.renews_at:%Y-%m-%d %H:%M} UTC")
