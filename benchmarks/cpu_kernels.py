"""Time every operation of kernels/ops.py on the CPU at the shapes of SmolLM2-135M: native code beside the reference.

Decode steps at batch 1, 8 and 32, and the prefill of one prompt of 512 tokens; bf16. A time is the shortest of several
calls, each with copies of its arguments that the caches no longer hold. The bound is the larger of the bytes that an
operation must move over the copy bandwidth, and its arithmetic over the rate of one large product, both of this run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from loraplex.engine.process import ENVIRONMENT

os.environ |= ENVIRONMENT | os.environ  # as in the engine's own process; read by torch when it is imported

import click
import torch
from machine import environment
from report import open_console, print_table, progress, write_json

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from cpu_kernel_workloads import Step, Workload, workloads

from loraplex.kernels.native import NativeKernels
from loraplex.kernels.ops import Kernels
from loraplex.kernels.reference import ReferenceKernels

CPU, DTYPE = torch.device("cpu"), torch.bfloat16
BATCHES = (1, 8, 32)
PREFILL_TOKENS = 512
COPY_BYTES = 256 << 20
PRODUCT_SIZE = 2048


@dataclass(frozen=True)
class Machine:
    """What the bounds are made of, as measured: bytes read plus bytes written, and bf16 arithmetic, a second."""

    bytes_per_second: float
    flops: float

    def __str__(self) -> str:
        return f"copy {self.bytes_per_second / 1e9:.1f} GB/s, product {self.flops / 1e9:.0f} GFLOP/s"

    def bound_seconds(self, work: Workload) -> float:
        return max(work.elements * DTYPE.itemsize / self.bytes_per_second, work.flops / self.flops)


@dataclass(frozen=True)
class Timing:
    step: str
    op: str
    shape: str
    calls: int
    native_us: float
    reference_us: float
    bound_us: float


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--only", default="", metavar="OP", help="Only operations whose name contains this, for instance lora.")
@click.option("--context", default=512, help="Tokens in the cache of a decoding sequence.")
@click.option("--repeats", default=20, help="Calls of the native operation; the reference gets a quarter.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
def main(only: str, context: int, repeats: int, json_path: Path | None) -> None:
    console = open_console()
    native, reference = NativeKernels(), ReferenceKernels()
    machine = measure_machine(native)
    steps = [*(Step(batch, 1, context) for batch in BATCHES), Step(1, PREFILL_TOKENS, PREFILL_TOKENS)]
    planned = [(step, work) for step in steps for work in workloads(step) if only in work.case.op]
    if not planned:
        raise click.UsageError(f"--only {only}: no operation's name contains it; try linear, lora or attention")
    timings = []
    with progress(console) as shown:
        task = shown.add_task("", total=len(planned))
        for step, work in planned:
            shown.update(task, description=f"{step.name}: {work.case.op} {work.case.name}")
            seconds = seconds_of(native, work, repeats)
            slow = seconds_of(reference, work, max(2, repeats // 4))
            bound = machine.bound_seconds(work)
            sizes = (step.name, work.case.op, work.case.name, work.calls)
            timings.append(Timing(*sizes, seconds * 1e6, slow * 1e6, bound * 1e6))
            shown.advance(task)
    print_timings(f"{native.instructions}; {machine}", timings)
    if json_path:
        figures = {f"{t.step}.{t.op}.{t.shape}".replace(" ", "_").replace(",", ""): t.native_us for t in timings}
        write_json(json_path, environment(), figures, machine=asdict(machine), timings=[asdict(t) for t in timings])


def measure_machine(kernels: Kernels) -> Machine:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8).fill_(1)
    target = torch.empty_like(source)
    copy = shortest(lambda: target.copy_(source), 5)
    square = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE).to(DTYPE)
    product = kernels.linear(square, None)
    return Machine(2 * COPY_BYTES / copy, 2 * PRODUCT_SIZE**3 / shortest(lambda: product(square), 5))


def seconds_of(kernels: Kernels, work: Workload, repeats: int) -> float:
    """The shortest call; the buffer that is overwritten in between is larger than the caches."""
    args = work.case.build(CPU, DTYPE, 0)
    if work.case.op == "linear":
        x, weight, bias = args
        product = kernels.linear(weight, bias)
        return shortest(lambda: product(x), repeats, evict=True)
    operation = getattr(kernels, work.case.op)
    return shortest(lambda: operation(*args), repeats, evict=True)


def shortest(call: Callable[[], object], repeats: int, *, evict: bool = False) -> float:
    buffer = torch.empty(COPY_BYTES // 4 if evict else 1, dtype=torch.uint8)
    call()
    times = []
    for _ in range(repeats):
        buffer.fill_(1)
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def print_timings(title: str, timings: Sequence[Timing]) -> None:
    headings = (
        "step",
        "op",
        "shape",
        "native µs",
        "reference µs",
        "times faster",
        "bound µs",
        "of bound",
        "ms per step",
    )
    rows = [
        (
            timing.step,
            timing.op,
            timing.shape,
            f"{timing.native_us:.1f}",
            f"{timing.reference_us:.1f}",
            f"{timing.reference_us / timing.native_us:.1f}",
            f"{timing.bound_us:.1f}",
            f"{timing.bound_us / timing.native_us:.0%}",
            f"{timing.native_us * timing.calls / 1e3:.2f}",
        )
        for timing in timings
    ]
    print_table(open_console(), title, headings, rows)


if __name__ == "__main__":
    main()
