"""Measure Transformers with PEFT: one `generate` over a batch whose rows use different adapters.

Run with the python of the environment that setup.py makes. Same prompts, lengths and JSON as vllm_offline.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


class Peer:
    """A model with its adapters. `names` are asked for in turn; none: the base."""

    def __init__(self, base: Path, adapters: list[Path]) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
        self.names = [path.name for path in adapters]
        for index, path in enumerate(adapters):
            if index == 0:
                self.model = PeftModel.from_pretrained(self.model, path, adapter_name=path.name).eval()
            else:
                self.model.load_adapter(path, adapter_name=path.name)

    @torch.inference_mode()
    def run(self, requests: int, prompt_len: int, output_len: int) -> dict[str, float]:
        """output_tok_s over the whole run."""
        rng = random.Random(requests)
        prompts = [[rng.randrange(100, 32_000) for _ in range(prompt_len)] for _ in range(requests)]
        ids = torch.tensor(prompts)
        rows = {"adapter_names": [self.names[i % len(self.names)] for i in range(requests)]} if self.names else {}
        length = {"max_new_tokens": output_len, "min_new_tokens": output_len, "do_sample": False}
        started = time.perf_counter()
        answers = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **length, **rows)
        seconds = time.perf_counter() - started
        return {"output_tok_s": requests * (answers.shape[1] - prompt_len) / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face folder of the base model")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="PEFT folder; none: base only")
    parser.add_argument("--run", action="append", required=True, metavar="NAME:REQUESTS:IN:OUT", help="a measurement")
    parser.add_argument("--repeats", type=int, default=1, help="times that each is run; figures are medians")
    parser.add_argument("--json", type=Path, required=True, help="write the figures here")
    arguments = parser.parse_args()
    peer = Peer(arguments.base, arguments.adapter)
    figures: dict[str, float] = {}
    for run in arguments.run:
        name, *sizes = run.split(":")
        requests, prompt_len, output_len = map(int, sizes)
        peer.run(requests, prompt_len, 2)  # warm-up
        rates = [peer.run(requests, prompt_len, output_len)["output_tok_s"] for _ in range(arguments.repeats)]
        figures[f"{name}.output_tok_s"] = statistics.median(rates)
        print(name, round(figures[f"{name}.output_tok_s"], 1), flush=True)
    arguments.json.write_text(json.dumps({"figures": figures}, indent=1))


if __name__ == "__main__":
    main()
