"""`vllm bench serve`, which sends what vLLM's own server takes: all endpoints, and adapters mixed with the base."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from report import ADAPTER, BASE, MODEL_FOLDER, URL, feature, finish, holds, same

SECONDS = 300
REQUESTS = 8
OUTPUT_TOKENS = 8


def bench(backend: str, model: str, *options: str) -> None:
    """No request may fail, and each has the tokens that were asked for."""
    output_tokens = 0 if backend == "openai-embeddings" else REQUESTS * OUTPUT_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        command = [
            Path(sys.executable).parent / "vllm", "bench", "serve",
            "--backend", backend, "--base-url", URL.removesuffix("/v1"), "--model", model,
            "--tokenizer", MODEL_FOLDER,
            "--dataset-name", "random", "--random-input-len", "32", "--random-output-len", str(OUTPUT_TOKENS),
            "--num-prompts", str(REQUESTS), "--seed", "1", *(["--ignore-eos"] if output_tokens else []),
            "--save-result", "--result-dir", folder, *options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-1800:])
        (result,) = (json.loads(path.read_text()) for path in Path(folder).glob("*.json"))
        # the errors of requests are an HTTP status without its body, and not always shown
        holds(result["completed"] == REQUESTS, (done.stdout + done.stderr)[-1800:])
        same(result.get("total_output_tokens", 0), output_tokens)  # of embeddings there is no word of them


for name in (BASE, ADAPTER):
    with feature("benchmark of /v1/completions", name):
        bench("openai", name)
    with feature("benchmark of /v1/chat/completions", name):
        bench("openai-chat", name, "--endpoint", "/v1/chat/completions")
    with feature("benchmark of /v1/embeddings", name):
        bench("openai-embeddings", name, "--endpoint", "/v1/embeddings")
with feature("completions, adapters assigned in turn", ADAPTER):
    bench("openai", BASE, "--lora-modules", ADAPTER, BASE, "--lora-assignment", "round-robin")
with feature("log-probabilities and sampling options", BASE):
    filters = "--temperature", "0.8", "--top-p", "0.9", "--top-k", "5", "--min-p", "0.01"
    penalties = "--frequency-penalty", "0.1", "--presence-penalty", "0.1", "--repetition-penalty", "1.1"
    bench("openai", BASE, "--logprobs", "2", *filters, *penalties)
finish()
