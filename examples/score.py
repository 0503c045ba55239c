"""The three example tasks: their data, and the rule that tells a right answer from a wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data import house_style, order_json, ticket_router


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str


@dataclass(frozen=True)
class Task:
    """What one adapter learns. `held_out` shares no template with `train`; `is_right(answer, expected)` scores."""

    name: str
    train: Sequence[Example]
    held_out: Sequence[Example]
    is_right: Callable[[str, str], bool]


def is_label(answer: str, expected: str) -> bool:
    return answer.strip() == expected


def is_order(answer: str, expected: str) -> bool:
    """Strict: nothing but the JSON object, with exactly the expected fields, values and types."""
    try:
        return bool(json.dumps(json.loads(answer), sort_keys=True) == json.dumps(json.loads(expected), sort_keys=True))
    except json.JSONDecodeError:
        return False


def is_house_style(answer: str, expected: str) -> bool:
    """One sentence after "Certainly, ", signed, and nothing more. What it says is not scored."""
    answer = answer.strip()
    if not (answer.startswith(house_style.OPENING) and answer.endswith(house_style.SIGNATURE)):
        return False
    sentence = answer.removesuffix(house_style.SIGNATURE).strip()
    return sentence.endswith(".") and "\n" not in sentence and ". " not in sentence and len(sentence.split()) <= 40


def task(name: str) -> Task:
    source, is_right = {
        "ticket-router": (ticket_router, is_label),
        "order-json": (order_json, is_order),
        "house-style": (house_style, is_house_style),
    }[name]
    train = [Example(prompt, answer) for prompt, answer in source.train()]
    held_out = [Example(prompt, answer) for prompt, answer in source.held_out()]
    return Task(name, train, held_out, is_right)
