"""What a client's script tells the runner: one line of JSON for each feature that it tried, on standard output.

Runs in the environments of all clients, so it knows the standard library alone. A script ends with `finish()`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

URL = os.environ["OPENAI_BASE_URL"]
KEY = os.environ["OPENAI_API_KEY"]
BASE = os.environ["BASE_MODEL"]
ADAPTER = os.environ["ADAPTER_MODEL"]
SPARE = os.environ["SPARE_MODEL"]
"""Another adapter, to be deleted."""
MODELS = (BASE, ADAPTER)
MODEL_FOLDER = os.environ["MODEL_FOLDER"]
"""Where the base model's tokenizer is: some clients count tokens themselves."""

DESKS = ("billing", "delivery", "returns", "account", "technical", "sales")
"""What the adapter answers a ticket with."""
TICKET = "I was charged twice for the tent I bought on Monday."
DESK = "billing"

DETAIL_CHARS = 2000

_defects: list[str] = []


@contextmanager
def feature(name: str, model: str = "") -> Iterator[None]:
    """One row of the table."""
    outcome, detail = "ok", ""
    try:
        yield
    except Exception as error:  # whatever a client does with an answer that it cannot read
        detail = f"{type(error).__name__}: {error} {getattr(error, 'code', None) or ''}".strip()
        outcome = "defect"
        _defects.append(name)
    row = {"feature": name, "model": model, "outcome": outcome, "detail": detail[-DETAIL_CHARS:]}
    print(json.dumps(row), flush=True)


def same(found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{found!r} instead of {expected!r}")


def holds(condition: object, otherwise: object) -> None:
    if not condition:
        raise AssertionError(f"not so: {otherwise!r}")


def finish() -> None:
    sys.exit(1 if _defects else 0)
