"""lm-evaluation-harness: log-likelihoods equal to transformers', and answers generated on both endpoints.

The tasks are in lm_eval_tasks/, relative to the root of the repository, where this runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import ADAPTER, MODEL_FOLDER, MODELS, URL, feature, finish, holds, same

TASKS = Path(__file__).parent / "lm_eval_tasks"
REFERENCE: dict[str, dict[str, list[float]]] = json.loads(Path(os.environ["LOGLIKELIHOODS"]).read_text())
"""By model and prompt: what transformers gives each choice."""

TOLERANCE = 5e-5
"""Four digits."""

SECONDS = 300
TOKENIZED = f"tokenizer={MODEL_FOLDER},tokenizer_backend=huggingface"


def evaluate(kind: str, model: str, task: str, path: str, *options: str, more: str = "seed=1") -> list[dict[str, Any]]:
    """The samples that it logs: what was asked and answered."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            Path(sys.executable).parent / "lm_eval", "run", "--model", kind, "--tasks", task, *options,
            "--model_args", f"model={model},base_url={URL}{path},num_concurrent=4,max_retries=1,{more}",
            "--include_path", str(TASKS), "--output_path", folder, "--log_samples",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if '"error"' in line]
            raise RuntimeError(told[0] if told else done.stderr[-1800:])
        (samples,) = Path(folder).rglob(f"samples_{task}_*.jsonl")
        return [json.loads(line) for line in samples.read_text().splitlines()]


def loglikelihood_equals_transformers(model: str, batch_size: str) -> None:
    options = "--batch_size", batch_size
    samples = evaluate("local-completions", model, "tickets_choice", "/completions", *options, more=TOKENIZED)
    reference = REFERENCE[model]
    same(len(samples), len(reference))
    for sample in samples:
        found = [float(response[0][0]) for response in sample["resps"]]
        expected = reference[sample["doc"]["prompt"]]
        distance = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        holds(distance <= TOLERANCE, f"{sample['doc']['prompt']!r}: {found} instead of {expected}")


def answers(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["resps"][0][0].strip() for sample in samples]


def check(model: str) -> None:
    for batch_size in ("1", "6"):
        with feature(f"local-completions, loglikelihood, batches of {batch_size}", model, needs="logprobs"):
            loglikelihood_equals_transformers(model, batch_size)
    for batch_size, more, needs in (
        ("1", f"{TOKENIZED},tokenized_requests=False", ""),
        ("1", TOKENIZED, "n"),
        ("6", TOKENIZED, "n"),
    ):
        kind = "text" if "tokenized_requests" in more else "tokens"
        with feature(f"local-completions, generate_until, {kind}, batches of {batch_size}", model, needs=needs):
            options = "--batch_size", batch_size
            samples = evaluate("local-completions", model, "tickets_answer", "/completions", *options, more=more)
            same(len(answers(samples)), len(REFERENCE[model]))
    with feature("local-chat-completions, generate_until", model):
        path = "/chat/completions"
        samples = evaluate("local-chat-completions", model, "tickets_answer", path, "--apply_chat_template")
        texts = answers(samples)
        holds(all(texts) and (model != ADAPTER or len(set(texts)) > 1), texts)


for name in MODELS:
    check(name)
finish()
