"""`loraplex audit`: follow the chain of the audit log, and take it out, from the database itself.

Knows click and the log.
"""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from loraplex.adapters.audit_log import START, AuditLog, ChainBroken, Link, Wanted
from loraplex.adapters.database import Database
from loraplex.platform.audit_views import lines
from loraplex.platform.cli.database import database_options, print_json, run_with_database

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class EntryHash(click.ParamType[Link]):
    """NUMBER:HASH, as `verify` prints it."""

    name = "number:hash"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> Link:
        number, _, sha256 = value.partition(":")
        if not (number.isascii() and number.isdigit() and len(number) < 19 and len(sha256) == 64):
            self.fail("give NUMBER:HASH, as an earlier `loraplex audit verify` has printed it", param, ctx)
        return Link(int(number), sha256)


@click.group()
def audit() -> None:
    """The audit log: verify its chain, export it."""


@audit.command()
@click.option(
    "--known", type=EntryHash(), help="An entry with the hash that it had when it was written down elsewhere."
)
@json_option
@database_options
def verify(url: str, known: Link | None, as_json: bool) -> None:
    """Follow the chain of the whole log. Ends with status 1, and names the first entry that is wrong, where it breaks.

    Whoever owns the database could write another chain. Keep what this prints somewhere else, and give it as --known.
    """
    try:
        end = run_with_database(url, lambda database: _follow(AuditLog(database), known))
    except ChainBroken as broken:
        if as_json:
            print_json({"whole": False, "entry": broken.number, "error": str(broken)})
        else:
            click.echo(f"The audit log is not whole: {broken}.", err=True)
        sys.exit(1)
    if as_json:
        print_json({"whole": True, "entries": end.number, "hash": end.hash})
    else:
        click.echo(f"The audit log is whole: {end.number} entries. Its end, for --known:\n\n  {end.number}:{end.hash}")


@audit.command()
@click.option("--output", type=click.File("wb"), default="-", help="Where it goes.  [default: standard output]")
@database_options
def export(url: str, output: BinaryIO) -> None:
    """Write the whole log as JSON lines, the first entry first."""

    async def write(database: Database) -> None:
        async for line in lines(AuditLog(database), Wanted(), None):
            output.write(line)

    run_with_database(url, write)


async def _follow(log: AuditLog, known: Link | None) -> Link:
    """The end of the chain. Raises ChainBroken."""
    place, met = START, known is None
    while True:
        before, place = place, await log.verify(place)
        met = met or await _meets(log, before, place, known)
        if place == before:
            break
    if known is not None and not met:
        raise ChainBroken(known.number, "there is no such entry any more")
    return place


async def _meets(log: AuditLog, before: Link, place: Link, known: Link | None) -> bool:
    """Whether the known entry is among those after `before` up to `place`. Raises ChainBroken where it has changed."""
    if known is None or not before.number < known.number <= place.number:
        return False
    (entry,) = await log.list(Wanted(), 1, known.number + 1)
    if entry.hash != known.hash:
        raise ChainBroken(known.number, "its hash was another one: the chain was written anew")
    return True
