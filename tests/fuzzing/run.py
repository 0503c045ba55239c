"""`make fuzz`: thousands of generated requests to real servers, on SQLite and on PostgreSQL where there is one.

Says the seed first and shows how far it is. Every operation that answers wrongly is told, with the smallest request
that shows it; --seed and --only with what was told do it again.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from conftest import write_adapter, write_tiny_llama, write_tokenizer
from database_fixtures import find_postgres, postgres_database, running_postgres
from fuzzing.hunt import Found, look_at_odd_values, look_for
from fuzzing.site import FuzzSite, fuzz_site
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn


def main() -> int:
    arguments = _arguments()
    console = Console()
    console.print(f"{arguments.cases} cases, --seed {arguments.seed}")
    found: list[Found] = []
    sent = 0
    with tempfile.TemporaryDirectory(prefix="loraplex-fuzz-") as folder:
        databases = [name for name in arguments.database if name != "postgres" or find_postgres() is not None]
        for database in databases:
            with _site(Path(folder) / database, database) as site:
                found += _hunted(site, console, database, arguments, -(-arguments.cases // len(databases)))
                site.check_whole()
                sent += site.seen.total()
    console.print(f"{sent} answers looked at; {len(found) or 'no'} operations answer wrongly")
    return 1 if found else 0


def _hunted(
    site: FuzzSite, console: Console, database: str, arguments: argparse.Namespace, cases: int
) -> Iterator[Found]:
    operations = [operation for operation in site.operations if arguments.only in str(operation)]
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bar:
        done = bar.add_task(database, total=cases)
        odd_ones = bar.add_task("odd values", total=None)
        odd = look_at_odd_values(site, operations, tick=lambda: bar.advance(odd_ones))
        generated = look_for(site, operations, cases, arguments.seed, lambda: bar.advance(done))
        for found in chain(generated, odd):
            console.print(f"\n[bold red]on {database}[/], --seed {arguments.seed}: ", end="")
            console.print(str(found), markup=False, highlight=False)
            yield found


@contextmanager
def _site(folder: Path, database: str) -> Iterator[FuzzSite]:
    model = folder / "model"
    model.mkdir(parents=True)
    write_tokenizer(model)
    write_tiny_llama(model)
    with ExitStack() as stack:
        options = {}
        if database == "postgres":
            binaries = find_postgres()
            assert binaries is not None
            files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loraplex-pg-")))
            server = stack.enter_context(running_postgres(binaries, files))
            options["database_url"] = stack.enter_context(postgres_database(server, "template0"))
        yield stack.enter_context(fuzz_site(model, folder, _maker(model), **options))


def _maker(model: Path) -> Callable[..., Path]:
    def make(path: Path, **options: object) -> Path:
        write_adapter(path, model, **options)
        return path

    return make


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Send generated requests to a server until one is answered wrongly.")
    parser.add_argument("--cases", type=int, default=10_000, help="how many, in all")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="the same one sends the same cases")
    parser.add_argument("--only", default="", help="a part of the names of operations: 'POST /v1/chat'")
    parser.add_argument("--database", nargs="+", default=["sqlite", "postgres"], choices=["sqlite", "postgres"])
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
