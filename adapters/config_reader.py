"""Fields out of a stranger's adapter_config.json: the value, its default, or a note of what is wrong with it.

Knows JSON values; knows no method and no tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from loraplex.adapters.untrusted_json import CheckFailure, shown

_LITERAL_PATTERN = re.compile(r"(\^?)((?:\w|\.|\\\.)+)\$?", re.ASCII)
_Value = TypeVar("_Value")


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
        found = [self._ends.get(end) for end in ends_of(module)] + [self._whole.get(module)]
        return min((entry for entry in found if entry), default=(0, default), key=lambda entry: entry[0])[1]


class ConfigReader:
    """Every field is read with PEFT's default; `failures` collects what cannot be accepted."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.failures: list[CheckFailure] = []

    def take(
        self, key: str, default: _Value, accepts: Callable[[Any], bool], expected: str, code: str = "wrong_type"
    ) -> _Value:
        value = self.config.get(key)
        if value is None:
            return default
        if not accepts(value):
            self.refuse(code, key, "correct the value", expected, value)
            return default
        taken: _Value = value
        return taken

    def rank(self, key: str, default: int) -> int:
        return self.take(key, default, is_rank, "a whole number from 1", "rank_invalid")

    def number(self, key: str, default: float) -> float:
        return self.take(key, default, is_number, "a finite number", "alpha_invalid")

    def flag(self, key: str) -> bool:
        return self.take(key, False, lambda value: isinstance(value, bool), "true or false")

    def names(self, key: str) -> tuple[str, ...]:
        return tuple(self.take(key, (), lambda value: is_list_of(value, is_text), "a list of names"))

    def patterns(self, field: str, accepts: Callable[[Any], bool], expected: str) -> PatternTable:
        patterns = self.config.get(field)
        if patterns is None:
            return PatternTable({})
        if not isinstance(patterns, dict):
            self.refuse("wrong_type", field, "correct the value", "an object", patterns)
            return PatternTable({})
        sound = {}
        for key, value in patterns.items():
            where = f"{field}.{shown(key)}"
            is_literal = _LITERAL_PATTERN.fullmatch(key)
            if not is_literal:
                remedy = "regular expressions are not run; list the modules by name, such as layers.0.self_attn.q_proj"
                self.refuse("pattern_not_literal", where, remedy, "a module's name or its end", key)
            if not accepts(value):
                self.refuse("pattern_value_invalid", where, "correct the value", expected, value)
            elif is_literal:
                sound[key] = value
        return PatternTable(sound)

    def rank_patterns(self) -> PatternTable:
        return self.patterns("rank_pattern", is_rank, "a whole number from 1")

    def alpha_patterns(self) -> PatternTable:
        return self.patterns("alpha_pattern", is_number, "a finite number")

    def refuse(self, code: str, field: str, remedy: str, expected: str, got: object) -> None:
        message = f"adapter_config.json: {field}: {remedy} (expected {expected}, got {shown(got)})"
        self.failures.append(CheckFailure(code, field, message, expected, shown(got)))


def ends_of(module: str) -> list[str]:
    """a.b.c -> a.b.c, b.c, c"""
    parts = module.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_list_of(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(accepts, value))
