"""Check, time and tune every Triton kernel on a CUDA device at the shapes of Llama 3.1 8B.

Runs under a plain python3 with PYTHONPATH=src; needs torch, triton and numpy only. `check` compares with the fp64
reference on the CPU. `bench` prints times next to the copy bandwidth of the same run, the LoRA kernels' beside their
rivals', and writes them as JSON. `tune` measures tile sizes and writes the best as the architecture's data.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from gpu_report import RESULTS, Timer, device_name, write_results  # noqa: E402
from gpu_rivals import Rival, grouped_products, products_per_adapter, vllm_kernels  # noqa: E402
from kernels import cases  # noqa: E402
from kernels.cases import Case  # noqa: E402

from loraplex.kernels.ops import Kernels  # noqa: E402

VLLM_FOLDER = ROOT / ".bench" / "vllm-kernels"


@dataclass(frozen=True)
class Timing:
    """rivals: microseconds of each that could run on this shape, and why another could not."""

    op: str
    shape: str
    microseconds: float
    gigabytes_per_second: float
    teraflops_per_second: float
    rivals: dict[str, float | str] = field(default_factory=dict)


# Check


def check(device: torch.device, shape: ModelShape, load: Load, only: str, dtypes: tuple[torch.dtype, ...]) -> int:
    """Print kernels, op, dtype, cases, largest error as a share of what is allowed; 1 if any case failed, else 0."""
    from kernels.tiled import TILES

    from loraplex.kernels.triton_backend import TritonKernels

    table = [case for case in cases.CASES if device.type == "cuda" or "49152" not in case.name]
    table += [entry.case for entry in workloads(shape, load)]
    print(f"{'kernels':14}{'op':18}{'dtype':10}{'cases':>6}{'max error':>12}  ok   (error: share of the tolerance)")
    failed = 0
    for op in sorted({case.op for case in table if only in case.op}):
        of_op = [case for case in table if case.op == op]
        for dtype in dtypes:
            failed += _check_op("tuned", TritonKernels(), op, of_op, device, dtype)
        tiled = {"add_lora": "lora", "paged_attention": "attention"}.get(op)
        for name, kernels in TILES.items():
            if tiled and getattr(kernels, tiled):
                failed += _check_op(name, kernels, op, of_op, device, torch.bfloat16)
    print(f"{failed} failed" if failed else "all ok")
    return 1 if failed else 0


def _check_op(name: str, kernels: Kernels, op: str, table: list[Case], device: torch.device, dtype: torch.dtype) -> int:
    """The number of cases that failed."""
    outcomes = {str(case): case_error(kernels, case, device, dtype) for case in table}
    bad = {case: outcome for case, outcome in outcomes.items() if isinstance(outcome, str) or not outcome <= 1}
    worst = max((outcome for outcome in outcomes.values() if isinstance(outcome, float)), default=0.0)
    dtype_name = str(dtype).removeprefix("torch.")
    print(f"{name:14}{op:18}{dtype_name:10}{len(table):6}{worst:12.3f}  {'NO' if bad else 'yes'}", flush=True)
    for case, outcome in bad.items():
        print(f"    {case}: {outcome}")
    return len(bad)


def case_error(kernels: Kernels, case: Case, device: torch.device, dtype: torch.dtype) -> float | str:
    """The largest error over all results, 1 being just allowed; infinite for a wrong token id, shape or dtype; what
    was raised, if the kernel did not run."""
    from loraplex.kernels.reference import ReferenceKernels

    try:
        actual = [one.cpu() for one in cases.run(kernels, case.op, case.build(device, dtype, 0), case.written)]
    except Exception as error:  # the other cases are to be checked too, whatever a compiler raises
        return f"{type(error).__name__}: {str(error)[:400]}"
    exact_args = cases.exact(case.build(torch.device("cpu"), dtype, 0))
    expected = cases.run(ReferenceKernels(), case.op, exact_args, case.written)
    limit = cases.tolerance(dtype, case.reduction_length)
    return max(_error(one, other, limit) for one, other in zip(actual, expected, strict=True))


def _error(actual: Tensor, expected: Tensor, limit: float) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(actual, expected) else float("inf")
    if expected.numel() == 0:
        return 0.0
    rms = expected.pow(2).mean().sqrt()
    worst: float = ((actual.double() - expected).abs() / (limit * (expected.abs() + rms))).max().item()
    return worst if worst == worst else float("inf")  # NaN would pass a comparison


# Bench


def bench(
    device: torch.device, shape: ModelShape, load: Load, only: str, rivals: dict[str, Rival]
) -> tuple[float, list[Timing]]:
    """Copy bandwidth in GB/s, and a printed line per workload, bf16."""
    timer = Timer(device)
    bandwidth = timer.copy_bandwidth()
    print(f"copy: {bandwidth:.0f} GB/s")
    print(f"{'op':18}{'shape':42}{'us':>10}{'GB/s':>8}{'of copy':>9}{'TFLOP/s':>9}  rivals: us (times as long)")
    timings = []
    for workload in workloads(shape, load):
        if only in workload.case.op:
            timing = time_workload(workload, timer, device, rivals)
            timings.append(timing)
            print(
                f"{timing.op:18}{timing.shape:42}{timing.microseconds:10.1f}{timing.gigabytes_per_second:8.0f}"
                f"{timing.gigabytes_per_second / bandwidth:9.0%}{timing.teraflops_per_second:9.1f}"
                f"  {_told_rivals(timing)}",
                flush=True,
            )
    return bandwidth, timings


def _told_rivals(timing: Timing) -> str:
    return ", ".join(
        f"{name}: {value}" if isinstance(value, str) else f"{name} {value:.1f} (x{value / timing.microseconds:.2f})"
        for name, value in timing.rivals.items()
    )


def time_workload(workload: Workload, timer: Timer, device: torch.device, rivals: dict[str, Rival]) -> Timing:
    """As a CUDA graph: the device's time, without what the host takes to launch."""
    from loraplex.kernels.triton_backend import TritonKernels

    case, dtype = workload.case, torch.bfloat16
    args = case.build(device, dtype, 0)
    if case.op == "linear":
        x, weight, bias = args
        call: Callable[[], object] = partial(TritonKernels().linear(weight, bias), x)
    else:
        call = partial(getattr(TritonKernels(), case.op), *args)
    seconds = timer.seconds(timer.graphed(call))
    timed = {name: rival_time(rival, workload, timer, device) for name, rival in rivals.items()}
    return Timing(
        op=case.op,
        shape=case.name,
        microseconds=seconds * 1e6,
        gigabytes_per_second=workload.elements * dtype.itemsize / seconds / 1e9,
        teraflops_per_second=workload.flops / seconds / 1e12,
        rivals=timed if case.op == "add_lora" else {},
    )


def rival_time(rival: Rival, workload: Workload, timer: Timer, device: torch.device) -> float | str:
    """Microseconds, or why there are none. It must compute what our kernel computes, to 3% of the change."""
    from loraplex.kernels.triton_backend import TritonKernels

    if workload.case.op != "add_lora":
        return "not LoRA"
    args = workload.case.build(device, torch.bfloat16, 0)
    before, ours = args[0].clone(), args[0].clone()
    TritonKernels().add_lora(ours, *args[1:])
    try:
        call = rival(*args)
        call()
        error = (args[0].float() - ours.float()).norm() / (ours.float() - before.float()).norm()
        if not error < 0.03:
            return f"computes something else (error {error:.2g})"
        return timer.seconds(timer.graphed(call)) * 1e6
    except Exception as error:  # a rival that cannot run here is told about, and the next one measured
        return f"does not run: {type(error).__name__} {str(error)[:160]}"


def rivals_for(options: argparse.Namespace) -> dict[str, Rival]:
    rivals: dict[str, Rival] = {"per adapter": products_per_adapter, "grouped_mm": grouped_products}
    if options.vllm_wheel is None:
        print("vLLM's kernels are left out: give its wheel with --vllm-wheel to measure them")
    else:
        rivals["vLLM"] = vllm_kernels(options.vllm_wheel, VLLM_FOLDER)
    return rivals


# Command line


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="Exit code 2: no CUDA device."
    )
    parser.add_argument(
        "command",
        choices=("check", "bench", "tune"),
        help="check: parity with the fp64 reference, exit code 1 if a case fails; bench: times, printed and as JSON; "
        "tune: tile sizes, printed and written to kernels/tuning",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME",
        help="only ops (tune: classes) whose name contains this",
    )
    parser.add_argument(
        "--vllm-wheel", type=Path, metavar="FILE", help="a wheel of vLLM, whose LoRA kernels bench measures too"
    )
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="tiny shapes in Triton's interpreter on the CPU: shows that this program runs; its times mean nothing",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="where bench writes gpu-kernels-<device>.json"
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
    shape = TINY if options.interpret else LLAMA_8B
    print(f"{device_name(device)}, torch {torch.__version__}")
    if options.command == "check":
        dtypes = (torch.bfloat16,) if options.interpret else (torch.bfloat16, torch.float16, torch.float32)
        return check(device, shape, TINY_LOAD if options.interpret else CHECK_LOAD, options.only, dtypes)
    if options.command == "tune":
        from gpu_tuning import tune

        tune(Timer(device), shape, keep=not options.interpret, only=options.only)
        return 0
    load = TINY_LOAD if options.interpret else BENCH_LOAD
    bandwidth, timings = bench(device, shape, load, options.only, rivals_for(options))
    report = {"copy_gigabytes_per_second": bandwidth, "timings": [asdict(timing) for timing in timings]}
    if not options.interpret:
        print(f"written to {write_results(options.results, 'kernels', device, report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
