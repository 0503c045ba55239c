"""`loraplex key set`, `rotate` and `end-old-secret`: work on the database itself, whether a server runs or not.

Knows click and the changes that keys can have.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec

from loraplex.platform.cli.database import by_command, database_options, print_json, run_with_database
from loraplex.platform.cli.residency import Duration
from loraplex.platform.key_changes import KeyChanges
from loraplex.platform.key_terms import BASE, SCOPES, KeyInfo, KeyTerms

adapters_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help=f"Name of an adapter that requests with the key may be for, {BASE} for the base; repeat it for more.  "
    "[default: all]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command("set")
@click.argument("key_id")
@click.option("--name", help="A name for people.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(sorted(SCOPES)), help="What the key may do.")
@adapters_option
@click.option("--all-adapters", is_flag=True, help="Requests may be for whatever the tenant has.")
@click.option("--expires-in-days", type=click.IntRange(1, 36500), help="From now on.")
@click.option("--never-expires", is_flag=True)
@json_option
@database_options
def set_terms(url: str, /, key_id: str, all_adapters: bool, never_expires: bool, as_json: bool, **given: Any) -> None:
    """Change what the key KEY_ID, the 12 characters after `lk_`, may do, or until when. What is not given stays."""
    if (all_adapters and given["adapters"]) or (never_expires and given["expires_in_days"]):
        raise click.UsageError("give --adapter or --all-adapters, --expires-in-days or --never-expires")
    changes: dict[str, Any] = {} if given["name"] is None else {"name": given["name"]}
    for field in ("scopes", "adapters"):
        if given[field]:
            changes[field] = frozenset(given[field])
    if given["expires_in_days"] is not None:
        changes["expires_at"] = datetime.now(UTC) + timedelta(days=given["expires_in_days"])
    changes |= ({"adapters": None} if all_adapters else {}) | ({"expires_at": None} if never_expires else {})
    if not changes:
        raise click.UsageError("give what is to change, for instance --adapter NAME")

    def change(terms: KeyTerms) -> KeyTerms:
        return replace(terms, **changes)

    changed = run_with_database(url, lambda database: KeyChanges(database).change(key_id, change, by=by_command()))
    if as_json:
        print_json(key_facts(changed))
    else:
        click.echo(f"Key {key_id} is changed.")


@click.command()
@click.argument("key_id")
@click.option(
    "--overlap",
    "seconds",
    type=Duration(),
    default="24h",
    show_default=True,
    help="How long the old secret holds beside the new one, 30d at most; 0s ends it now.",
)
@json_option
@database_options
def rotate(url: str, key_id: str, seconds: int, as_json: bool) -> None:
    """Give the key KEY_ID another secret and print it: this once."""
    overlap = timedelta(seconds=seconds)
    info, secret = run_with_database(
        url, lambda database: KeyChanges(database).rotate(key_id, overlap, by=by_command())
    )
    if as_json:
        print_json(key_facts(info) | {"secret": secret})
        return
    click.echo(f"{secret}\n")
    if info.old_secret is None:
        click.echo("It is shown this once. The old secret has ended.")
    else:
        click.echo(f"It is shown this once. The old secret holds until {info.old_secret.ends_at:%Y-%m-%d %H:%M} UTC.")


@click.command("end-old-secret")
@click.argument("key_id")
@json_option
@database_options
def end_old_secret(url: str, key_id: str, as_json: bool) -> None:
    """End the secret that the key KEY_ID had before it was rotated."""
    changed = run_with_database(url, lambda database: KeyChanges(database).end_old_secret(key_id, by=by_command()))
    if as_json:
        print_json(key_facts(changed))
    else:
        click.echo(f"Key {key_id} has one secret.")


def key_facts(key: KeyInfo) -> dict[str, Any]:
    """For JSON, with the lists in order."""
    adapters = None if key.adapters is None else sorted(key.adapters)
    return {**msgspec.to_builtins(key), "scopes": sorted(key.scopes), "adapters": adapters}
