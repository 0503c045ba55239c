"""One call of a tool, which a model writes as a JSON object, read while it is written.

Knows JSON as far as it takes to tell where values end. Knows nothing of what stands around the object.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from typing import Literal, TypeVar

import msgspec

from loraplex.platform.openai.answer_parts import ArgumentsGrown, CallBegun, Part

MAX_NAME_CHARS = 256

SPACE = " \t\r\n"
_CLOSERS = {"{": "}", "[": "]"}

T = TypeVar("T")

_Reading = Generator[None, str, T]
"""A reader that is sent one character at a time."""


class CallObject:
    """One object, from behind its opening brace on. names: it can have, None for any. name: of a call where the object
    is its arguments."""

    def __init__(
        self, index: int, names: Collection[str] | None, tell: Callable[[Part], None], name: str | None = None
    ) -> None:
        self.has_begun = False
        self._index = index
        self._names = names
        self._tell = tell
        self._name: str | None = None
        self._arguments: str | None = None  # kept until the name is known
        self._reading = self._read_object() if name is None else self._read_arguments_of(name)
        next(self._reading)

    def read(self, text: str) -> tuple[Literal["open", "whole", "broken"], int]:
        """How it is after this text, and how much of that belongs to it."""
        send, grown = self._reading.send, len(text)
        state: Literal["open", "whole", "broken"] = "open"
        for place, character in enumerate(text):
            try:
                send(character)
            except StopIteration:
                state, grown = "whole", place + 1
                break
            except _Broken:
                state, grown = "broken", place
                break
        return state, grown

    def _read_object(self) -> _Reading[None]:
        character = yield from _after_space()
        while character != "}":
            if character != '"':
                raise _Broken
            key = _decoded((yield from _string()))
            if (yield from _after_space()) != ":":
                raise _Broken
            value = yield from _after_space()
            if key == "name":
                character = yield from self._read_name(value)
            elif key in ("arguments", "parameters"):
                character = yield from self._read_arguments(value)
            else:
                character = yield from _value(value, lambda _: None)
            if character == ",":
                character = yield from _after_space()
            elif character != "}":
                raise _Broken
        if self._name is None:
            raise _Broken
        if not self.has_begun:
            self._grow("{}")

    def _read_arguments_of(self, name: str) -> _Reading[None]:
        self._name = name
        yield from _nested("{", self._grow)

    def _read_name(self, first: str) -> _Reading[str]:
        if first != '"' or self._name is not None:
            raise _Broken
        name = _decoded((yield from _string()))
        if not 0 < len(name) <= MAX_NAME_CHARS or (self._names is not None and name not in self._names):
            raise _Broken
        self._name = name
        if self._arguments is not None:
            self._grow("")
        return (yield from _after_space())

    def _read_arguments(self, first: str) -> _Reading[str]:
        if self._arguments is not None:
            raise _Broken
        self._arguments = ""
        if first == '"':  # the object as a string, as it is on the wire
            self._grow(_decoded((yield from _string())))
            return (yield from _after_space())
        if first == "{":
            return (yield from _value(first, self._grow))
        scalar: list[str] = []
        after = yield from _value(first, scalar.append)
        if "".join(scalar) != "null":
            raise _Broken
        self._grow("{}")
        return after

    def _grow(self, arguments: str) -> None:
        if self._name is None:
            self._arguments = (self._arguments or "") + arguments
            return
        if not self.has_begun:
            self.has_begun = True
            self._tell(CallBegun(self._index, self._name))
            arguments = (self._arguments or "") + arguments
        if arguments:
            self._tell(ArgumentsGrown(self._index, arguments))


class _Broken(Exception):
    """What is read is no call."""


def _after_space() -> _Reading[str]:
    while (character := (yield)) in SPACE:
        pass
    return character


def _string() -> _Reading[str]:
    """From behind its opening quote on; with both quotes."""
    characters = ['"']
    is_escaped = False
    while True:
        character = yield
        characters.append(character)
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif character == '"':
            return "".join(characters)


def _value(first: str, take: Callable[[str], None]) -> _Reading[str]:
    """A value of any kind, handed on as it is written; the first character after it and after white space."""
    if first == '"':
        take((yield from _string()))
    elif first in _CLOSERS:
        yield from _nested(first, take)
    else:
        character = first
        while character not in ',}]:"{[' and character not in SPACE:
            take(character)
            character = yield
        if character not in SPACE:
            return character
    return (yield from _after_space())


def _nested(first: str, take: Callable[[str], None]) -> _Reading[None]:
    take(first)
    closers = [_CLOSERS[first]]
    is_string = is_escaped = False
    while closers:
        character = yield
        if is_string:
            is_string = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
        elif character == '"':
            is_string = True
        elif character in _CLOSERS:
            closers.append(_CLOSERS[character])
        elif character in "}]" and character != closers.pop():
            raise _Broken
        take(character)


def _decoded(string: str) -> str:
    try:
        return msgspec.json.decode(string, type=str)
    except msgspec.DecodeError as error:
        raise _Broken from error
