"""What the offline benchmark runs: each case is a closed loop on one of three engines, run once per round.

Cases that are compared stand side by side, so that a round alternates between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from adapter_store import random_adapter, stored_adapter
from kernel_time import Stopwatch, build_timed_engine
from offline_shapes import CONTEXT_2048, DECODE_16_128, DECODE_64_64, MAX_NUM_SEQS, PREFILL, Shape
from traffic import Traffic, drive, in_turn

from loraplex.adapters.blobs import BlobStore
from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.settings import EngineSettings

LEVELS = (1, 8, 32)
WORKLOADS = ("decode_16_128", "decode_64_64", "prefill", "context_2048", "resident", "overhead")
NUM_ADAPTERS = 32
RANK = 16
KV_CACHE_BYTES = 2 << 30

Mix = list[str | None]


@dataclass(frozen=True)
class Case:
    """`run` gives the figures of one run. `against`: key of the case whose rates this one's are divided by."""

    key: str
    run: Callable[[], Mapping[str, float]]
    against: str | None = None


class Engines:
    """The engines of this process: one with every adapter resident, and others that are built when they are wanted.

    adapter_folders: PEFT folders; none: random adapters are made.
    """

    def __init__(self, model: Path, folder: Path, adapter_folders: Sequence[Path]) -> None:
        self._settings = EngineSettings(
            model_path=str(model),
            adapter_blobs=str(folder / "adapters"),
            max_num_seqs=MAX_NUM_SEQS,
            kv_cache_bytes=KV_CACHE_BYTES,
            enable_prefix_cache=False,
        )
        self.main = build_engine(self._settings)
        blobs, shape = BlobStore(folder / "adapters"), self.main.shape
        self.digests: Mix = [stored_adapter(blobs, shape, path) for path in adapter_folders] or [
            random_adapter(blobs, shape, RANK, seed, self.main.dtype) for seed in range(NUM_ADAPTERS)
        ]
        self._make_resident(self.main)

    @cached_property
    def without_adapters(self) -> BuiltEngine:
        """An engine that never loads an adapter."""
        built = build_engine(self._settings)
        drive(built.engine, in_turn([None], MAX_NUM_SEQS, 16, 4))
        return built

    @cached_property
    def timed(self) -> tuple[BuiltEngine, Stopwatch]:
        """An engine with a stopwatch around each operation."""
        built, stopwatch = build_timed_engine(self._settings)
        self._make_resident(built)
        return built, stopwatch

    def close(self) -> None:
        self.main.engine.close()
        if "without_adapters" in self.__dict__:
            self.without_adapters.engine.close()
        if "timed" in self.__dict__:
            self.timed[0].engine.close()

    def _make_resident(self, built: BuiltEngine) -> None:
        drive(built.engine, in_turn([*self.digests, None], len(self.digests) + 1, 16, 4), MAX_NUM_SEQS)


def cases(engines: Engines, workloads: Sequence[str], levels: Sequence[int], *, quick: bool = False) -> list[Case]:
    """In the order in which a round runs them. quick: tiny sizes under the same keys."""

    def sized(shape: Shape) -> Shape:
        return shape.quick if quick else shape

    def decode(name: str, shape: Shape) -> list[Case]:
        """The base, 8 and 32 distinct adapters at every level."""
        levelled = [(level, sized(replace(shape, in_flight=level))) for level in levels]
        return [case for level, one in levelled for case in _beside_base(f"{name}.c{level}", (8, 32), one, engines)]

    makers: dict[str, Callable[[], list[Case]]] = {
        "decode_16_128": lambda: decode("decode_16_128", DECODE_16_128),
        "decode_64_64": lambda: decode("decode_64_64", DECODE_64_64),
        "prefill": lambda: _beside_base("prefill", (8,), sized(PREFILL), engines),
        "context_2048": lambda: _beside_base("context_2048", (), sized(CONTEXT_2048), engines),
        "resident": lambda: _resident(sized(DECODE_16_128), engines),
        "overhead": lambda: _overhead(sized(DECODE_16_128), engines),
    }
    return [case for workload in workloads for case in makers[workload]()]


def _beside_base(name: str, adapter_counts: Sequence[int], shape: Shape, engines: Engines) -> list[Case]:
    """Requests of the base, then of each number of adapters in turn, every one compared with the base."""

    def case(mix: Mix, key: str, against: str | None) -> Case:
        return Case(key, lambda: rates(_loop(engines.main, mix, shape)), against)

    base = case([None], f"{name}.base", None)
    return [base] + [case(engines.digests[:n], f"{name}.{n}_adapters", base.key) for n in adapter_counts]


def _resident(shape: Shape, engines: Engines) -> list[Case]:
    """Base-only traffic on an engine that never loaded an adapter, and on one that holds them all."""

    def run(built: BuiltEngine) -> Mapping[str, float]:
        return rates(_loop(built, [None], shape))

    without = Case("resident.without_adapters", lambda: run(engines.without_adapters))
    return [without, Case("resident.with_adapters", lambda: run(engines.main), without.key)]


def _overhead(shape: Shape, engines: Engines) -> list[Case]:
    """The share of a run's time that is spent outside kernels."""

    def run(mix: Mix) -> Mapping[str, float]:
        built, stopwatch = engines.timed
        stopwatch.reset()
        done = _loop(built, mix, shape)
        return rates(done) | {"outside_kernels": 1 - stopwatch.seconds / done.seconds}

    return [Case("overhead.base", lambda: run([None])), Case("overhead.8_adapters", lambda: run(engines.digests[:8]))]


def _loop(built: BuiltEngine, mix: Mix, shape: Shape) -> Traffic:
    return drive(built.engine, in_turn(mix, shape.in_flight, shape.prompt_len, shape.output_len))


def rates(run: Traffic) -> dict[str, float]:
    """output_tok_s and prompt_tok_s over the whole run; decode_tok_s and step_ms by its median decode step."""
    found = {"output_tok_s": run.output_tokens_per_second, "prompt_tok_s": run.prompt_tokens_per_second}
    if run.decode_steps:
        decode = run.decode_tokens_per_second
        found |= {"decode_tok_s": decode, "step_ms": run.concurrency / decode * 1e3, "kv_waste": run.kv_waste()}
    return found
