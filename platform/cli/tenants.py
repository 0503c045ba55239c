"""`loraplex tenant` and `loraplex key`: work on the database itself, whether a server runs or not.

Knows click and the tenant directory.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from loraplex.platform.cli.budgets import key_budget, tenant_budget
from loraplex.platform.cli.database import by_command, database_options, print_json, print_table, run_with_database
from loraplex.platform.cli.key_changes import adapters_option, end_old_secret, key_facts, rotate, set_terms
from loraplex.platform.cli.limits import key_limits, tenant_limits
from loraplex.platform.key_terms import SCOPES, KeyInfo
from loraplex.platform.tenants import (
    DEFAULT_WEIGHT,
    MAX_WEIGHT,
    MIN_WEIGHT,
    TenantDirectory,
    TenantInfo,
)

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def weight_option(**options: Any) -> Callable[[Command], Command]:
    """options: of click.option."""
    bounds = click.FloatRange(MIN_WEIGHT, MAX_WEIGHT)
    return click.option(
        "--weight", type=bounds, help="How much of a full engine it gets, relative to other tenants.", **options
    )


@click.group()
def tenant() -> None:
    """Tenants: create, list, weigh, suspend, resume, limit, budget."""


tenant.add_command(tenant_limits)
tenant.add_command(tenant_budget)


@tenant.command("create")
@click.argument("slug")
@click.option("--name", default="", help="A name for people.")
@weight_option(default=DEFAULT_WEIGHT, show_default=True)
@json_option
@database_options
def create_tenant(url: str, slug: str, name: str, weight: float, as_json: bool) -> None:
    """Create the tenant SLUG: its adapters are called SLUG/NAME."""
    created = run_with_database(
        url, lambda database: TenantDirectory(database).create_tenant(slug, name, weight, by=by_command())
    )
    if as_json:
        print_json(created)
    else:
        click.echo(f"Tenant {slug} is there. Give it a key with:\n")
        click.echo(f"  loraplex key create --tenant {slug} --scope inference --scope adapters")


@tenant.command("list")
@json_option
@database_options
def list_tenants(url: str, as_json: bool) -> None:
    """List all tenants."""
    tenants = run_with_database(url, lambda database: TenantDirectory(database).list_tenants())
    if as_json:
        print_json(tenants)
    else:
        rows = ((each.slug, each.name, f"{each.weight:g}", _state(each), _moment(each.created_at)) for each in tenants)
        print_table("tenant", "name", "weight", "state", "created", rows=rows)


@tenant.command("set")
@click.argument("slug")
@weight_option(required=True)
@json_option
@database_options
def set_tenant(url: str, slug: str, weight: float, as_json: bool) -> None:
    """Change the tenant SLUG; running servers go by it within 2 seconds."""
    changed = run_with_database(
        url, lambda database: TenantDirectory(database).set_weight(slug, weight, by=by_command())
    )
    if as_json:
        print_json(changed)
    else:
        click.echo(f"Tenant {slug} has the weight {changed.weight:g}.")


@tenant.command()
@click.argument("slug")
@json_option
@database_options
def suspend(url: str, slug: str, as_json: bool) -> None:
    """Refuse all keys of the tenant SLUG until it is resumed."""
    _set_suspended(url, slug, as_json, suspended=True)


@tenant.command()
@click.argument("slug")
@json_option
@database_options
def resume(url: str, slug: str, as_json: bool) -> None:
    """Accept the keys of the tenant SLUG again."""
    _set_suspended(url, slug, as_json, suspended=False)


@click.group()
def key() -> None:
    """API keys: create, list, set, rotate, revoke, limit."""


for command in (key_limits, key_budget, set_terms, rotate, end_old_secret):
    key.add_command(command)


@key.command("create")
@click.option("--tenant", help="The tenant that the key speaks for.")
@click.option("--admin", is_flag=True, help="An operator's key instead: scope admin, no tenant.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(sorted(SCOPES - {"admin"})),
    help="What the key may do; repeat it for more.  [default: inference]",
)
@click.option("--name", default="", help="A name for people.")
@adapters_option
@click.option("--expires-in-days", type=click.IntRange(1, 36500), help="Default: never.")
@json_option
@database_options
def create_key(
    url: str,
    tenant: str | None,
    admin: bool,
    scopes: tuple[str, ...],
    name: str,
    adapters: tuple[str, ...],
    expires_in_days: int | None,
    as_json: bool,
) -> None:
    """Create an API key and print it: this once."""
    if admin == (tenant is not None) or (admin and (scopes or adapters)):
        raise click.UsageError("give either --tenant, with its --scope and --adapter options, or --admin alone")
    wanted = ("admin",) if admin else scopes or ("inference",)
    expires_at = None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    info, secret = run_with_database(
        url,
        lambda database: TenantDirectory(database).create_key(
            tenant, name, wanted, expires_at, adapters or None, by=by_command()
        ),
    )
    if as_json:
        print_json(key_facts(info) | {"secret": secret})
    else:
        click.echo(f"{secret}\n")
        click.echo("It is shown this once. Send it as a header, `Authorization: Bearer lk_...`, or export it:\n")
        click.echo(f"  export LORAPLEX_API_KEY={secret}  # OpenAI's clients read OPENAI_API_KEY")


@key.command("list")
@click.option("--tenant", help="Only this tenant's keys.")
@json_option
@database_options
def list_keys(url: str, tenant: str | None, as_json: bool) -> None:
    """List API keys, without their secrets."""
    keys = run_with_database(url, lambda database: TenantDirectory(database).list_keys(tenant))
    if as_json:
        print_json([key_facts(each) for each in keys])
    else:
        print_table("key", "tenant", "name", "may", "state", "expires", "last used", rows=map(_key_row, keys))


@key.command()
@click.argument("key_id")
@json_option
@database_options
def revoke(url: str, key_id: str, as_json: bool) -> None:
    """End the key KEY_ID, the 12 characters after `lk_`, for good."""
    revoked = run_with_database(url, lambda database: TenantDirectory(database).revoke_key(key_id, by=by_command()))
    if as_json:
        print_json(key_facts(revoked))
    else:
        click.echo(f"Key {key_id} is revoked.")


def _set_suspended(url: str, slug: str, as_json: bool, *, suspended: bool) -> None:
    changed = run_with_database(
        url, lambda database: TenantDirectory(database).set_suspended(slug, suspended, by=by_command())
    )
    if as_json:
        print_json(changed)
    else:
        click.echo(f"Tenant {slug} is {_state(changed)}.")


def _state(tenant: TenantInfo) -> str:
    return "active" if tenant.suspended_at is None else "suspended"


def _key_row(key: KeyInfo) -> tuple[str, ...]:
    expired = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    state = "revoked" if key.revoked_at else "expired" if expired else "active"
    if key.old_secret is not None:
        state += f", old secret until {_moment(key.old_secret.ends_at)}"
    may = ", ".join(sorted(key.scopes)) + ("" if key.adapters is None else f": {', '.join(sorted(key.adapters))}")
    return key.id, key.tenant or "(operator)", key.name, may, state, _moment(key.expires_at), _moment(key.last_used_at)


def _moment(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"
