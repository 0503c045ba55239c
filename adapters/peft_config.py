"""PEFT's adapter_config.json: what Loraplex serves of it, and a refusal with a remedy for the rest.

Knows the file's fields and PEFT's meaning of them; knows no tensor. Nothing in the file is ever run, as a regular
expression or otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loraplex.adapters.untrusted_json import CheckFailure, shown

_PLAIN_LORA = "train a plain LoRA, or merge the adapter into its base and extract a plain LoRA from the difference"
_RETRAIN_OFF = "train with {key} off (its default)"

_UNSUPPORTED = {
    "use_dora": ("dora_unsupported", "DoRA rescales the base weights"),
    "lora_bias": ("lora_bias_unsupported", "the bias of lora_B is not served"),
    "fan_in_fan_out": ("fan_in_fan_out_unsupported", "all served modules are nn.Linear"),
    "modules_to_save": ("modules_to_save_unsupported", "whole modules of the base cannot be replaced per adapter"),
    "layer_replication": ("layer_replication_unsupported", "it changes the layers of the base"),
    "trainable_token_indices": ("trainable_tokens_unsupported", "it changes the embedding of the base"),
    "target_parameters": ("target_parameters_unsupported", "only nn.Linear modules take LoRA"),
    "alora_invocation_tokens": ("alora_unsupported", "an adapter is active for a whole request"),
    "use_qalora": ("qalora_unsupported", "QALoRA pools the inputs of a quantised base"),
    "use_bdlora": ("bdlora_unsupported", "block-diagonal factors are not served"),
    "arrow_config": ("arrow_unsupported", "Arrow routes between several adapters"),
    "kasa_config": ("kasa_unsupported", "KaSA changes the base weights"),
    "monteclora_config": ("monteclora_unsupported", "its factors are drawn at random"),
    "velora_config": ("velora_unsupported", "its extra tensors are not served"),
}
"""PEFT fields that change what is computed: field -> (code, why)."""

_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "true", "false"}
_BASE_CHANGING_INITS = {"pissa", "olora", "corda", "loftq", "lora_ga"}
_LITERAL_PATTERN = re.compile(r"(\^?)((?:\w|\.|\\\.)+)\$?", re.ASCII)


class PatternTable:
    """rank_pattern or alpha_pattern, with PEFT's rule: the first key that equals a module's name or a dotted end of it.

    `^` before a key stands for the whole name. Look-ups take time with the dots in the name, not with the keys.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._ends: dict[str, tuple[int, Any]] = {}
        self._whole: dict[str, tuple[int, Any]] = {}
        for order, (key, value) in enumerate(values.items()):
            match = _LITERAL_PATTERN.fullmatch(key)
            assert match, "keys are checked before"
            keys = self._whole if match[1] else self._ends
            keys.setdefault(match[2].replace("\\", ""), (order, value))

    def get(self, module: str, default: Any) -> Any:
        parts = module.split(".")
        found = [self._ends.get(".".join(parts[i:])) for i in range(len(parts))] + [self._whole.get(module)]
        return min((entry for entry in found if entry), default=(0, default), key=lambda entry: entry[0])[1]


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The part of the file that says what is computed. `targets`: None where the file gives a regular expression."""

    rank: int
    alpha: float
    use_rslora: bool
    ranks: PatternTable
    alphas: PatternTable
    targets: frozenset[str] | None

    def rank_of(self, module: str) -> int:
        return int(self.ranks.get(module, self.rank))

    def scaling_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return float(self.alphas.get(module, self.alpha)) / (math.sqrt(rank) if self.use_rslora else rank)

    def is_target(self, module: str) -> bool:
        """As PEFT decides it: a target is a module's name or a dotted end of it."""
        parts = module.split(".")
        return self.targets is None or any(".".join(parts[i:]) in self.targets for i in range(len(parts)))


def read_config(config: Mapping[str, Any], max_rank: int) -> tuple[PeftConfig | None, list[CheckFailure]]:
    """The meaning of a parsed adapter_config.json, or None and every reason why it cannot be served.

    Fields that are absent have PEFT's defaults; fields that only steer training, and unknown ones, are ignored.
    """
    failures = [*_check_method(config), *_check_unsupported(config), *_check_init(config)]
    failures += _check_value(config, "r", lambda value: _is_rank(value), "a whole number from 1", "rank_invalid")
    failures += _check_value(config, "lora_alpha", _is_number, "a finite number", "alpha_invalid")
    failures += _check_value(config, "use_rslora", lambda value: isinstance(value, bool), "true or false", "wrong_type")
    failures += _check_pattern(config, "rank_pattern", _is_rank, "a whole number from 1")
    failures += _check_pattern(config, "alpha_pattern", _is_number, "a finite number")
    failures += _check_rank_limit(config, max_rank)
    if failures:
        return None, failures
    targets = config.get("target_modules")
    return PeftConfig(
        rank=_or_default(config, "r", 8),
        alpha=_or_default(config, "lora_alpha", 8),
        use_rslora=_or_default(config, "use_rslora", False),
        ranks=PatternTable(config.get("rank_pattern") or {}),
        alphas=PatternTable(config.get("alpha_pattern") or {}),
        targets=frozenset(filter(_is_text, targets)) if isinstance(targets, list) else None,
    ), []


def _or_default(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def _check_method(config: Mapping[str, Any]) -> list[CheckFailure]:
    failures = []
    if config.get("peft_type") != "LORA":
        failures.append(_failure("not_lora", "peft_type", _PLAIN_LORA, "LORA", config.get("peft_type")))
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        remedy = "train with task_type CAUSAL_LM"
        failures.append(_failure("wrong_task", "task_type", remedy, "CAUSAL_LM", config["task_type"]))
    if config.get("bias") not in (None, "none"):
        remedy = "train with bias='none'"
        failures.append(_failure("bias_unsupported", "bias", remedy, "none", config["bias"]))
    return failures


def _check_unsupported(config: Mapping[str, Any]) -> list[CheckFailure]:
    return [
        _failure(code, key, f"{why}; {_RETRAIN_OFF.format(key=key)}", "off", config[key])
        for key, (code, why) in _UNSUPPORTED.items()
        if config.get(key) is not None and config[key] is not False and config[key] != []
    ]


def _check_init(config: Mapping[str, Any]) -> list[CheckFailure]:
    value = _or_default(config, "init_lora_weights", True)
    name = str(value).lower() if isinstance(value, (str, bool)) else ""
    if name in _PLAIN_INITS:
        return []
    for method in sorted(_BASE_CHANGING_INITS):
        if name == method or name.startswith(f"{method}_niter_"):
            remedy = (
                f"{method} changes the base weights; save with "
                "path_initial_model_for_weight_conversion, which turns the adapter into a plain LoRA"
            )
            return [_failure(f"{method}_unsupported", "init_lora_weights", remedy, "a plain LoRA", value)]
    expected = ", ".join(sorted(_PLAIN_INITS))
    return [_failure("unknown_init", "init_lora_weights", _PLAIN_LORA, expected, value)]


def _check_value(
    config: Mapping[str, Any], key: str, accepts: Callable[[Any], bool], expected: str, code: str
) -> list[CheckFailure]:
    value = config.get(key)
    if value is None or accepts(value):
        return []
    return [_failure(code, key, "correct the value", expected, value)]


def _check_pattern(
    config: Mapping[str, Any], field: str, accepts: Callable[[Any], bool], expected: str
) -> list[CheckFailure]:
    patterns = config.get(field)
    if patterns is None:
        return []
    if not isinstance(patterns, dict):
        return [_failure("wrong_type", field, "correct the value", "an object", patterns)]
    failures = []
    for key, value in patterns.items():
        where = f"{field}.{shown(key)}"
        if not _LITERAL_PATTERN.fullmatch(key):
            remedy = "regular expressions are not run; list the modules by name, such as layers.0.self_attn.q_proj"
            failures.append(_failure("pattern_not_literal", where, remedy, "a module's name or its end", key))
        if not accepts(value):
            failures.append(_failure("pattern_value_invalid", where, "correct the value", expected, value))
    return failures


def _check_rank_limit(config: Mapping[str, Any], max_rank: int) -> list[CheckFailure]:
    patterns = config.get("rank_pattern")
    ranks: dict[str, Any] = {"r": config.get("r")}
    if isinstance(patterns, dict):
        ranks |= {f"rank_pattern.{shown(key)}": rank for key, rank in patterns.items()}
    return [
        _failure("rank_too_large", where, "train with a smaller rank", f"at most {max_rank}", rank)
        for where, rank in ranks.items()
        if _is_rank(rank) and rank > max_rank
    ]


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _failure(code: str, field: str, remedy: str, expected: str, got: object) -> CheckFailure:
    message = f"adapter_config.json: {field}: {remedy} (expected {expected}, got {shown(got)})"
    return CheckFailure(code, field, message, expected, shown(got))
