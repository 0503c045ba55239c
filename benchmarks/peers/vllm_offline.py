"""Measure vLLM offline, in one process. Run with the python of the environment that setup.py makes.

The same prompts, lengths and limits as offline_engine.py, which states what each figure is; LLM's engine is stepped
from here so that decode steps can be told from prefill. Needs vLLM alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # no second process between this one and the model
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
MAX_NUM_SEQS = 32


class Peer:
    """A vLLM engine and the LoRA requests that it may be sent."""

    def __init__(self, base: Path, adapters: Sequence[Path], max_model_len: int, eager: bool) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        count = len(adapters)
        lora = {"enable_lora": True, "max_loras": count, "max_lora_rank": 16, "max_cpu_loras": 64} if adapters else {}
        llm = LLM(
            str(base),
            dtype="bfloat16",
            max_model_len=max_model_len,
            max_num_seqs=MAX_NUM_SEQS,
            enable_prefix_caching=False,
            enforce_eager=eager,
            **lora,
        )
        self.engine = llm.llm_engine
        self.adapters = [LoRARequest(path.name, index + 1, str(path)) for index, path in enumerate(adapters)] or [None]
        self._submitted = 0

    def run(self, requests: int, prompt_len: int, output_len: int) -> dict[str, float]:
        """All requests submitted at once, adapters in turn.

        output_tok_s and prompt_tok_s over the whole run; decode_tok_s over the steps that gave every place in flight
        its next token, 0 if there was none.
        """
        from vllm import SamplingParams, TokensPrompt

        rng = random.Random(self._submitted)
        sampling = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        prompts = [[rng.randrange(100, 32_000) for _ in range(prompt_len)] for _ in range(requests)]
        started = time.perf_counter()
        for index, prompt in enumerate(prompts):
            adapter = self.adapters[index % len(self.adapters)]
            tokens = TokensPrompt(prompt_token_ids=prompt)
            self.engine.add_request(str(self._submitted), tokens, sampling, lora_request=adapter)
            self._submitted += 1
        steps = self._drain(min(requests, MAX_NUM_SEQS))
        seconds = time.perf_counter() - started
        rate = min(requests, MAX_NUM_SEQS) / statistics.median(steps) if steps else 0.0
        figures = {"output_tok_s": requests * output_len / seconds, "prompt_tok_s": requests * prompt_len / seconds}
        return figures | {"decode_tok_s": rate}

    def _drain(self, in_flight: int) -> list[float]:
        """Seconds of the steps in which `in_flight` requests decoded and none began."""
        steps = []
        while self.engine.has_unfinished_requests():
            started = time.perf_counter()
            outputs = self.engine.step()
            seconds = time.perf_counter() - started
            began = any(len(output.outputs[0].token_ids) <= 1 for output in outputs)
            if len(outputs) == in_flight and not began:
                steps.append(seconds)
        return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="Hugging Face folder of the base model")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="PEFT folder; none: LoRA off")
    parser.add_argument("--run", action="append", required=True, metavar="NAME:REQUESTS:IN:OUT", help="a measurement")
    parser.add_argument("--repeats", type=int, default=1, help="times that each is run; figures are medians")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--eager", action="store_true", help="do not compile the model: for trying this program out")
    parser.add_argument("--json", type=Path, required=True, help="write the figures here")
    arguments = parser.parse_args()
    peer = Peer(arguments.base, arguments.adapter, arguments.max_model_len, arguments.eager)
    peer.run(MAX_NUM_SEQS, 64, 4)  # warm-up: every adapter loaded, the batch's shapes seen
    figures: dict[str, float] = {}
    for run in arguments.run:
        name, *sizes = run.split(":")
        requests, prompt_len, output_len = map(int, sizes)
        peer.run(min(requests, MAX_NUM_SEQS), prompt_len, min(output_len, 8))  # warm-up: these shapes
        results = [peer.run(requests, prompt_len, output_len) for _ in range(arguments.repeats)]
        for key in results[0]:
            figures[f"{name}.{key}"] = statistics.median(result[key] for result in results)
        print(name, {key: round(figures[f"{name}.{key}"], 1) for key in results[0]}, flush=True)
    arguments.json.write_text(json.dumps({"figures": figures}, indent=1))


if __name__ == "__main__":
    main()
