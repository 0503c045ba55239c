"""`make_adapters.py BASE FOLDER`: PEFT adapters with random weights, B included: for speed and parity, not for answers.

r16_0 ... r16_31, r8_0 and r64_0 touch all seven linear modules of a layer, qv8 the query and the value.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STANDARD_DEVIATION = 0.02


def main(base: Path, folder: Path) -> None:
    wanted = {f"r16_{number}": (16, ALL_MODULES) for number in range(32)}
    wanted |= {"r8_0": (8, ALL_MODULES), "r64_0": (64, ALL_MODULES), "qv8": (8, ("q_proj", "v_proj"))}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    for seed, (name, (rank, modules)) in enumerate(wanted.items()):
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(modules), task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        randomise(adapted, seed)
        adapted.save_pretrained(folder / name)
        model = adapted.unload()


def randomise(adapted: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            weight.data.normal_(0, STANDARD_DEVIATION, generator=generator)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
