"""Calls of tools out of the text of an answer, as the text comes.

A call counts from when its name is known and its arguments begin; what breaks before is text like any other, to the
letter, unless it follows calls that were forced. After that, a call that breaks off keeps the arguments that it has.
White space beside calls is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from loraplex.platform.openai.answer_parts import Part, Said, held_back
from loraplex.platform.openai.tool_call_object import SPACE, CallObject
from loraplex.platform.openai.tool_formats import ToolCallFormat

MAX_NAMED_CHARS = 256
"""Of a name before its arguments, with what stands between them."""

_NAME = re.compile(r"[\w.-]+")


class ToolCallReader:
    """names: of the tools that there are. max_calls: what is called beyond that is left out."""

    def __init__(self, form: ToolCallFormat, names: Collection[str], max_calls: int | None = None) -> None:
        self._form = form
        self._names = names
        self._max_calls = max_calls
        self._state: Literal["start", "text", "after", "between", "call"] = "start"
        self._rest = ""  # not looked at yet: too short to tell what it is
        self._raw = ""  # seen, and still to become either text or a call
        self._calls = 0
        self._calls_before_block = 0
        self._is_doubtful = False  # whether the block might be none of calls
        self._call: CallObject | None = None
        self._parts: list[Part] = []

    def push(self, text: str) -> list[Part]:
        self._rest += text
        while self._rest and self._advance():
            pass
        return self._taken()

    def finish(self) -> list[Part]:
        if self._state == "start" or self._state == "text":
            self._say(self._rest)
        elif self._form.is_bare_trusted and self._calls:
            pass  # what was to be one more call is none, and is no text
        elif self._state == "call" and not (self._call and self._call.has_begun):
            self._say(self._raw)
        elif self._state == "between" and not (self._ends_block() and self._may_be_tag()):
            self._say(self._raw + self._rest)
        self._rest = self._raw = ""
        return self._taken()

    def _taken(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _say(self, text: str) -> None:
        if text:
            self._parts.append(Said(text))

    def _advance(self) -> bool:
        """Take something from the rest; False: more of it is needed."""
        match self._state:
            case "start":
                return self._start()
            case "after":
                self._rest = self._rest.lstrip(SPACE)
                self._state = "text" if self._rest else "after"
                return bool(self._rest)
            case "text":
                return self._text()
            case "between":
                return self._between()
            case "call":
                return self._read_call()

    def _start(self) -> bool:
        start = self._rest.lstrip(SPACE)
        if not start:
            return False
        if self._form.bare and start[0] == self._form.bare:
            self._open(self._rest[: len(self._rest) - len(start)])
        else:
            self._state = "text"
        return True

    def _text(self) -> bool:
        """Say what stands before the next opening, without the white space that leads to it."""
        if not self._form.opening:
            self._say(self._rest)
            self._rest = ""
            return False
        place = self._rest.find(self._form.opening)
        known = place if place >= 0 else len(self._rest) - held_back(self._rest, self._form.opening)
        said = self._rest[:known].rstrip(SPACE)
        self._say(said)
        self._rest = self._rest[len(said) :]
        if place < 0:
            return False
        self._open(self._rest[: place - len(said) + len(self._form.opening)])
        return True

    def _open(self, raw: str) -> None:
        self._state, self._raw, self._rest = "between", raw, self._rest[len(raw) :]
        self._calls_before_block = self._calls
        is_bare = not self._form.opening or self._form.opening not in raw
        self._is_doubtful = is_bare and not self._form.is_bare_trusted

    def _between(self) -> bool:
        """In a block of calls, where none is being read."""
        rest, form = self._rest, self._form
        if form.closing and rest.startswith(form.closing):
            self._skip(len(form.closing))
            has_calls = self._ends_block()
            self._say("" if has_calls else self._raw)
            self._state, self._raw = "after" if has_calls else "text", ""
        elif form.opening and rest.startswith(form.opening):
            self._skip(len(form.opening))
        elif self._may_be_tag():
            return False
        elif rest[0] in SPACE or rest[0] in form.separators:
            self._skip(1)
        elif rest[0] == "{":
            self._begin_call(1)
        elif form.named and "{" not in rest and len(rest) < MAX_NAMED_CHARS:
            return False
        elif form.named and (name := self._name_before_arguments()):
            self._begin_call(rest.index("{") + 1, name)
        else:
            self._say(self._raw)
            self._state, self._raw = "text", ""
        return True

    def _name_before_arguments(self) -> str | None:
        before, brace, _ = self._rest[:MAX_NAMED_CHARS].partition("{")
        name = before.strip().removesuffix(self._form.named).strip()
        return name if brace and _NAME.fullmatch(name) else None

    def _may_be_tag(self) -> bool:
        return any(tag.startswith(self._rest) for tag in (self._form.opening, self._form.closing))

    def _begin_call(self, chars: int, name: str | None = None) -> None:
        """The call's object has begun with the last of so many characters."""
        self._skip(chars)
        self._state = "call"
        self._call = CallObject(self._calls, self._names if self._is_doubtful else None, self._grow, name)

    def _ends_block(self) -> bool:
        """Whether the block had calls, so that its end needs no words."""
        return self._calls > self._calls_before_block and self._state != "call"

    def _skip(self, chars: int) -> None:
        self._raw, self._rest = self._raw + self._rest[:chars], self._rest[chars:]

    def _read_call(self) -> bool:
        assert self._call is not None
        state, taken = self._call.read(self._rest)
        if not self._call.has_begun:
            self._raw += self._rest[:taken]
        else:
            self._raw = ""
        self._rest = self._rest[taken:]
        if state != "open":
            self._calls += self._call.has_begun
            self._call = None
            self._say(self._raw)
            self._state, self._raw = "between" if state == "whole" else "text", ""
        return state != "open"

    def _grow(self, part: Part) -> None:
        if self._max_calls is None or self._calls < self._max_calls:
            self._parts.append(part)
