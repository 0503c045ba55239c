"""Follow an import on a running server to its end, and tell how it ended.

Knows the jobs of the API. Knows no command.
"""

from __future__ import annotations

import sys
from urllib.parse import quote

import click
import httpx

from loraplex.platform.cli import following
from loraplex.platform.cli.database import print_json
from loraplex.platform.cli.following import Job
from loraplex.platform.cli.remote import call, refused, tell_ready, told
from loraplex.platform.cli.transfers import transfer_progress

IMPORTS = "/api/v1/imports"


def path(import_id: str) -> str:
    return f"{IMPORTS}/{quote(import_id, safe='')}"


def follow(client: httpx.Client, job: Job) -> Job:
    """The job once it has ended, with a progress bar on stderr until then."""
    return following.follow(
        job,
        lambda: dict(call(client, "GET", path(job["id"]))),
        transfer_progress(),
        lambda job: {"description": doing(job), "completed": job["bytes_done"], "total": job["bytes_total"]},
        has_ended=lambda job: job["state"] not in ("queued", "running"),
        left="The import goes on without you.\n" + how_to_look(job),
    )


def tell(client: httpx.Client, job: Job, as_json: bool) -> None:
    """Say where the job stands. Raises click.ClickException where it ended without a version that serves."""
    if as_json:
        print_json(job)
        sys.exit(job["state"] in ("failed", "cancelled"))
    if job["state"] == "failed":
        raise refused(job["error"])
    if job["state"] == "cancelled":
        raise click.ClickException("the import was cancelled")
    if job["state"] != "succeeded":
        click.echo(f"The import {job['id']} is {job['state']}.\n{how_to_look(job)}")
    elif job["version_state"] == "ready":
        done = f"Version {job['version']} of {job['adapter']} is ready, from {job['source']}"
        tell_ready(client, done, f"{job['adapter']}@{job['version']}")
    else:
        raise click.ClickException(
            f"version {job['version']} is {job['version_state'] or 'deleted'}; look at it with: "
            f"loraplex adapter show {job['adapter']}"
        )


def doing(job: Job) -> str:
    """What the job is about just now, in a few words."""
    if job["state"] == "queued" and job["error"]:
        return f"Waiting for attempt {job['attempt'] + 1}: {told(job['error'])}"
    if job["state"] == "failed":
        return f"Failed: {told(job['error'])}"
    if job["state"] != "running":
        return str(job["state"]).capitalize()
    if job["version"] is not None:
        return f"Running version {job['version']}"
    if job["bytes_done"] == job["bytes_total"]:
        return "Checking"
    return f"Fetching {job['file']}" if job["file"] else "Fetching"


def how_to_look(job: Job) -> str:
    return f"  loraplex adapter imports {job['id']}            follows it\n" + (
        f"  loraplex adapter imports {job['id']} --cancel   cancels it"
    )
