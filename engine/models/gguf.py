"""Turn a GGUF file into a Hugging Face folder: bf16 safetensors, tokenizer, chat template, generation settings.

Transformers does the reading. What it leaves out of a GGUF is mended here, from the file's own metadata.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# How a tokenizer splits text before BPE: GGUF holds a name for it, Transformers assumes GPT-2's way for every file.
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}
_SPECIAL_TOKENS = {"bos_token_id": "tokenizer.ggml.bos_token_id", "pad_token_id": "tokenizer.ggml.padding_token_id"}
_END_TOKENS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def convert(gguf_file: Path, folder: Path) -> None:
    """Write the model into `folder`, which exists. Raises what Transformers raises for a file it cannot read."""
    with _quiet():
        metadata = _read_metadata(gguf_file)
        _save_model(gguf_file, folder)
        _save_tokenizer(gguf_file, folder)
    _mend_tokenizer(folder, metadata)
    _mend_configs(folder, metadata)


def _save_model(gguf_file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(gguf_file.parent),
        gguf_file=gguf_file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)


def _save_tokenizer(gguf_file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(str(gguf_file.parent), gguf_file=gguf_file.name).save_pretrained(folder)


def _read_metadata(gguf_file: Path) -> dict[str, Any]:
    """The scalar fields of the file's header."""
    from gguf import GGUFReader

    fields = GGUFReader(str(gguf_file)).fields
    return {name: field.contents() for name, field in fields.items() if len(field.types) == 1}


def _mend_tokenizer(folder: Path, metadata: dict[str, Any]) -> None:
    pre_tokenizer = _PRE_TOKENIZERS.get(str(metadata.get("tokenizer.ggml.pre")))
    if pre_tokenizer is not None:
        _update(folder / "tokenizer.json", {"pre_tokenizer": pre_tokenizer})
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    context_length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if context_length is not None:
        settings["model_max_length"] = int(context_length)
    _update(folder / "tokenizer_config.json", settings, drop=("is_local", "local_files_only", "backend"))


def _mend_configs(folder: Path, metadata: dict[str, Any]) -> None:
    """Every end-of-text and end-of-turn token that the file names must stop generation."""
    end_ids = list(dict.fromkeys(int(metadata[key]) for key in _END_TOKENS if key in metadata))
    settings: dict[str, Any] = {}
    if end_ids:
        settings["eos_token_id"] = end_ids[0] if len(end_ids) == 1 else end_ids
    settings |= {name: int(metadata[key]) for name, key in _SPECIAL_TOKENS.items() if key in metadata}
    _update(folder / "config.json", settings, drop=("_model_name_or_path",))
    (folder / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _update(path: Path, changes: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    for key in drop:
        content.pop(key, None)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Third parties' progress bars and warnings do not mix with ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
