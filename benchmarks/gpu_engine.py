"""The whole engine on a CUDA device: parity of its kernels with the reference, and the time of decode steps.

`python3 benchmarks/gpu_engine.py check|bench --help`. Runs with PYTHONPATH=src under a plain python3 with torch,
triton, numpy and safetensors; makes its own weights on the device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from offline import environment, random_adapter

from loraplex.adapters.blobs import BlobStore
from loraplex.engine.build import BuiltEngine, build_engine
from loraplex.engine.events import SamplingParams
from loraplex.engine.settings import EngineSettings

RESULTS = Path(__file__).parent / "results"

CONFIGS = {
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
    },
}
COMMON = {"architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "eos_token_id": 2}


def start(
    folder: Path, model: str, layers: int | None, *, kernels: str, device: str, dtype: str, **options
) -> BuiltEngine:
    """An engine with random weights of a model's shape."""
    config = COMMON | CONFIGS[model] | ({"num_hidden_layers": layers} if layers else {})
    (folder / "config.json").write_text(json.dumps(config))
    settings = EngineSettings(
        model_path=str(folder),
        adapter_blobs=str(folder / "adapters"),
        load_format="dummy",
        kernels=kernels,
        device=device,
        dtype=dtype,
        enable_prefix_cache=False,
        **options,
    )
    return build_engine(settings)


def answers(
    built: BuiltEngine, folder: Path, ranks: tuple[int, ...], tokens: int
) -> dict[str, tuple[list[int], list[float]]]:
    """Greedy tokens and log-probabilities of ragged prompts, one per rank and one on the base, in one batch."""
    blobs = BlobStore(folder / "adapters")
    digests = [None, *(random_adapter(blobs, built.shape, rank, rank, built.dtype) for rank in ranks)]
    results: dict[str, tuple[list[int], list[float]]] = {}
    for index, digest in enumerate(digests):
        prompt = [3 + (index * 977 + j * 31) % 500 for j in range(5 + 37 * index)]
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, logprobs=True)
        built.engine.submit(str(index), prompt, sampling, adapter=digest)
        results[str(index)] = ([], [])
    running = set(results)
    while running:
        step = built.engine.step()
        if not step.ran:
            built.engine.wait(1.0)
        if step.failures:
            raise RuntimeError(str(step.failures))
        for chunk in step.chunks:
            results[chunk.request_id][0].extend(chunk.token_ids)
            results[chunk.request_id][1].extend(chunk.logprobs or [])
            if chunk.finish_reason:
                running.discard(chunk.request_id)
    return results


def check(arguments: argparse.Namespace) -> int:
    """fp32, so that the two paths must give the same tokens; random weights leave clear margins."""
    ranks = (1, 8, 16, 33, 64)
    outcome = {}
    for kernels in ("reference", arguments.kernels):
        with tempfile.TemporaryDirectory() as folder:
            built = start(
                Path(folder), arguments.model, arguments.layers, kernels=kernels, device=arguments.device,
                dtype="float32", kv_cache_bytes=256 << 20, adapter_device_bytes=1 << 30, max_model_len=512,
                max_step_tokens=128,
            )  # fmt: skip
            outcome[kernels] = answers(built, Path(folder), ranks, arguments.tokens)
            built.engine.close()
    failed = 0
    for name, (tokens, logprobs) in outcome["reference"].items():
        other_tokens, other_logprobs = outcome[arguments.kernels][name]
        error = max(abs(a - b) for a, b in zip(logprobs, other_logprobs, strict=True))
        same = tokens == other_tokens and error < arguments.tolerance
        failed += not same
        print(f"request {name}: {'ok' if same else 'WRONG'}  {len(tokens)} tokens, log-probability error {error:.1e}")
    print(f"engine check on {environment()['device']}: {len(outcome['reference']) - failed} passed, {failed} failed")
    return 1 if failed else 0


def bench(arguments: argparse.Namespace) -> int:
    """Median decode step at each batch size, without adapters and with one distinct rank-16 adapter per row."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = start(
            folder, arguments.model, arguments.layers, kernels=arguments.kernels, device=arguments.device,
            dtype="bfloat16", max_model_len=4096, max_num_seqs=256, max_step_tokens=8192,
        )  # fmt: skip
        blobs = BlobStore(folder / "adapters")
        for batch in arguments.batches:
            digests = [random_adapter(blobs, built.shape, 16, seed, built.dtype) for seed in range(batch)]
            for label, adapters in (("base", [None] * batch), ("distinct", digests)):
                seconds = decode_seconds(built, adapters, arguments.context)
                rows.append({"batch": batch, "rows": label, "step_ms": seconds * 1e3, "tok_s": batch / seconds})
                print(
                    f"batch {batch:4} {label:9} {seconds * 1e3:8.2f} ms/step {batch / seconds:9.0f} tok/s", flush=True
                )
        built.engine.close()
    RESULTS.mkdir(exist_ok=True)
    slug = environment()["device"].lower().replace(" ", "-")
    path = RESULTS / f"gpu-engine-{slug}.json"
    report = {"environment": environment(), "model": arguments.model, "context": arguments.context, "rows": rows}
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")
    return 0


def decode_seconds(built: BuiltEngine, adapters: list[str | None], context: int, steps: int = 20) -> float:
    """Median seconds of a step in which every row decodes."""
    engine = built.engine
    sampling = SamplingParams(max_tokens=steps + 2 * len(adapters), temperature=0.0, ignore_eos=True)
    for index, digest in enumerate(adapters):
        engine.submit(str(index), [3 + (index + j) % 500 for j in range(context)], sampling, adapter=digest)
    times: list[float] = []
    while len(times) < steps and engine.has_work:
        if not engine.step().ran:
            engine.wait(1.0)
        elif engine.recent_steps[-1].decode_tokens == len(adapters):
            times.append(engine.recent_steps[-1].seconds)
    for index in range(len(adapters)):
        engine.abort(str(index))
    return sorted(times)[len(times) // 2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "bench"])
    parser.add_argument("--model", choices=CONFIGS, default="llama-3.1-8b", help="shape of the random weights")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has (check: 4 unless given)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels", default="triton", choices=["triton", "native", "reference"])
    parser.add_argument("--tokens", type=int, default=32, help="check: tokens per request")
    parser.add_argument("--tolerance", type=float, default=2e-2, help="check: largest log-probability difference")
    parser.add_argument("--context", type=int, default=1024, help="bench: prompt tokens per row")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128], help="bench: rows per step")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device on this machine; see --device and --kernels", file=sys.stderr)
        return 2
    if arguments.command == "check" and arguments.layers is None:
        arguments.layers = 4
    torch.backends.cuda.matmul.allow_tf32 = False
    return check(arguments) if arguments.command == "check" else bench(arguments)


if __name__ == "__main__":
    sys.exit(main())
