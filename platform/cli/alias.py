"""`loraplex alias`: what an adapter's aliases stand for: move, split, roll back, look back."""

from __future__ import annotations

from typing import Any

import click
import httpx

from loraplex.platform.cli.adapter import shown_split
from loraplex.platform.cli.database import print_json, print_table
from loraplex.platform.cli.paths import path
from loraplex.platform.cli.remote import call, json_option, server_options

name_argument = click.argument("name")
alias_argument = click.argument("alias")
if_revision_option = click.option("--if-revision", type=click.IntRange(1), help="Only from this revision of ALIAS.")


class Share(click.ParamType[tuple[int, int]]):
    """`2`, or `2=10`: a version number and its weight."""

    name = "version[=weight]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        number, _, weight = str(value).partition("=")
        if not number.isdecimal() or not (weight or "1").isdecimal():
            self.fail(f"{value!r} is not VERSION or VERSION=WEIGHT, for instance 2 or 2=10", param, ctx)
        return int(number), int(weight or "1")


@click.group()
def alias() -> None:
    """Aliases of your adapters on a running server. `prod` is what a name without @ means."""


@alias.command()
@name_argument
@alias_argument
@click.argument("shares", metavar="VERSION[=WEIGHT]...", nargs=-1, required=True, type=Share())
@if_revision_option
@json_option
@server_options
def move(
    client: httpx.Client,
    name: str,
    alias: str,
    shares: tuple[tuple[int, int], ...],
    if_revision: int | None,
    as_json: bool,
) -> None:
    """Let ALIAS of the adapter NAME stand for a version, or split its traffic: `move bot prod 1=90 2=10`."""
    split = {str(number): weight for number, weight in shares}
    if len(split) < len(shares):
        raise click.UsageError("a version stands twice in the split")
    moved = call(client, "PUT", path(name, "aliases", alias), json={"split": split}, headers=_if_match(if_revision))
    _tell(f"{name}@{alias}", moved, as_json)


@alias.command()
@name_argument
@alias_argument
@click.option("--to", type=click.IntRange(1), help="A revision of its history.  [default: before its last move]")
@if_revision_option
@json_option
@server_options
def rollback(
    client: httpx.Client, name: str, alias: str, to: int | None, if_revision: int | None, as_json: bool
) -> None:
    """Let ALIAS of the adapter NAME stand for what it stood for before; again: one move further back."""
    body = {} if to is None else {"to": to}
    restored = call(client, "POST", path(name, "aliases", alias, "rollback"), json=body, headers=_if_match(if_revision))
    _tell(f"{name}@{alias}", restored, as_json)


@alias.command()
@name_argument
@alias_argument
@json_option
@server_options
def history(client: httpx.Client, name: str, alias: str, as_json: bool) -> None:
    """Show what ALIAS of the adapter NAME stood for, newest first."""
    moves = call(client, "GET", path(name, "aliases", alias, "history"))["data"]
    if as_json:
        print_json(moves)
        return
    rows = (
        (
            str(move["revision"]),
            shown_split(move["split"]) or "deleted",
            f"revision {move['restores']}" if move["restores"] else "",
            move["moved_at"],
            move["moved_by"] or "",
        )
        for move in moves
    )
    print_table("revision", "versions", "restored", "moved at", "by key", rows=rows)


@alias.command()
@name_argument
@alias_argument
@if_revision_option
@json_option
@server_options
def delete(client: httpx.Client, name: str, alias: str, if_revision: int | None, as_json: bool) -> None:
    """Delete ALIAS of the adapter NAME; its versions stay, and a rollback brings it back."""
    call(client, "DELETE", path(name, "aliases", alias), headers=_if_match(if_revision))
    if as_json:
        print_json({"name": name, "alias": alias, "deleted": True})
    else:
        click.echo(f"{name}@{alias} is deleted.")


def _tell(name: str, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        click.echo(f"{name} stands for version {shown_split(found['split'])} (revision {found['revision']}).")


def _if_match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"if-match": f'"{revision}"'}
