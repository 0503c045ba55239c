"""The whole engine on a CUDA device: parity with the reference kernels, and how near its steps come to the floor.

`python3 benchmarks/gpu_engine.py check|bench --help`. Runs with PYTHONPATH=src under a plain python3 with torch,
triton, numpy and safetensors; makes its own weights on the device.

The floor of a step is the bytes that it must read over the copy bandwidth that the same run measured: the weights of
all products, the keys and values of the contexts, and every adapter that is in the batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from gpu_model import (
    CONFIGS,
    Adapters,
    adapter_bytes,
    kv_bytes,
    make_resident,
    prompt,
    start,
    weight_bytes,
)
from gpu_report import RESULTS, Timer, device_name, write_results

from loraplex.engine.build import BuiltEngine
from loraplex.engine.events import SamplingParams, only

MIXED_RANKS = (8, 16, 32, 64)
WARM_STEPS = 5  # launched once, recorded once, and a few more


@dataclass(frozen=True)
class DecodeRow:
    """One measured kind of decode step. Targets and shares are of the floor's bandwidth."""

    rows: str
    batch: int
    step_ms: float
    fastest_ms: float
    floor_ms: float
    tokens_per_second: float
    target_share: float | None

    @property
    def share(self) -> float:
        return self.floor_ms / self.step_ms


# Check


def check(arguments: argparse.Namespace) -> int:
    """fp32, so that all ways must give the same tokens; random weights leave clear margins."""
    outcomes, failed = {}, 0
    ways = (
        ("reference", "reference", False, 0),
        ("launched", arguments.kernels, False, 0),
        ("graphs", arguments.kernels, True, 0),
        ("ahead", arguments.kernels, True, 8),
    )
    for way, kernels, graphs, speculative_tokens in ways:
        with tempfile.TemporaryDirectory() as name:
            built = start(
                Path(name), arguments.model, arguments.layers, kernels=kernels, device=arguments.device,
                dtype="float32", kv_cache_bytes=256 << 20, adapter_device_bytes=1 << 30, max_model_len=512,
                max_step_tokens=192, cuda_graphs=graphs,
                speculative_tokens=speculative_tokens,
            )  # fmt: skip
            outcomes[way] = answers(built, Path(name), arguments.tokens)
            failed += _told_about_steps(built, way)
            built.engine.close()
    for way in ("launched", "graphs", "ahead"):
        failed += _told_about_answers(way, outcomes["reference"], outcomes[way], arguments.tolerance)
    print(f"engine check on {device_name(torch.device(arguments.device))}: {failed} failed")
    return 1 if failed else 0


Answers = dict[str, tuple[list[int], list[float]]]


def answers(built: BuiltEngine, folder: Path, tokens: int) -> Answers:
    """Greedy tokens and log-probabilities of 24 requests that come and go: base, ranks 1 to 64 and other kinds, prompts
    of 5 to 170 tokens, so that steps of any number of rows and any mix of adapters follow one another, the last on the
    base."""
    torch.manual_seed(0)
    adapters = Adapters(folder, built.shape, built.dtype)
    digests = [None, *adapters.digests((1, 8, 16, 33, 64)), *adapters.of_other_kinds()]
    results: Answers = {str(index): ([], []) for index in range(3 * len(digests))}
    for index, name in enumerate(results):
        digest = digests[index % len(digests)]
        most = tokens * (1 if digest else 3) + 3 * index
        sampling = SamplingParams(max_tokens=most, temperature=0.0, ignore_eos=True, logprobs=True)
        built.engine.submit(name, prompt(index, 5 + 33 * (index % 6)), sampling, adapters=only(digest))
        _step(built, results)
    while built.engine.has_work:
        _step(built, results)
    return results


def _step(built: BuiltEngine, results: Answers) -> None:
    step = built.engine.step()
    if not step.ran:
        built.engine.wait(1.0)
    if step.failures:
        raise RuntimeError(f"{step.failures[0].code}: {step.failures[0].message}")
    for chunk in step.chunks:
        results[chunk.request_id][0].extend(chunk.token_ids)
        results[chunk.request_id][1].extend(chunk.logprobs or [])


def _told_about_steps(built: BuiltEngine, way: str) -> int:
    """One copy to the device per step, and graphs that were recorded and replayed: the number of promises broken."""
    steps, copies, graphs = built.engine.status().steps, built.runner.builder.copies, built.runner.graphs
    if built.device.type != "cuda":
        return 0
    one_copy = copies == steps
    print(f"{way}: {'ok' if one_copy else 'WRONG'}  {copies} copies of inputs in {steps} steps")
    broken = int(not one_copy)
    if way != "reference":  # which may ask the host for anything
        broken += _told_about_transfers(built, way)
    if way == "ahead":
        status = built.engine.status()
        print(f"{way}: {status.drafted_tokens} tokens tried ahead, {status.accepted_tokens} of them right")
    if way == "graphs":
        used = graphs is not None and graphs.recorded > 0 and graphs.replays > graphs.recorded
        counts = f"{graphs.recorded} recorded, {graphs.replays} replayed" if graphs else "none at all"
        print(f"{way}: {'ok' if used else 'WRONG'}  CUDA graphs: {counts}")
        broken += not used
    return broken


def _told_about_transfers(built: BuiltEngine, way: str, steps: int = 10) -> int:
    """What the profiler saw go from host to device in decode steps: 1 if it is more than one copy a step, else 0."""
    sampling = SamplingParams(max_tokens=3 * steps, temperature=0.0, ignore_eos=True)
    for index in range(3):
        built.engine.submit(f"profiled {index}", prompt(index, 20), sampling)
    for _ in range(steps):
        built.engine.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            built.engine.step()
        torch.cuda.synchronize()
    for index in range(3):
        built.engine.abort(f"profiled {index}")
    names = [event.name for event in profile.events()]
    if not names:
        print(f"{way}: skipped  the profiler sees no device events here")
        return 0
    sent = sum("HtoD" in name for name in names)
    print(f"{way}: {'ok' if sent <= steps else 'WRONG'}  {sent} transfers to the device in {steps} decode steps")
    return int(sent > steps)


def _told_about_answers(way: str, expected: Answers, actual: Answers, tolerance: float) -> int:
    failed = 0
    for name, (tokens, logprobs) in expected.items():
        other_tokens, other_logprobs = actual[name]
        error = max(abs(a - b) for a, b in zip(logprobs, other_logprobs, strict=True))
        same = tokens == other_tokens and error < tolerance
        failed += not same
        first = next((i for i, (a, b) in enumerate(zip(tokens, other_tokens, strict=True)) if a != b), None)
        where = "" if first is None else f", tokens differ from {first} on"
        print(f"{way}, request {name}: {'ok' if same else 'WRONG'}  log-probability error {error:.1e}{where}")
    return failed


# Bench


def bench(arguments: argparse.Namespace) -> int:
    device = torch.device(arguments.device)
    bandwidth = Timer(device).copy_bandwidth()
    print(f"{device_name(device)}, copy {bandwidth:.0f} GB/s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = _bench_engine(folder, arguments)
        adapters = Adapters(folder, built.shape, built.dtype)
        rows = []
        for label, batch, ranks, target in _decode_plan(arguments):
            digests = adapters.digests(ranks)
            make_resident(built, digests)
            times, context = decode_seconds(built, (digests or [None]) * (batch // max(len(digests), 1)), arguments)
            median = statistics.median(times)
            floor = needed_bytes(built, context, ranks) / bandwidth / 1e6
            row = DecodeRow(label, batch, median * 1e3, min(times) * 1e3, floor, batch / median, target)
            rows.append(row)
            _print_row(row)
        enabled = _told_enabled(rows)
        prefill = prefill_rows(built, adapters, arguments)
        built.engine.close()
    report = {
        "model": arguments.model,
        "layers": built.config.num_layers,
        "context": arguments.context,
        "cuda_graphs": arguments.graphs,
        "copy_gigabytes_per_second": bandwidth,
        "decode": [{**asdict(row), "share_of_floor": row.share} for row in rows],
        "base_with_adapters_loaded_over_base": enabled,
        "prefill": prefill,
    }
    print(f"written to {write_results(arguments.results, 'engine', device, report)}")
    return 0


def _bench_engine(folder: Path, arguments: argparse.Namespace) -> BuiltEngine:
    """Memory for the largest batch and all adapters of a batch at once."""
    probe = CONFIGS[arguments.model]
    most = max(*arguments.batches, *arguments.distinct, *arguments.mixed)
    built_options = {
        "kernels": arguments.kernels,
        "device": arguments.device,
        "dtype": "bfloat16",
        "max_model_len": min(probe["max_position_embeddings"], arguments.context + 512),
        "max_num_seqs": most,
        "max_step_tokens": arguments.prefill,
        "cuda_graphs": arguments.graphs,
        "adapter_device_bytes": arguments.adapter_gigabytes << 30,
        "kv_cache_bytes": arguments.kv_gigabytes << 30,
    }
    return start(folder, arguments.model, arguments.layers, **built_options)


def _decode_plan(arguments: argparse.Namespace) -> list[tuple[str, int, tuple[int, ...], float | None]]:
    """(label, batch, one rank per row or none, target). The base first, while no adapter was ever loaded, and again."""
    plan: list[tuple[str, int, tuple[int, ...], float | None]] = []
    plan += [("base", batch, (), 0.85) for batch in arguments.batches]
    plan += [("distinct rank 16", batch, (16,) * batch, 0.80) for batch in arguments.distinct]
    plan += [("one rank 16", batch, (16,), None) for batch in arguments.distinct[:1]]
    mixed = [(batch, tuple(MIXED_RANKS[row % len(MIXED_RANKS)] for row in range(batch))) for batch in arguments.mixed]
    plan += [("distinct, ranks 8 to 64", batch, ranks, 0.80) for batch, ranks in mixed]
    return plan + [("base, adapters loaded", batch, (), 0.85) for batch in arguments.batches]


def needed_bytes(built: BuiltEngine, context: int, ranks: Sequence[int]) -> int:
    """What a decode step cannot do without: `context` tokens in all contexts, an adapter of each of the ranks."""
    itemsize = built.dtype.itemsize
    adapters = sum(adapter_bytes(built.shape, rank, itemsize) for rank in ranks)
    return weight_bytes(built.config, itemsize) + kv_bytes(built.config, context, itemsize) + adapters


def decode_seconds(
    built: BuiltEngine, adapters: Sequence[str | None], arguments: argparse.Namespace
) -> tuple[list[float], int]:
    """Seconds of each step in which every row decodes, the first few dropped, and the tokens in all contexts then."""
    engine, steps = built.engine, arguments.steps
    sampling = SamplingParams(max_tokens=steps + WARM_STEPS + 2 * len(adapters), temperature=0.0, ignore_eos=True)
    for index, digest in enumerate(adapters):
        engine.submit(str(index), prompt(index, arguments.context), sampling, adapters=only(digest))
    times: list[float] = []
    contexts: list[int] = []
    while len(times) < steps + WARM_STEPS:
        if not engine.has_work:
            raise RuntimeError("requests ended before enough steps were measured; is memory too small for the batch?")
        if not engine.step().ran:
            engine.wait(1.0)
        elif engine.recent_steps[-1].decode_tokens == len(adapters):
            times.append(engine.recent_steps[-1].seconds)
            contexts.append(sum(sequence.prompt_tokens + sequence.generated_tokens for sequence in engine.running()))
    for index in range(len(adapters)):
        engine.abort(str(index))
    return times[WARM_STEPS:], contexts[len(contexts) // 2]


def _told_enabled(rows: Sequence[DecodeRow]) -> dict[str, float]:
    """By batch: the base's step with adapters on the device, over its step when none had ever been loaded."""
    base = {row.batch: row.fastest_ms for row in rows if row.rows == "base"}
    ratios = {str(row.batch): row.fastest_ms / base[row.batch] for row in rows if row.rows == "base, adapters loaded"}
    told = ", ".join(f"{batch}: {ratio - 1:+.1%}" for batch, ratio in ratios.items())
    print(
        f"base with adapters loaded over base before, fastest steps, by batch (target: within 1%): {told}", flush=True
    )
    return ratios


def prefill_rows(built: BuiltEngine, adapters: Adapters, arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    """One step of 8 equal prompts, on the base and with 8 adapters, in turns."""
    digests = adapters.digests((16,) * 8)
    make_resident(built, digests)
    times: dict[str, list[float]] = {"base": [], "8 adapters of rank 16": []}
    for _ in range(6):
        for label, rows in zip(times, ([None] * 8, digests), strict=True):
            times[label].append(_prefill_seconds(built, rows, arguments.prefill // 8))
    base, lora = (statistics.median(seconds[1:]) for seconds in times.values())
    print(f"prefill of {arguments.prefill} tokens: base {base * 1e3:.1f} ms, 8 adapters {lora * 1e3:.1f} ms, "
          f"{lora / base - 1:+.1%} (target: at most +10%)")  # fmt: skip
    return [{"rows": label, "tokens": arguments.prefill, "ms": statistics.median(seconds[1:]) * 1e3}
            for label, seconds in times.items()]  # fmt: skip


def _prefill_seconds(built: BuiltEngine, adapters: Sequence[str | None], length: int) -> float:
    sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    for index, digest in enumerate(adapters):
        built.engine.submit(f"prefill {index}", prompt(index, length), sampling, adapters=only(digest))
    while built.engine.has_work:
        if not built.engine.step().ran:
            built.engine.wait(1.0)
    record = built.engine.recent_steps[-1]
    if record.prefill_tokens != length * len(adapters):
        raise RuntimeError(f"the prompts did not run in one step: its last held {record.prefill_tokens} tokens")
    return record.seconds


def _print_row(row: DecodeRow) -> None:
    target = "" if row.target_share is None else f"  target {row.target_share:.0%}"
    verdict = "" if row.target_share is None else ("  met" if row.share >= row.target_share else "  MISSED")
    print(
        f"{row.rows:24} batch {row.batch:4} {row.step_ms:8.2f} ms/step (fastest {row.fastest_ms:.2f}, floor "
        f"{row.floor_ms:.2f}) {row.tokens_per_second:9.0f} tok/s  {row.share:6.1%} of the floor{target}{verdict}",
        flush=True,
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "bench"])
    parser.add_argument("--model", choices=CONFIGS, default="llama-3.1-8b", help="shape of the random weights")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has (check: 4 unless given)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels", default="triton", choices=["triton", "native", "reference"])
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="bench: launch every decode step")
    parser.add_argument("--tokens", type=int, default=24, help="check: tokens per request, at least")
    parser.add_argument("--tolerance", type=float, default=2e-2, help="check: largest log-probability difference")
    parser.add_argument("--context", type=int, default=1024, help="bench: prompt tokens per row")
    parser.add_argument("--steps", type=int, default=40, help="bench: steps measured of each kind")
    parser.add_argument("--prefill", type=int, default=8192, help="bench: tokens of a prefill step")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128], help="bench: base")
    parser.add_argument("--distinct", type=int, nargs="+", default=[8, 32, 64, 128], help="bench: distinct rank 16")
    parser.add_argument("--mixed", type=int, nargs="+", default=[8, 32, 64], help="bench: distinct, ranks 8 to 64")
    parser.add_argument("--adapter-gigabytes", type=int, default=14, help="bench: memory for adapters")
    parser.add_argument("--kv-gigabytes", type=int, default=22, help="bench: memory for keys and values")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="bench: where the JSON goes")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device on this machine; see --device and --kernels", file=sys.stderr)
        return 2
    if arguments.command == "check" and arguments.layers is None:
        arguments.layers = 4
    torch.backends.cuda.matmul.allow_tf32 = False
    return check(arguments) if arguments.command == "check" else bench(arguments)


if __name__ == "__main__":
    sys.exit(main())
