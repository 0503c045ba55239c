"""`loraplex adapter residency`, `pin`, `unpin` and `evict`: where versions are, and what keeps or takes them there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click
import httpx

from loraplex.platform.cli.database import print_json, print_table
from loraplex.platform.cli.paths import ADAPTERS, path
from loraplex.platform.cli.remote import call, decode, json_option, refusal, server_options

OVERVIEW = "/api/v1/admin/residency"
MAX_OVERVIEW = 1000

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[int]):
    """`90s`, `30m`, `12h` or `7d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no duration; write 90s, 30m, 12h or 7d", param, ctx)
        return int(found[1]) * SECONDS[found[2]]


@click.command()
@click.argument("name", required=False)
@json_option
@server_options
def residency(client: httpx.Client, name: str | None, as_json: bool) -> None:
    """Show where versions are: yours, or those of the adapter NAME; with an operator's key, what is in memory.

    device: ready to run; host: in the server's memory; disk: the first request waits for it.
    """
    if name is None:
        response = client.get(OVERVIEW, params={"limit": MAX_OVERVIEW})
        if response.status_code != httpx.codes.FORBIDDEN:
            if response.is_error:
                raise refusal(response)
            _tell_overview(decode(response.content), as_json)
            return
    names = [name] if name else [adapter["name"] for adapter in adapters_of(client)]
    views = [view for each in names for view in call(client, "GET", path(each, "residency"))["data"]]
    if as_json:
        print_json(views)
    else:
        columns = ("version", "tier", "device", "host", "disk", "in use", "last used", "load ms", "pinned until")
        print_table(*columns, rows=((view["model"], *_cells(view)) for view in views))


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@click.option("--for", "seconds", type=Duration(), default="1h", show_default=True, help="How long, 7d at most.")
@json_option
@server_options
def pin(client: httpx.Client, name: str, version: int, seconds: int, as_json: bool) -> None:
    """Keep VERSION of the adapter NAME on the device for a while."""
    view = call(client, "PUT", path(name, "versions", str(version), "pin"), json={"seconds": seconds})
    if as_json:
        print_json(view)
    else:
        click.echo(f"{view['model']} is pinned until {_shown_moment(view['pinned_until'])}.")


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@json_option
@server_options
def unpin(client: httpx.Client, name: str, version: int, as_json: bool) -> None:
    """End the pin of VERSION of the adapter NAME."""
    call(client, "DELETE", path(name, "versions", str(version), "pin"))
    if as_json:
        print_json({"name": name, "version": version, "pinned": False})
    else:
        click.echo(f"Version {version} of {name} is not pinned.")


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@json_option
@server_options
def evict(client: httpx.Client, name: str, version: int, as_json: bool) -> None:
    """Free the memory that VERSION of the adapter NAME takes; it stays on the disk."""
    view = call(client, "POST", path(name, "versions", str(version), "evict"))
    if as_json:
        print_json(view)
    else:
        click.echo(f"{view['model']} is on the {view['tier']}.")


RESIDENCY_COMMANDS = (residency, pin, unpin, evict)


def adapters_of(client: httpx.Client) -> Iterator[dict[str, Any]]:
    """All of the tenant's adapters, a page at a time."""
    after: str | None = None
    while True:
        page = call(client, "GET", ADAPTERS, params={"after": after} if after else {})
        yield from page["data"]
        after = page["next"]
        if after is None:
            return


def _tell_overview(overview: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(overview)
        return
    memory = overview["memory"]
    click.echo(
        f"Adapters take {_megabytes(memory['adapter_used_bytes'])} of {_megabytes(memory['adapter_bytes'])} "
        f"on the device, {_megabytes(memory['adapter_pinned_bytes'])} of it pinned; the KV cache has "
        f"{_megabytes(memory['kv_cache_bytes'])}. {memory['loads']} loads, {memory['evictions']} evictions."
    )
    for tier in ("device", "host", "disk"):
        click.echo(f"{tier}: {overview['tiers'][tier]['adapters']} adapters, {_used(overview['tiers'][tier])}")
    columns = ("versions", "tier", "device", "host", "disk", "in use", "last used", "load ms", "pinned until")
    names = (", ".join(view["versions"]) or view["digest"][:12] for view in overview["data"])
    print_table(*columns, rows=((name, *_cells(view)) for name, view in zip(names, overview["data"], strict=True)))


def _cells(view: dict[str, Any]) -> tuple[str, ...]:
    load = view["last_load_ms"]
    return (
        shown_tier(view),
        *(_megabytes(view[f"{tier}_bytes"]) if view[f"{tier}_bytes"] else "" for tier in ("device", "host", "disk")),
        str(view["leases"] or ""),
        _shown_moment(view["last_used_at"]),
        f"{load['total']:.0f}" if load else "",
        _shown_moment(view["pinned_until"]),
    )


def shown_tier(view: dict[str, Any]) -> str:
    """`device`, `host`, `disk`, or `loading`."""
    return "loading" if view["is_loading"] else str(view["tier"])


def _used(tier: dict[str, Any]) -> str:
    capacity = tier["capacity_bytes"]
    return _megabytes(tier["used_bytes"]) + ("" if capacity is None else f" of {_megabytes(capacity)}")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _shown_moment(text: str | None) -> str:
    if text is None:
        return ""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
