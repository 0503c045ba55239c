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


CHOICE, ANSWER = "tickets_choice", "tickets_answer"
Samples = list[dict[str, Any]]


def evaluate(
    kind: str, model: str, tasks: tuple[str, ...], path: str, *options: str, more: str = "seed=1"
) -> list[Samples]:
    """The samples that it logs for each task: what was asked and answered."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            Path(sys.executable).parent / "lm_eval", "run", "--model", kind, "--tasks", ",".join(tasks), *options,
            "--model_args", f"model={model},base_url={URL}{path},num_concurrent=4,max_retries=1,{more}",
            "--include_path", str(TASKS), "--output_path", folder, "--log_samples",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if '"error"' in line]
            raise RuntimeError(told[0] if told else done.stderr[-1800:])
        logged = [Path(folder).rglob(f"samples_{task}_*.jsonl") for task in tasks]
        return [[json.loads(line) for line in path.read_text().splitlines()] for (path,) in logged]


def equals_transformers(model: str, samples: Samples) -> None:
    reference = REFERENCE[model]
    same(len(samples), len(reference))
    for sample in samples:
        found = [float(response[0][0]) for response in sample["resps"]]
        expected = reference[sample["doc"]["prompt"]]
        distance = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        holds(distance <= TOLERANCE, f"{sample['doc']['prompt']!r}: {found} instead of {expected}")


def answers(samples: Samples) -> list[str]:
    return [sample["resps"][0][0].strip() for sample in sorted(samples, key=lambda sample: int(sample["doc_id"]))]


def check(model: str) -> None:
    completions = "local-completions", model
    written = []
    for batch_size in ("1", "6"):
        with feature(f"local-completions, tokens, batches of {batch_size}: loglikelihood, generate_until", model):
            options = "/completions", "--batch_size", batch_size
            choices, generated = evaluate(*completions, (CHOICE, ANSWER), *options, more=TOKENIZED)
            equals_transformers(model, choices)
            written.append(answers(generated))
            same(len(written[-1]), len(REFERENCE[model]))
    with feature("local-completions, text: generate_until", model):
        as_text = f"{TOKENIZED},tokenized_requests=False"
        (generated,) = evaluate(*completions, (ANSWER,), "/completions", "--batch_size", "1", more=as_text)
        same([answers(generated)] * len(written), written)
    with feature("local-chat-completions, generate_until", model):
        path = "/chat/completions"
        (generated,) = evaluate("local-chat-completions", model, (ANSWER,), path, "--apply_chat_template")
        right = sum(sample["exact_match"] for sample in generated)
        holds(all(answers(generated)) and (model != ADAPTER or right > len(generated) / 2), generated)


for name in MODELS:
    check(name)
finish()
