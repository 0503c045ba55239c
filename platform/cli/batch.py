"""`loraplex batch`: have the requests in a file answered, follow that, and fetch the answers."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import click
import httpx
import msgspec

from loraplex.platform.cli.database import print_json, print_table
from loraplex.platform.cli.following import follow
from loraplex.platform.cli.remote import call, json_option, refusal, server_options
from loraplex.platform.cli.transfers import count_progress, transfer_progress

BATCHES, FILES = "/v1/batches", "/v1/files"
OPEN = ("validating", "in_progress", "finalizing", "cancelling")
MAX_LISTED = 100
MAX_TOLD_ERRORS = 20
MAX_LINE_BYTES = 64 << 20

Batch = dict[str, Any]

output_option = click.option(
    "--output", type=click.File("wb", lazy=True), default="-", help="Where the answers go.  [default: standard output]"
)
errors_option = click.option(
    "--errors",
    type=click.File("wb", lazy=True),
    help="Where the requests go that have no answer, each with the reason.",
)


@click.group()
def batch() -> None:
    """Batches of requests on a running server."""


@batch.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--endpoint", help="Path that the requests are for.  [default: the url of the first line]")
@click.option("--detach", is_flag=True, help="Do not wait for the answers.")
@output_option
@errors_option
@json_option
@server_options
def submit(
    client: httpx.Client, file: Path, endpoint: str | None, detach: bool, output: BinaryIO, errors: BinaryIO | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Have the requests in FILE answered, and wait for the answers.

    Each line of FILE is {"custom_id": "...", "method": "POST", "url": "/v1/chat/completions", "body": {...}}. Answers
    come in no order that is promised: go by custom_id. --json prints the batch instead of the answers.
    """
    body = {"endpoint": endpoint or _first_url(file), "completion_window": "24h"}
    created = call(client, "POST", BATCHES, json=body | {"input_file_id": _upload(client, file)})
    if not detach:
        _tell_end(client, _ended(client, created), output, errors, as_json)
    elif as_json:
        print_json(created)
    else:
        click.echo(f"The batch {created['id']} is submitted.\n{_how_to_look(created)}")


@batch.command("list")
@json_option
@server_options
def list_batches(client: httpx.Client, as_json: bool) -> None:
    """List your last 100 batches."""
    found = call(client, "GET", BATCHES, params={"limit": MAX_LISTED})["data"]
    if as_json:
        print_json(found)
    else:
        rows = ((b["id"], b["endpoint"], b["status"], _counts(b), _moment(b["created_at"])) for b in found)
        print_table("batch", "endpoint", "status", "answered", "created", rows=rows)


@batch.command()
@click.argument("batch_id", metavar="ID")
@json_option
@server_options
def show(client: httpx.Client, batch_id: str, as_json: bool) -> None:
    """Show how far the batch ID is, or how it ended."""
    found = call(client, "GET", _path(batch_id))
    if as_json:
        print_json(found)
        return
    click.echo(f"{found['id']} for {found['endpoint']} is {found['status']}: {_counts(found)} requests are answered.")
    for error in _input_errors(found):
        click.echo(error)
    click.echo(_how_to_look(found))


@batch.command()
@click.argument("batch_id", metavar="ID")
@json_option
@server_options
def cancel(client: httpx.Client, batch_id: str, as_json: bool) -> None:
    """Cancel the batch ID; what was answered by then stays."""
    cancelled = call(client, "POST", f"{_path(batch_id)}/cancel")
    if as_json:
        print_json(cancelled)
    else:
        click.echo(f"The batch {cancelled['id']} is {cancelled['status']}.")


@batch.command()
@click.argument("batch_id", metavar="ID")
@output_option
@errors_option
@json_option
@server_options
def results(client: httpx.Client, batch_id: str, output: BinaryIO, errors: BinaryIO | None, as_json: bool) -> None:
    """Wait for the batch ID to end, and fetch its answers. --json prints the batch instead."""
    _tell_end(client, _ended(client, call(client, "GET", _path(batch_id))), output, errors, as_json)


def _first_url(file: Path) -> str:
    with file.open("rb") as lines:
        first = next((line for line in iter(lambda: lines.readline(MAX_LINE_BYTES), b"") if line.strip()), b"")
    try:
        return str(msgspec.json.decode(first)["url"])
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise click.UsageError(
            f"the first line of {file} has no url; is it JSON lines? --endpoint names one"
        ) from error


def _upload(client: httpx.Client, file: Path) -> str:
    with transfer_progress() as progress, progress.open(file, "rb", description=file.name) as content:
        sent = {"file": (file.name, content, "application/jsonl")}
        return str(call(client, "POST", FILES, data={"purpose": "batch"}, files=sent)["id"])


def _ended(client: httpx.Client, found: Batch) -> Batch:
    path = _path(found["id"])
    return follow(
        found,
        lambda: dict(call(client, "GET", path)),
        count_progress(),
        _shown,
        has_ended=lambda batch: batch["status"] not in OPEN,
        left=f"The batch goes on without you.\n{_how_to_look(found)}",
    )


def _shown(found: Batch) -> dict[str, Any]:
    counts = found["request_counts"]
    return {
        "description": found["status"].replace("_", " ").capitalize(),
        "completed": counts["completed"] + counts["failed"],
        "total": counts["total"] or None,
    }


def _tell_end(client: httpx.Client, ended: Batch, output: BinaryIO, errors: BinaryIO | None, as_json: bool) -> None:
    """Fetch what it was answered. Raises click.ClickException where it did not come to its end."""
    if as_json:
        print_json(ended)
    elif ended["output_file_id"] is not None:
        _fetch(client, ended["output_file_id"], output)
    if ended["error_file_id"] is not None and errors is not None:
        _fetch(client, ended["error_file_id"], errors)
    if ended["status"] == "failed":
        raise click.ClickException("\n  ".join(["the input is wrong, so nothing was run:", *_input_errors(ended)]))
    if (failed := ended["request_counts"]["failed"]) and errors is None:
        click.echo(f"{failed} requests have no answer.\n{_how_to_look(ended)}", err=True)
    if ended["status"] != "completed":
        raise click.ClickException(f"the batch is {ended['status']}")


def _fetch(client: httpx.Client, file_id: str, target: BinaryIO) -> None:
    with client.stream("GET", f"{FILES}/{quote(file_id, safe='')}/content") as response:
        if response.is_error:
            response.read()
            raise refusal(response)
        for piece in response.iter_bytes():
            target.write(piece)


def _input_errors(found: Batch) -> list[str]:
    errors = (found["errors"] or {"data": []})["data"]
    told = [
        (f"line {error['line']}: " if error["line"] else "") + f"{error['message']} ({error['code']})"
        for error in errors[:MAX_TOLD_ERRORS]
    ]
    return told + ([f"and {len(errors) - MAX_TOLD_ERRORS} more"] if len(errors) > MAX_TOLD_ERRORS else [])


def _how_to_look(found: Batch) -> str:
    if found["status"] in OPEN:
        return (
            f"  loraplex batch results {found['id']}   follows it\n  loraplex batch cancel {found['id']}    cancels it"
        )
    if found["error_file_id"]:
        return f"  loraplex batch results {found['id']} --errors FILE   tells why"
    return f"  loraplex batch results {found['id']}   fetches its answers"


def _path(batch_id: str) -> str:
    return f"{BATCHES}/{quote(batch_id, safe='')}"


def _counts(found: Batch) -> str:
    counts = found["request_counts"]
    return f"{counts['completed']} of {counts['total']}"


def _moment(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
