"""The whole engine on a CUDA device: parity with the reference kernels, and how near its steps come to the floor.

`python3 benchmarks/gpu_engine.py check|bench --help`. Runs with PYTHONPATH=src under a plain python3 with torch,
triton, numpy and safetensors; makes its own weights on the device.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from gpu_engine_bench import bench
from gpu_engine_check import check
from gpu_model import CONFIGS
from gpu_report import RESULTS


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
