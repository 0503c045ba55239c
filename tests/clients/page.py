"""docs/clients.md: what is known to work, as users read it. Made of the rows of a run in which everything worked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

_HEAD = """\
# Clients that are known to work

Programs that others wrote, each in an environment of pinned versions, against one live server with a base model and an
adapter: the base URL, the key and the model's name are all that they are told. What they do is checked by what the
answers say, for the base and for the adapter where a model is asked; lm-evaluation-harness gives the log-likelihoods of
transformers to four digits. `make clients` runs all of it, and `make clients ARGS="--write docs/clients.md"` makes this
page.

| Client | Version | What is checked |
|---|---|---|
"""
_NAMES = {
    "anthropic": "Anthropic's Python client, `anthropic`",
    "guidellm": "`guidellm`",
    "instructor": "`instructor`",
    "langchain-openai": "`langchain-openai`",
    "llm": "the command `llm`",
    "lm_eval": "lm-evaluation-harness, `lm_eval`",
    "openai": "OpenAI's Python client, `openai`",
    "openai (npm)": "OpenAI's npm package, `openai`",
    "vllm": "`vllm bench serve`",
}


class Worked(Protocol):
    """A feature of a client that works."""

    @property
    def client(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def feature(self) -> str: ...


def page(rows: Iterable[Worked]) -> str:
    """Clients and their features in the order in which they come, each once."""
    features: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        known = features.setdefault((row.client, row.version), [])
        if row.feature not in known:
            known.append(row.feature)
    lines = [
        f"| {_NAMES[client]} | {version} | {'; '.join(tried)} |\n" for (client, version), tried in features.items()
    ]
    return _HEAD + "".join(lines)
