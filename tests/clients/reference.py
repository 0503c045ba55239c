"""What transformers says about the task of lm_eval_tasks/: log-likelihoods of every choice, for base and adapter.

Run by the runner in the environment of development, in fp32.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

TASK = Path(__file__).parent / "lm_eval_tasks" / "tickets.jsonl"


def loglikelihoods(base: Path, adapter: Path) -> dict[str, dict[str, list[float]]]:
    """By "base" or "adapter", then by prompt: the natural logarithm of each choice's probability behind the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    documents = [json.loads(line) for line in TASK.read_text().splitlines()]

    def all_of(judge: torch.nn.Module) -> dict[str, list[float]]:
        found = {}
        for document in documents:
            prompt = document["prompt"]
            whole = [tokenizer(f"{prompt} {choice}").input_ids for choice in document["choices"]]
            found[prompt] = loglikelihood(judge, len(tokenizer(prompt).input_ids), whole)
        return found

    plain = all_of(model)
    return {"base": plain, "adapter": all_of(PeftModel.from_pretrained(model, adapter).eval())}


@torch.inference_mode()
def loglikelihood(model: torch.nn.Module, prompt_tokens: int, sequences: list[list[int]]) -> list[float]:
    """Of what each sequence has behind the prompt. Padding on the right is never attended to by what counts."""
    longest = max(map(len, sequences))
    logits = model(torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences])).logits
    found = []
    for sequence, row in zip(sequences, logits.log_softmax(-1), strict=True):
        chosen = torch.tensor(sequence[prompt_tokens:]).unsqueeze(1)
        found.append(float(row[prompt_tokens - 1 : len(sequence) - 1].gather(1, chosen).sum()))
    return found
