"""Parity of the whole engine on a device: every way in which steps run gives what the reference kernels give.

Also counts what steps send to the device. `gpu_engine.py check` runs it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from gpu_model import Adapters, prompt, start
from gpu_report import device_name

from loraplex.engine.build import BuiltEngine
from loraplex.engine.events import SamplingParams, only

Answers = dict[str, tuple[list[int], list[float]]]


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
