"""PEFT's adapter_config.json: what Loraplex serves of it, and a refusal with a remedy for the rest.

Knows the fields that all methods share and PEFT's meaning of them; `peft_methods` has the methods, and no tensor is
known here. Nothing in the file is ever run, as a regular expression or otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraplex.adapters.config_reader import ConfigReader, ends_of, is_list_of, is_text
from loraplex.adapters.peft_method import Method
from loraplex.adapters.peft_methods import METHODS
from loraplex.adapters.peft_refusals import FIELDS
from loraplex.adapters.peft_refusals import METHODS as REFUSED_METHODS
from loraplex.adapters.types import EMBEDDING, HEAD
from loraplex.adapters.untrusted_json import CheckFailure, shown

MAX_INVOCATION_TOKENS = 256
MAX_TOKEN_ROWS = 16_384

_BIASED_METHODS = ("LORA", "ADALORA", "VERA", "MISS")
"""Those of the methods that are served whose configuration has a `bias` in PEFT; of others it is no field."""

_VOCABULARY_NAMES = {"embed_tokens": EMBEDDING, EMBEDDING: EMBEDDING, HEAD: HEAD}


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The part of the file that says what is computed.

    targets             None where the file gives a regular expression
    trains_biases       the base's biases are in the file: `targets`, of the modules that have an adapter; `all`
    saved_modules       of EMBEDDING and HEAD those whose matrix is in the file as the adapter's own
    ties_weights        what is the head's in the file, is there because it is the embedding's
    token_rows          of EMBEDDING and HEAD -> tokens whose rows are in the file
    """

    method: Method
    targets: frozenset[str] | None
    trains_biases: str | None
    saved_modules: frozenset[str]
    ties_weights: bool
    token_rows: Mapping[str, tuple[int, ...]]
    invocation_tokens: tuple[int, ...]

    def is_target(self, module: str) -> bool:
        """As PEFT decides it: a target is a module's name or a dotted end of it."""
        return (
            self.targets is None
            or not self.targets.isdisjoint(ends_of(module))
            or (self.ties_weights and module == HEAD)
        )


def read_config(config: Mapping[str, Any], max_rank: int) -> tuple[PeftConfig | None, list[CheckFailure]]:
    """The meaning of a parsed adapter_config.json, or None and every reason why it cannot be served.

    Fields that are absent have PEFT's defaults; fields that only steer training, and unknown ones, are ignored.
    """
    reader = ConfigReader(config)
    method_type = _method(reader)
    _refuse_fields(reader)
    if method_type is None:
        return None, reader.failures
    method = method_type.read(reader)
    _limit_ranks(reader, max_rank)
    targets = config.get("target_modules")
    read = PeftConfig(
        method=method,
        targets=frozenset(filter(is_text, targets)) if isinstance(targets, list) else None,
        trains_biases=_biases(reader),
        saved_modules=_saved_modules(reader),
        ties_weights=reader.flag("ensure_weight_tying"),
        token_rows=_token_rows(reader),
        invocation_tokens=_invocation_tokens(reader),
    )
    _refuse_conflicts(reader, read)
    return (None, reader.failures) if reader.failures else (read, [])


def _method(reader: ConfigReader) -> type[Method] | None:
    name = reader.config.get("peft_type")
    if not isinstance(name, str) or name not in METHODS:
        served = f"one of {', '.join(METHODS)}"
        why, way_out = REFUSED_METHODS.get(str(name), ("it is no method that is known here", "train a LoRA"))
        reader.refuse("method_unsupported", "peft_type", f"{why}; {way_out}", served, name)
        return None
    if reader.config.get("task_type") not in (None, "CAUSAL_LM"):
        task = reader.config["task_type"]
        reader.refuse("wrong_task", "task_type", "train with task_type CAUSAL_LM", "CAUSAL_LM", task)
    return METHODS[name]


def _refuse_fields(reader: ConfigReader) -> None:
    for key, (code, why) in FIELDS.items():
        value = reader.config.get(key)
        if value is not None and value is not False and value != []:
            reader.refuse(code, key, f"{why}; train with {key} off (its default)", "off", value)


def _limit_ranks(reader: ConfigReader, max_rank: int) -> None:
    """Those that the file gives. What a method makes of them is checked module by module."""
    patterns = reader.config.get("rank_pattern")
    ranks: dict[str, Any] = {"r": reader.config.get("r"), "init_r": reader.config.get("init_r")}
    if isinstance(patterns, dict):
        ranks |= {f"rank_pattern.{shown(key)}": rank for key, rank in patterns.items()}
    for where, rank in ranks.items():
        if type(rank) is int and rank > max_rank:
            reader.refuse("rank_too_large", where, "train with a smaller rank", f"at most {max_rank}", rank)


def _biases(reader: ConfigReader) -> str | None:
    value = reader.take("bias", "none", is_text, "text")
    if value == "none" or reader.config.get("peft_type") not in _BIASED_METHODS:
        return None
    if value != "all" and not value.endswith("_only"):
        reader.refuse("bias_unsupported", "bias", "PEFT has no such value", "none, all or lora_only", value)
    return "all" if value == "all" else "targets"


def _saved_modules(reader: ConfigReader) -> frozenset[str]:
    names = reader.names("modules_to_save")
    for name in names:
        if name not in _VOCABULARY_NAMES:
            remedy = "only the embedding and the head can be an adapter's own; train it without, or as a LoRA target"
            expected = ", ".join(_VOCABULARY_NAMES)
            reader.refuse("modules_to_save_unsupported", "modules_to_save", remedy, expected, name)
    return frozenset(_VOCABULARY_NAMES.get(name, name) for name in names)


def _token_rows(reader: ConfigReader) -> dict[str, tuple[int, ...]]:
    """PEFT takes a list, for the embedding, or lists by module; TRAINABLE_TOKENS has them in another field."""
    key, modules = "trainable_token_indices", ["embed_tokens"]
    if reader.config.get("peft_type") == "TRAINABLE_TOKENS":
        key, named = "token_indices", reader.config.get("target_modules") or modules
        modules = [named] if isinstance(named, str) else list(filter(is_text, named)) if isinstance(named, list) else []
    value = reader.config.get(key)
    if value is None or value == []:
        return {}
    by_module = value if isinstance(value, dict) else dict.fromkeys(modules, value)
    rows = {}
    for name, tokens in by_module.items():
        if name not in _VOCABULARY_NAMES:
            expected = ", ".join(_VOCABULARY_NAMES)
            reader.refuse("trainable_tokens_unsupported", key, "correct the module's name", expected, name)
        elif not _are_tokens(tokens, MAX_TOKEN_ROWS) or len(set(tokens)) != len(tokens):
            expected = f"1 to {MAX_TOKEN_ROWS} different whole numbers from 0"
            reader.refuse("token_indices_invalid", key, "correct the list", expected, tokens)
        else:
            rows[_VOCABULARY_NAMES[name]] = tuple(tokens)
    return rows


def _invocation_tokens(reader: ConfigReader) -> tuple[int, ...]:
    tokens = reader.config.get("alora_invocation_tokens")
    if tokens is None or tokens == []:
        return ()
    if not _are_tokens(tokens, MAX_INVOCATION_TOKENS):
        expected = f"1 to {MAX_INVOCATION_TOKENS} whole numbers from 0"
        reader.refuse("invocation_tokens_invalid", "alora_invocation_tokens", "correct the list", expected, tokens)
        return ()
    return tuple(tokens)


def _are_tokens(value: Any, most: int) -> bool:
    return is_list_of(value, lambda token: type(token) is int and token >= 0) and 1 <= len(value) <= most


def _refuse_conflicts(reader: ConfigReader, read: PeftConfig) -> None:
    for module in sorted(read.saved_modules & read.token_rows.keys()):
        remedy = f"{module} is in modules_to_save, which trains all of its rows; choose one"
        reader.refuse("embedding_twice", "trainable_token_indices", remedy, "another module", module)
    if read.invocation_tokens and (read.saved_modules or read.token_rows or read.trains_biases):
        remedy = "before its invocation an aLoRA must leave the base as it is; train it without this"
        reader.refuse("alora_combined", "alora_invocation_tokens", remedy, "LoRA of linear modules alone", "more")
