"""Thoughts apart from the answer: what stands between <think> and </think> at its beginning.

The tags, and white space beside them, belong to neither. Knows no wire.
"""

from __future__ import annotations

from typing import Literal

from loraplex.platform.openai.answer_parts import Part, Said, Thought, held_back

OPENING, CLOSING = "<think>", "</think>"
MARKERS = (OPENING, CLOSING)

ReasoningFormat = Literal["auto", "think", "none"]


class ThoughtReader:
    """is_thinking: the prompt has opened the thought already. An answer that begins otherwise has no thoughts."""

    def __init__(self, *, is_thinking: bool) -> None:
        self._state: Literal["before", "thinking", "thought", "answering"] = "thinking" if is_thinking else "before"
        self._held = ""
        self._has_thought = False

    def push(self, text: str) -> list[Part]:
        parts: list[Part] = []
        text, self._held = self._held + text, ""
        if self._state == "before":
            text = self._begin(text)
        if self._state == "thinking":
            text = self._think(text, parts)
        if self._state == "thought" and (text := text.lstrip()):
            self._state = "answering"
        if self._state == "answering" and text:
            parts.append(Said(text))
        return parts

    def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        if self._state == "thinking":
            thought = held.rstrip() if self._has_thought else held.strip()
            return [Thought(thought)] if thought else []
        return [Said(held)] if held else []

    def _begin(self, text: str) -> str:
        """What is left to be read once it is known whether the answer begins with a thought."""
        start = text.lstrip()
        if start.startswith(OPENING):
            self._state = "thinking"
            return start.removeprefix(OPENING)
        if OPENING.startswith(start):
            self._held = text
            return ""
        self._state = "answering"
        return text

    def _think(self, text: str, parts: list[Part]) -> str:
        """Take the thought from the beginning of `text`; what is left."""
        thought, closing, rest = text.partition(CLOSING)
        if closing:
            self._state = "thought"
        else:
            known = len(thought) - held_back(thought, CLOSING)
            known = len(thought[:known].rstrip())
            thought, self._held = thought[:known], thought[known:]
        thought = thought.rstrip()
        if not self._has_thought:
            thought = thought.lstrip()
        if thought:
            self._has_thought = True
            parts.append(Thought(thought))
        return rest


def opens_thought(text: str) -> bool:
    """Whether a thought that begins in this text goes on after it."""
    return text.rfind(OPENING) > text.rfind(CLOSING)
