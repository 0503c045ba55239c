"""`loraplex tenant limits` and `loraplex key limits`: show what is limited, and change it.

Knows click and the rows; which limits there are it takes from `limits.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from loraplex.platform.cli.database import by_command, database_options, print_json, print_table, run_with_database
from loraplex.platform.limits.owners import LimitOwners
from loraplex.platform.limits.rules import MOST, Limits, RateLimits, TenantLimits
from loraplex.platform.setting_types import parse_size

NONE = "none"

HELP = {
    "requests_per_minute": "Requests per minute.",
    "tokens_per_minute": "Tokens per minute, of prompts and answers.",
    "concurrent_requests": "Requests at the same time, on each server.",
    "queued_tokens": "Tokens of prompts that wait for their answer to begin, on each server.",
    "adapter_requests_per_minute": "Requests per minute of each single adapter.",
    "adapter_tokens_per_minute": "Tokens per minute of each single adapter.",
    "adapters": "Adapters that it may keep.",
    "versions": "Versions of adapters that it may keep.",
    "stored_bytes": "Bytes of adapters that it may keep.",
}

Command = TypeVar("Command", bound=Callable[..., Any])


class LimitType(click.ParamType[int | str]):
    """A number, which may have the unit of a size, or `none`."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == NONE:
            return NONE
        try:
            number = parse_size(value)
        except ValueError:
            number = 0
        if not 1 <= number <= MOST:
            self.fail(f"give a whole number from 1 to {MOST}, such as 90000 or 10GiB, or {NONE}", param, ctx)
        return number


def limit_options(kind: type[RateLimits]) -> Callable[[Command], Command]:
    """An option for each limit of that kind; those that are not given are None."""

    def decorate(command: Command) -> Command:
        for field in reversed(kind.__struct_fields__):
            name = f"--{field.replace('_', '-')}"
            command = click.option(name, field, type=LimitType(), help=HELP[field])(command)
        return command

    return decorate


@click.command("limits")
@click.argument("slug")
@limit_options(TenantLimits)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_options
def tenant_limits(url: str, /, slug: str, as_json: bool, **given: Any) -> None:
    """Show what is limited of the tenant SLUG, or change it: what is given is set, `none` takes a limit away.

    Where a tenant has none of its own, the server's setting tenant_limits holds.
    """
    if any(value is not None for value in given.values()):
        change, by = _changing(given), by_command()
        limits = run_with_database(url, lambda database: LimitOwners(database).set_tenant(slug, change, by=by))
    else:
        limits = run_with_database(url, lambda database: LimitOwners(database).of_tenant(slug))
    _show(limits, as_json)


@click.command("limits")
@click.argument("key_id")
@limit_options(RateLimits)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@database_options
def key_limits(url: str, /, key_id: str, as_json: bool, **given: Any) -> None:
    """Show what is limited of the key KEY_ID, beside its tenant's limits, or change it: what is given is set, `none`
    takes a limit away."""
    if any(value is not None for value in given.values()):
        change, by = _changing(given), by_command()
        limits = run_with_database(url, lambda database: LimitOwners(database).set_key(key_id, change, by=by))
    else:
        limits = run_with_database(url, lambda database: LimitOwners(database).of_key(key_id))
    _show(limits, as_json)


def _changing(given: dict[str, Any]) -> Callable[[Limits], Limits]:
    changes = {field: None if value == NONE else value for field, value in given.items() if value is not None}
    return lambda limits: msgspec.structs.replace(limits, **changes)


def _show(limits: RateLimits, as_json: bool) -> None:
    if as_json:
        print_json(limits)
        return
    shown = msgspec.structs.asdict(limits).items()
    print_table("limit", "", rows=((field, "-" if value is None else str(value)) for field, value in shown))
