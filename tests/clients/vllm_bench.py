"""`vllm bench serve`, which sends what vLLM's own server takes: both endpoints, and adapters mixed with the base."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from report import ADAPTER, BASE, MODEL_FOLDER, URL, Refused, feature, finish, same

SECONDS = 300
REQUESTS = 8
OUTPUT_TOKENS = 8


def bench(*options: str, output_tokens: int = REQUESTS * OUTPUT_TOKENS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            Path(sys.executable).parent / "vllm", "bench", "serve",
            "--base-url", URL.removesuffix("/v1"),
            "--tokenizer", MODEL_FOLDER,
            "--dataset-name", "random", "--random-input-len", "32", "--random-output-len", str(OUTPUT_TOKENS),
            "--num-prompts", str(REQUESTS), "--ignore-eos", "--seed", "1",
            "--save-result", "--result-dir", folder, *options,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-1800:])
        (result,) = (json.loads(path.read_text()) for path in Path(folder).glob("*.json"))
        if not result["completed"]:  # its errors are an HTTP status without its body, and not always shown
            raise Refused((done.stdout + done.stderr)[-1800:])
        same(result["completed"], REQUESTS)
        same(result["total_output_tokens"], output_tokens)


for model in (BASE, ADAPTER):
    with feature("benchmark of /v1/completions", model):
        bench("--backend", "openai", "--model", model)
    with feature("benchmark of /v1/chat/completions", model):
        bench("--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--model", model)
with feature("completions, adapters assigned in turn", ADAPTER):
    bench("--backend", "openai", "--model", BASE, "--lora-modules", ADAPTER, BASE, "--lora-assignment", "round-robin")
with feature("log-probabilities and sampling options", BASE, needs="logprobs"):
    bench("--backend", "openai", "--model", BASE, "--logprobs", "2", "--top-k", "5", "--frequency-penalty", "0.1")
with feature("benchmark of /v1/embeddings", BASE, needs="embeddings"):
    bench("--backend", "openai-embeddings", "--endpoint", "/v1/embeddings", "--model", BASE, output_tokens=0)
finish()
