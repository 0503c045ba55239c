"""What the GPU benchmarks share: a clock on the device, where a figure comes from, and where results go.

Needs torch and triton only.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


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

    def graphed(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as a CUDA graph, so that its time is the device's alone; the call itself without a GPU."""
        if not self.on_gpu:
            return call
        call()  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def copy_bandwidth(self) -> float:
        """GB/s, bytes read plus bytes written."""
        source, target = torch.empty_like(self.buffer), torch.empty_like(self.buffer)
        return 2 * source.numel() / self.seconds(lambda: target.copy_(source)) / 1e9


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def environment(device: torch.device) -> dict[str, str]:
    import triton

    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write_results(folder: Path, kind: str, device: torch.device, report: dict[str, Any]) -> Path:
    """gpu-<kind>-<device>.json: the environment, then the report."""
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = folder / f"gpu-{kind}-{slug}.json"
    path.write_text(json.dumps({"environment": environment(device), **report}, indent=1) + "\n")
    return path


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
