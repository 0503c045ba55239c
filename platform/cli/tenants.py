"""`loraplex tenant` and `loraplex key`: work on the database itself, whether a server runs or not.

Knows click and the tenant directory.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import msgspec

from loraplex.platform.cli.budgets import key_budget, tenant_budget
from loraplex.platform.cli.database import database_options, print_json, print_table, run_with_database
from loraplex.platform.cli.limits import key_limits, tenant_limits
from loraplex.platform.tenants import SCOPES, KeyInfo, TenantDirectory, TenantInfo

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def tenant() -> None:
    """Tenants: create, list, suspend, resume, limit, budget."""


tenant.add_command(tenant_limits)
tenant.add_command(tenant_budget)


@tenant.command("create")
@click.argument("slug")
@click.option("--name", default="", help="A name for people.")
@json_option
@database_options
def create_tenant(url: str, slug: str, name: str, as_json: bool) -> None:
    """Create the tenant SLUG: its adapters are called SLUG/NAME."""
    created = run_with_database(url, lambda database: TenantDirectory(database).create_tenant(slug, name))
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
        rows = ((each.slug, each.name, _state(each), _moment(each.created_at)) for each in tenants)
        print_table("tenant", "name", "state", "created", rows=rows)


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
    """API keys: create, list, revoke, limit."""


key.add_command(key_limits)
key.add_command(key_budget)


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
@click.option("--expires-in-days", type=click.IntRange(1, 36500), help="Default: never.")
@json_option
@database_options
def create_key(
    url: str,
    tenant: str | None,
    admin: bool,
    scopes: tuple[str, ...],
    name: str,
    expires_in_days: int | None,
    as_json: bool,
) -> None:
    """Create an API key and print it: this once."""
    if admin == (tenant is not None) or (admin and scopes):
        raise click.UsageError("give either --tenant, with its --scope options, or --admin alone")
    wanted = ("admin",) if admin else scopes or ("inference",)
    expires_at = None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    info, secret = run_with_database(
        url, lambda database: TenantDirectory(database).create_key(tenant, name, wanted, expires_at)
    )
    if as_json:
        print_json(msgspec.to_builtins(info) | {"scopes": sorted(info.scopes), "secret": secret})
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
        print_json(keys)
    else:
        print_table("key", "tenant", "name", "scopes", "state", "created", "last used", rows=map(_key_row, keys))


@key.command()
@click.argument("key_id")
@json_option
@database_options
def revoke(url: str, key_id: str, as_json: bool) -> None:
    """End the key KEY_ID, the 12 characters after `lk_`, for good."""
    revoked = run_with_database(url, lambda database: TenantDirectory(database).revoke_key(key_id))
    if as_json:
        print_json(revoked)
    else:
        click.echo(f"Key {key_id} is revoked.")


def _set_suspended(url: str, slug: str, as_json: bool, *, suspended: bool) -> None:
    changed = run_with_database(url, lambda database: TenantDirectory(database).set_suspended(slug, suspended))
    if as_json:
        print_json(changed)
    else:
        click.echo(f"Tenant {slug} is {_state(changed)}.")


def _state(tenant: TenantInfo) -> str:
    return "active" if tenant.suspended_at is None else "suspended"


def _key_row(key: KeyInfo) -> tuple[str, ...]:
    expired = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    state = "revoked" if key.revoked_at else "expired" if expired else "active"
    owner, scopes = key.tenant or "(operator)", ", ".join(sorted(key.scopes))
    return key.id, owner, key.name, scopes, state, _moment(key.created_at), _moment(key.last_used_at)


def _moment(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"
