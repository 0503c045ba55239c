"""`loraplex adapter`: push, list, show, warm and delete a tenant's adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import httpx

from loraplex.platform.cli import imports
from loraplex.platform.cli.database import print_json, print_table
from loraplex.platform.cli.paths import ADAPTERS, path
from loraplex.platform.cli.profile import profile
from loraplex.platform.cli.push import FILES, upload
from loraplex.platform.cli.remote import call, decode, json_option, refusal, server_options, tell_ready
from loraplex.platform.cli.residency import RESIDENCY_COMMANDS, adapters_of, shown_tier


@click.group(commands=(*RESIDENCY_COMMANDS, profile))
def adapter() -> None:
    """Adapters of your tenant on a running server."""


@adapter.command()
@click.argument("source")
@click.argument("name", required=False)
@click.option("--alias", help="Let this alias, for instance prod, stand for the new version.")
@click.option("--detach", is_flag=True, help="Do not wait until the server has fetched SOURCE.")
@json_option
@server_options
def push(client: httpx.Client, source: str, name: str | None, alias: str | None, detach: bool, as_json: bool) -> None:
    """Publish SOURCE as the next version of the adapter NAME, by default SOURCE's own; it is made if it is new.

    SOURCE is a folder with adapter_config.json and adapter_model.safetensors; if there are a chat_template.jinja, a
    tokenizer_config.json or a tokenizer.json, the adapter is served with its own template and added tokens. When the
    connection breaks the upload goes on by itself; when the command was ended, run it again and it goes on from there.

    Or SOURCE is hf://org/repo@COMMIT, hf://org/repo@BRANCH or s3://bucket/prefix, of the places that the server's
    operator allows: then the server fetches it.
    """
    if "://" not in source:
        push_folder(client, Path(source), name, alias, as_json)
    elif alias and detach:
        raise click.UsageError("--alias needs the version that SOURCE becomes; leave --detach out")
    else:
        push_from_elsewhere(client, source, name, alias, detach, as_json)


def push_folder(client: httpx.Client, folder: Path, name: str | None, alias: str | None, as_json: bool) -> None:
    for file in FILES:
        if not (folder / file).is_file():
            raise click.ClickException(f"{folder} has no {file}; save the adapter with PEFT's save_pretrained()")
    name = name or folder.resolve().name
    create_if_missing(client, name)
    version = upload(client, folder, name)
    is_ready = version["state"] == "ready"
    if alias and is_ready:
        move_alias(client, name, alias, version["version"])
    if as_json:
        print_json(version)
    elif is_ready:
        size = f"rank {version['rank']}, {version['size_bytes'] / 1e6:.1f} MB"
        model = f"{version['tenant']}/{name}@{alias}" if alias else version["model"]
        tell_ready(client, f"Version {version['version']} of {name} is ready ({size})", model)
    else:
        raise click.ClickException(why_not_ready(version, alias))


def push_from_elsewhere(
    client: httpx.Client, source: str, name: str | None, alias: str | None, detach: bool, as_json: bool
) -> None:
    place = source.partition("@")[0] if source.startswith("hf://") else source  # a prefix in a bucket may hold an @
    name = name or place.rstrip("/").rpartition("/")[2].lower()
    wanted = {"adapter": name, "source": source}
    response = client.post(imports.IMPORTS, json=wanted)
    if response.status_code == httpx.codes.NOT_FOUND:
        create_if_missing(client, name)
        response = client.post(imports.IMPORTS, json=wanted)
    if response.is_error:
        raise refusal(response)
    job = decode(response.content)
    if not detach:
        job = imports.follow(client, job)
    if alias and job["version_state"] == "ready":
        move_alias(client, name, alias, job["version"])
    imports.tell(client, job, as_json)


def move_alias(client: httpx.Client, name: str, alias: str, version: int) -> None:
    call(client, "PUT", path(name, "aliases", alias), json={"version": version})


def why_not_ready(version: dict[str, Any], alias: str | None) -> str:
    if version["state"] != "validating":
        return f"{version['model']} is {version['state']}: {version['state_reason']}"
    name = version["adapter"]
    follow = f"loraplex adapter show {name}" + (f"; then loraplex alias move {name} {alias} VERSION" if alias else "")
    return f"the engine has had no time to run {version['model']} yet; see when it is: {follow}"


@adapter.command("imports")
@click.argument("import_id", metavar="[ID]", required=False)
@click.option("--cancel", is_flag=True, help="Cancel the import ID.")
@json_option
@server_options
def show_imports(client: httpx.Client, import_id: str | None, cancel: bool, as_json: bool) -> None:
    """Follow the import ID to its end; without ID list the last 100."""
    if import_id is None:
        if cancel:
            raise click.UsageError("--cancel needs the ID of an import")
        jobs = call(client, "GET", imports.IMPORTS)["data"]
        if as_json:
            print_json(jobs)
        else:
            rows = (
                (job["id"], job["adapter"], str(job["version"] or ""), job["source"], imports.doing(job))
                for job in jobs
            )
            print_table("import", "adapter", "version", "source", "state", rows=rows)
    elif cancel:
        cancelled = call(client, "DELETE", imports.path(import_id))
        if as_json:
            print_json(cancelled)
        else:
            click.echo("The import is cancelled.")
    else:
        imports.tell(client, imports.follow(client, call(client, "GET", imports.path(import_id))), as_json)


@adapter.command("list")
@json_option
@server_options
def list_adapters(client: httpx.Client, as_json: bool) -> None:
    """List your adapters."""
    found = list(adapters_of(client))
    if as_json:
        print_json(found)
    else:
        rows = ((f"{a['tenant']}/{a['name']}", a["base_model"], str(len(a["versions"])), _aliases(a)) for a in found)
        print_table("adapter", "base model", "versions", "aliases", rows=rows)


@adapter.command()
@click.argument("name")
@json_option
@server_options
def show(client: httpx.Client, name: str, as_json: bool) -> None:
    """Show the versions and aliases of the adapter NAME."""
    found = call(client, "GET", path(name))
    versions = call(client, "GET", path(name, "versions"))["data"]
    places = {view["version"]: view for view in call(client, "GET", path(name, "residency"))["data"]}
    versions = [version | {"residency": places.get(version["version"])} for version in versions]
    if as_json:
        print_json(found | {"versions": versions})
        return
    click.echo(f"{found['tenant']}/{name} on {found['base_model']}; aliases: {_aliases(found) or 'none'}")
    rows = (
        (
            v["model"],
            v["state"] + (f": {v['state_reason']}" if v["state_reason"] else ""),
            str(v["rank"]),
            " ".join(v["targets"]),
            f"{v['size_bytes'] / 1e6:.1f} MB",
            v["digest"][:12],
            shown_tier(v["residency"]) if v["residency"] else "",
        )
        for v in versions
    )
    print_table("version", "state", "rank", "modules", "size", "digest", "tier", rows=rows)


@adapter.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@json_option
@server_options
def warm(client: httpx.Client, name: str, version: int, as_json: bool) -> None:
    """Have VERSION of the adapter NAME loaded before its first request."""
    warmed = call(client, "POST", path(name, "versions", str(version), "warm"))
    if as_json:
        print_json(warmed)
    else:
        click.echo(f"{warmed['model']} is being loaded.")


@adapter.command()
@click.argument("name")
@json_option
@server_options
def delete(client: httpx.Client, name: str, as_json: bool) -> None:
    """Delete the adapter NAME with all its versions; requests that run finish."""
    call(client, "DELETE", path(name))
    if as_json:
        print_json({"name": name, "deleted": True})
    else:
        click.echo(f"Adapter {name} is deleted.")


def create_if_missing(client: httpx.Client, name: str) -> None:
    response = client.post(ADAPTERS, json={"name": name})
    if response.is_error and response.status_code != httpx.codes.CONFLICT:
        raise refusal(response)


def shown_split(split: Mapping[str, int]) -> str:
    """`2`, or `2 (10%), 1 (90%)`."""
    if len(split) == 1:
        return next(iter(split))
    total = sum(split.values())
    return ", ".join(f"{number} ({100 * weight / total:.3g}%)" for number, weight in split.items())


def _aliases(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} → {shown_split(alias['split'])}" for name, alias in found["aliases"].items())
