"""Check and time every Triton kernel on a CUDA device at the shapes of Llama 3.1 8B.

Runs under a plain python3 with PYTHONPATH=src; needs torch, triton and numpy only. `check` compares with the fp64
reference on the CPU. `bench` prints times next to the copy bandwidth of the same run and writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # not ROOT, whose platform/ is not Python's
from gpu_kernel_workloads import (  # noqa: E402 - its imports are found on the path set above
    BENCH_LOAD,
    CHECK_LOAD,
    LLAMA_8B,
    TINY,
    TINY_LOAD,
    Load,
    ModelShape,
    Workload,
    workloads,
)
from kernels import cases  # noqa: E402
from kernels.cases import Case  # noqa: E402

from loraplex.kernels.ops import LoraBatch  # noqa: E402


@dataclass(frozen=True)
class Timing:
    op: str
    shape: str
    microseconds: float
    gigabytes_per_second: float
    teraflops_per_second: float
    torch_loop_microseconds: float | None


# Check


def check(device: torch.device, shape: ModelShape, load: Load, only: str, dtypes: tuple[torch.dtype, ...]) -> int:
    """Print op, dtype, cases, largest error as a share of what is allowed, verdict; 1 if any case failed, else 0."""
    table = [case for case in cases.CASES if device.type == "cuda" or "49152" not in case.name]
    table += [entry.case for entry in workloads(shape, load)]
    failed = 0
    print(f"{'op':18}{'dtype':10}{'cases':>6}{'max error':>12}  ok   (error: share of the tolerance)")
    for op in sorted({case.op for case in table if only in case.op}):
        for dtype in dtypes:
            errors = {str(case): case_error(case, device, dtype) for case in table if case.op == op}
            bad = [name for name, error in errors.items() if not error <= 1]
            failed += len(bad)
            name = str(dtype).removeprefix("torch.")
            print(f"{op:18}{name:10}{len(errors):6}{max(errors.values()):12.3f}  {'NO' if bad else 'yes'}", flush=True)
            for case_name in bad:
                print(f"    {case_name}: {errors[case_name]:.3g}")
    print(f"{failed} failed" if failed else "all ok")
    return 1 if failed else 0


def case_error(case: Case, device: torch.device, dtype: torch.dtype) -> float:
    """The largest error over all results, 1 being just allowed; infinite for a wrong token id, shape or dtype."""
    from loraplex.kernels.reference import ReferenceKernels
    from loraplex.kernels.triton_backend import TritonKernels

    actual = cases.run(TritonKernels(), case.op, case.build(device, dtype, 0), case.written)
    exact_args = cases.exact(case.build(torch.device("cpu"), dtype, 0))
    expected = cases.run(ReferenceKernels(), case.op, exact_args, case.written)
    limit = cases.tolerance(dtype, case.reduction_length)
    return max(_error(one.cpu(), other, limit) for one, other in zip(actual, expected, strict=True))


def _error(actual: Tensor, expected: Tensor, limit: float) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else float("inf")
    if expected.numel() == 0:
        return 0.0
    rms = expected.pow(2).mean().sqrt()
    worst = ((actual.double() - expected).abs() / (limit * (expected.abs() + rms))).max().item()
    return worst if worst == worst else float("inf")  # NaN would pass a comparison


# Bench


def bench(device: torch.device, shape: ModelShape, load: Load, only: str) -> tuple[float, list[Timing]]:
    """Copy bandwidth in GB/s, and a printed line per workload, bf16."""
    timer = Timer(device)
    bandwidth = timer.copy_bandwidth()
    print(f"copy: {bandwidth:.0f} GB/s")
    print(f"{'op':18}{'shape':42}{'us':>10}{'GB/s':>8}{'of copy':>9}{'TFLOP/s':>9}  torch loop")
    timings = []
    for workload in workloads(shape, load):
        if only in workload.case.op:
            timing = time_workload(workload, timer, device)
            timings.append(timing)
            loop = timing.torch_loop_microseconds
            print(
                f"{timing.op:18}{timing.shape:42}{timing.microseconds:10.1f}{timing.gigabytes_per_second:8.0f}"
                f"{timing.gigabytes_per_second / bandwidth:9.0%}{timing.teraflops_per_second:9.1f}"
                + ("" if loop is None else f"  {loop:.1f} us, x{loop / timing.microseconds:.2f}"),
                flush=True,
            )
    return bandwidth, timings


class Timer:
    """Median time of a call on the device, its inputs not in the cache; without a GPU, wall time of one call."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.buffer = torch.empty(2**29 if self.on_gpu else 2**20, dtype=torch.uint8, device=device)

    def seconds(self, call: Callable[[], object], warm_up: int = 5, repeats: int = 50) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        for _ in range(warm_up):
            call()
        spans = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for before, after in spans:
            self.buffer.zero_()  # evicts the inputs, and is long enough for the host to run ahead
            before.record()
            call()
            after.record()
        torch.cuda.synchronize()
        return statistics.median(before.elapsed_time(after) for before, after in spans) / 1e3

    def copy_bandwidth(self) -> float:
        """GB/s, bytes read plus bytes written."""
        source, target = torch.empty_like(self.buffer), torch.empty_like(self.buffer)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source)) / 1e9


def time_workload(workload: Workload, timer: Timer, device: torch.device) -> Timing:
    from loraplex.kernels.triton_backend import TritonKernels

    case, dtype = workload.case, torch.bfloat16
    args = case.build(device, dtype, 0)
    loop_seconds = None
    if case.op == "linear":
        x, weight, bias = args
        seconds = timer.seconds(partial(TritonKernels().linear(weight, bias), x))
    else:
        seconds = timer.seconds(partial(getattr(TritonKernels(), case.op), *args))
    if case.op == "add_lora":
        loop_seconds = timer.seconds(torch_lora_loop(*args))
    return Timing(
        op=case.op,
        shape=case.name,
        microseconds=seconds * 1e6,
        gigabytes_per_second=workload.elements * dtype.itemsize / seconds / 1e9,
        teraflops_per_second=workload.flops / seconds / 1e12,
        torch_loop_microseconds=None if loop_seconds is None else loop_seconds * 1e6,
    )


def torch_lora_loop(
    out: Tensor, x: Tensor, lora: LoraBatch, site: int, slice_widths: tuple[int, ...]
) -> Callable[[], None]:
    """What one writes without a kernel: for every adapter and slice two products, views made beforehand."""
    spans: dict[int, list[int]] = {}
    for row, first_token, num_tokens in lora.work.tolist():
        spans.setdefault(row, [first_token, first_token])[1] = first_token + num_tokens
    products = []
    for row, (start, end) in spans.items():
        a_offset, b_offset, *ranks = lora.table[row, site].tolist()
        column = 0
        for rank, width in zip(ranks, slice_widths, strict=False):
            a = lora.pool[a_offset : a_offset + rank * x.shape[1]].view(rank, -1)
            b = lora.pool[b_offset : b_offset + rank * width].view(rank, width)
            products.append((out[start:end, column : column + width], x[start:end], a.T, b))
            a_offset, b_offset, column = a_offset + a.numel(), b_offset + b.numel(), column + width

    def run() -> None:
        for target, source, a, b in products:
            target.addmm_(source @ a, b)

    return run


def write_results(folder: Path, device_name: str, bandwidth: float, timings: list[Timing]) -> Path:
    import triton

    record = {
        "device": device_name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit(),
        "command": " ".join(["benchmarks/gpu_kernels.py", *sys.argv[1:]]),
        "copy_gigabytes_per_second": bandwidth,
        "timings": [asdict(timing) for timing in timings],
    }
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-kernels-{slug}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def commit() -> str:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


# Command line


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="Exit code 2: no CUDA device."
    )
    parser.add_argument(
        "command",
        choices=("check", "bench"),
        help="check: parity with the fp64 reference, exit code 1 if a case fails; bench: times, printed and as JSON",
    )
    parser.add_argument("--only", default="", metavar="OP", help="only ops whose name contains this, e.g. lora")
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="tiny shapes in Triton's interpreter on the CPU: shows that this program runs; its times mean nothing",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        metavar="DIR",
        help="where bench writes gpu-kernels-<device>.json (default: benchmarks/results)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which is why our kernels are imported late
    elif not torch.cuda.is_available():
        print("No CUDA device found; try --interpret for a dry run on the CPU.", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.interpret else "cuda")
    device_name = "interpreter" if options.interpret else torch.cuda.get_device_name()
    shape = TINY if options.interpret else LLAMA_8B
    print(f"{device_name}, torch {torch.__version__}")
    if options.command == "check":
        dtypes = (torch.bfloat16,) if options.interpret else (torch.bfloat16, torch.float16, torch.float32)
        return check(device, shape, TINY_LOAD if options.interpret else CHECK_LOAD, options.only, dtypes)
    bandwidth, timings = bench(device, shape, TINY_LOAD if options.interpret else BENCH_LOAD, options.only)
    if not options.interpret:
        print(f"written to {write_results(options.results, device_name, bandwidth, timings)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
