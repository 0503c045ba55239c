"""The forms in which models write calls of tools, and which of them a chat template teaches.

Knows templates as text only. `tool_calls` reads the forms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

ToolCallFormatName = Literal["auto", "hermes", "llama3", "mistral"]


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """Where calls, which are JSON objects with a name and `arguments` or `parameters`, stand in an answer.

    opening, closing: texts around them; "": there is none. bare: a character that opens calls at the beginning of an
    answer without any other sign. separators: characters between calls, beside white space. is_bare_trusted: what is
    opened so is a call, whatever its name. named: what may stand between the name of a call and its arguments, where
    calls may be written so; "": they are not.
    """

    opening: str = ""
    closing: str = ""
    bare: str = ""
    separators: str = ""
    is_bare_trusted: bool = False
    named: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that may be special tokens, which have to be read all the same."""
        return tuple(tag for tag in (self.opening, self.closing, self.named) if len(tag) > 1)


HERMES = ToolCallFormat(opening="<tool_call>", closing="</tool_call>")
"""<tool_call>{"name": ..., "arguments": {...}}</tool_call>, once for each call: Hermes, Qwen, and ours."""

LLAMA3 = ToolCallFormat(opening="<|python_tag|>", bare="{", separators=";")
"""{"name": ..., "parameters": {...}} as the whole answer, or after <|python_tag|>; several with ; between them."""

MISTRAL = ToolCallFormat(opening="[TOOL_CALLS]", closing="]", separators="[,", named="[ARGS]")
"""[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or for each call [TOOL_CALLS]name[ARGS]{...}."""

LIST = ToolCallFormat(bare="[", closing="]", separators="[,", is_bare_trusted=True)
"""[{"name": ..., "arguments": {...}}, ...] as the whole answer: what a forced call is made to be."""

FORMATS: Mapping[str, ToolCallFormat] = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL}

_SIGNS = (
    ("<tool_call>", HERMES),
    ("[TOOL_CALLS]", MISTRAL),
    ("<|python_tag|>", LLAMA3),
    ("dictionary of argument name and its value", LLAMA3),
)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_TOOLS = re.compile(r"\btools\b")


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """format: of the calls that the template teaches; None: it teaches none, or none that can be read."""

    knows_tools: bool
    format: ToolCallFormat | None
    thinks: bool


@lru_cache(maxsize=256)
def traits_of(template: str) -> TemplateTraits:
    """What the text of a template tells about the answers of its model."""
    code = _COMMENT.sub("", template)
    known = next((form for sign, form in _SIGNS if sign in code), None)
    knows_tools = _TOOLS.search(code) is not None
    return TemplateTraits(knows_tools, known if knows_tools else None, "</think>" in code or "<think>" in code)
