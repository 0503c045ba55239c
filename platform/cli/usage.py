"""`loraplex usage`: what was used, as a table, as CSV or as JSON; an operator's key sees all tenants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import httpx

from loraplex.platform.cli.database import print_table
from loraplex.platform.cli.remote import decode, refusal, server_options
from loraplex.platform.cli.residency import Duration

OWN = "/api/v1/usage"
OF_ALL = "/api/v1/admin/usage"
MAX_SUMS = 10_000

MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"])

NAMES = {
    "nothing": (),
    "tenant": ("tenant",),
    "key": ("tenant", "key", "key_name"),
    "adapter": ("tenant", "adapter"),
    "version": ("tenant", "adapter", "version"),
    "endpoint": ("endpoint",),
}


@click.command()
@click.option("--last", type=Duration(), default="1d", show_default=True, help="So much time until now.")
@click.option("--from", "start", type=MOMENT, help="Instead: from this moment on, in UTC.")
@click.option("--to", "end", type=MOMENT, help="And before this one.")
@click.option(
    "--step", type=click.Choice(["hour", "day", "all"]), default="all", show_default=True, help="One line for each."
)
@click.option(
    "--by", type=click.Choice(list(NAMES)), default="version", show_default=True, help="And one line for each of these."
)
@click.option("--tenant", help="Of this tenant alone; for operators.")
@click.option("--adapter", help="Of this adapter alone.")
@click.option("--requests", is_flag=True, help="Single requests instead of sums; with --csv or --json.")
@click.option("--csv", "format", flag_value="csv", help="Write CSV.")
@click.option("--json", "format", flag_value="json", help="Write JSON.")
@server_options
def usage(
    client: httpx.Client,
    last: int,
    start: datetime | None,
    end: datetime | None,
    step: str,
    by: str,
    tenant: str | None,
    adapter: str | None,
    requests: bool,
    format: str | None,
) -> None:
    """Show what was used: tokens, requests and costs. Days and hours are those of UTC."""
    if requests and format is None:
        raise click.UsageError("--requests may be many: add --csv or --json")
    until = end or datetime.now(UTC)
    params = {
        "start": _told(start or until - timedelta(seconds=last)),
        "end": _told(until),
        "step": step,
        "by": by,
        "tenant": tenant,
        "adapter": adapter,
    }
    given = {name: value for name, value in params.items() if value is not None}
    if format is not None:
        what = "requests" if requests else "sums"
        _export(client, given | {"what": what, "format": format})
        return
    with _asked(client, "", given | {"limit": str(MAX_SUMS)}) as response:
        _show(decode(response.read())["data"], step, by)


def _show(sums: list[dict[str, Any]], step: str, by: str) -> None:
    columns = ([] if step == "all" else ["start"]) + list(NAMES[by])
    counts = ("requests", "errors", "prompt", "cached", "completion", "ttft ms", "cost")
    print_table(*(columns or ["usage"]), *counts, rows=_lines(sums, columns, step))


def _lines(sums: list[dict[str, Any]], columns: list[str], step: str) -> Iterator[tuple[str, ...]]:
    for each in sums:
        names = [_name(column, each[column], step) for column in columns] or ["all"]
        tokens = (f"{each[f'{kind}_tokens']:,}" for kind in ("prompt", "cached", "completion"))
        ttft = f"{each['ttft_ms'] / each['answered']:,.0f}" if each["answered"] else "-"
        cost = f"{each['cost_micros'] / 1e6:,.6f} {each['currency']}" if each["currency"] else "-"
        yield *names, f"{each['requests']:,}", f"{each['errors']:,}", *tokens, ttft, cost


def _name(column: str, value: Any, step: str) -> str:
    if column == "start":
        return str(value)[: 10 if step == "day" else 16].replace("T", " ")
    if column == "adapter" and value == "":
        return "(base)"
    return "-" if value is None else str(value)


def _export(client: httpx.Client, params: dict[str, str]) -> None:
    """As it comes: it may be more than memory holds."""
    with _asked(client, "/export", params) as response:
        for text in response.iter_text():
            click.echo(text, nl=False)
    click.echo("" if params["format"] == "csv" else "\n", nl=False)


@contextmanager
def _asked(client: httpx.Client, path: str, params: dict[str, str]) -> Iterator[httpx.Response]:
    """With a tenant's key its own; an operator's key is refused there."""
    for root in (OWN, OF_ALL):
        with client.stream("GET", root + path, params=params) as response:
            if root == OWN and response.status_code == httpx.codes.FORBIDDEN:
                continue
            if response.is_error:
                response.read()
                raise refusal(response)
            yield response
            return


def _told(moment: datetime) -> str:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
