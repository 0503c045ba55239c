"""Grammars that text has to follow, compiled against a tokenizer by llguidance, within bounds.

Knows the base's tokenizer file. Knows no tensors, no sequences and no requests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from loraplex.engine.events import Grammar

LIMITS = LLParserLimits(
    max_items_in_row=400,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    verbose_errors=False,
)
"""Keeps a step of the worst grammars at tens of milliseconds, where llguidance's own limits allow seconds for grammars
that are ambiguous everywhere, and what a matcher remembers at tens of megabytes."""

WHITESPACE = r" {1,2}|\r?\n[ \t]{0,48}"
"""Between the tokens of JSON, if any: a space or two, or a line break with an indentation. No model goes on with it for
ever, as small ones do where all whitespace is allowed."""


_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


class GrammarError(ValueError):
    """A grammar is wrong, takes too much, or allows no text. The message is for whoever wrote it."""


def load_tokenizer(path: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """The base's tokenizer, as matchers need it. eos_token_ids: any of them ends a text that is complete."""
    return LLTokenizer(str(path), n_vocab=vocab_size, eos_token=list(eos_token_ids) or None)


def as_lark(source: str) -> str:
    """A grammar in Lark's notation, from that or from the GBNF of llama.cpp. Raises GrammarError."""
    if not _GBNF_RULE.search(source):
        return source
    try:
        return any_to_lark(source)
    except Exception as error:  # it raises whatever its parser comes upon
        raise GrammarError(f"it is not valid GBNF: {error}") from error


def compile_grammar(tokenizer: LLTokenizer, grammar: Grammar) -> LLMatcher:
    """A matcher at the beginning of a text. Raises GrammarError. Without the GIL while it compiles."""
    try:
        matcher = LLMatcher(tokenizer, _definition(grammar), limits=LIMITS, log_level=0)
    except ValueError as error:
        raise GrammarError(_readable(str(error))) from error
    if matcher.is_error():
        raise GrammarError(_readable(matcher.get_error()))
    return matcher


def check_satisfiable(matcher: LLMatcher) -> None:
    """Raises GrammarError where no text can begin, which a compilation does not show."""
    mask = matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError("no text satisfies it, or finding its first token takes too much")
    if not any(mask):
        raise GrammarError("no text satisfies it")


def _definition(grammar: Grammar) -> str:
    if grammar.otherwise is None:
        return json.dumps({"grammars": [_part(grammar)]})
    ways = [_part(grammar) | {"name": "one"}, _part(grammar.otherwise) | {"name": "other"}]
    return json.dumps({"grammars": [{"lark_grammar": "start: @one | @other"}, *ways]})


def _part(grammar: Grammar) -> dict[str, Any]:
    """In llguidance's own notation."""
    if grammar.kind == "lark":
        return {"lark_grammar": grammar.source}
    if grammar.kind == "regex":
        definition = LLMatcher.grammar_from_regex(grammar.source)
    else:
        definition = LLMatcher.grammar_from_json_schema(grammar.source, overrides={"whitespace_pattern": WHITESPACE})
    (part,) = json.loads(definition)["grammars"]
    return dict(part)


def _readable(error: str) -> str:
    """What is wrong, on one line."""
    return " ".join(error.removesuffix("<non-verbose/>").split())
