"""`loraplex adapter profile`: what a version is served with where a request does not say."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import click
import httpx

from loraplex.platform.cli.database import print_json
from loraplex.platform.cli.paths import path
from loraplex.platform.cli.remote import call, json_option, server_options


@click.group()
def profile() -> None:
    """What a version is served with where a request does not say: chat template, system prompt, sampling, ..."""


@profile.command("show")
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@json_option
@server_options
def show_profile(client: httpx.Client, name: str, version: int, as_json: bool) -> None:
    """Show the profile of VERSION of the adapter NAME."""
    _tell_profile(call(client, "GET", _profile_path(name, version)), as_json)


@profile.command("set")
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@click.option(
    "--from", "source", required=True, metavar="FILE.json", type=click.File("rb"),
    help="The profile, a JSON object; - is standard input.",
)  # fmt: skip
@json_option
@server_options
def set_profile(client: httpx.Client, name: str, version: int, source: BinaryIO, as_json: bool) -> None:
    """Set the profile of VERSION of the adapter NAME as a whole; a chat_template that is left out stays as it is."""
    headers = {"content-type": "application/json"}
    changed = call(client, "PUT", _profile_path(name, version), content=source.read(), headers=headers)
    _tell_profile(changed, as_json)


@profile.command("clear")
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@json_option
@server_options
def clear_profile(client: httpx.Client, name: str, version: int, as_json: bool) -> None:
    """Serve VERSION of the adapter NAME with the base's chat template and the server's defaults again."""
    call(client, "DELETE", _profile_path(name, version))
    if as_json:
        print_json({"name": name, "version": version, "cleared": True})
    else:
        click.echo(f"Version {version} of {name} is served with the defaults of the base.")


def _profile_path(name: str, version: int) -> str:
    return path(name, "versions", str(version), "profile")


def _tell_profile(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    template = found.pop("chat_template", None)
    click.echo(f"chat_template: {'its own' if template else 'that of the base'}")
    for field, value in found.items():
        click.echo(f"{field}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
