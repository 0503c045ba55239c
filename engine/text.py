"""Text to token ids and back: chat template, tokenizer, incremental detokenizer.

Runs in the API process. Knows the tokenizer files of a model folder; knows no tensors and no requests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from loraplex.engine.templates import Messages, TemplateError, TokenizerConfig, compile_template, render

MAX_RENDERED_CHARS = 8 << 20
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER_TOKENS = 4  # UTF-8 bytes of one character; what is still incomplete then is no character at all


class TextCodec:
    """Reads tokenizer.json, tokenizer_config.json and chat_template.jinja of a Hugging Face folder."""

    def __init__(self, model_path: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model_path / "tokenizer.json"))
        config_path = model_path / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(config_path.read_text()) if config_path.exists() else {}
        self.special_tokens = {
            name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        self.chat_template = _chat_template(model_path, config)
        self._template = compile_template(self.chat_template) if self.chat_template else None

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the tokenizer adds by itself (a BOS, if any)."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def render_chat(self, messages: Messages) -> list[int]:
        """Token ids of a conversation, by the model's own template, up to where the assistant's answer begins.

        Raises TemplateError when the model has no chat template or the template refuses the messages.
        """
        if self._template is None:
            raise TemplateError("this model has no chat template; use /v1/completions")
        text = render(self._template, messages, self.special_tokens)
        if len(text) > MAX_RENDERED_CHARS:
            raise TemplateError(f"the rendered conversation is longer than {MAX_RENDERED_CHARS} characters")
        return self.encode_rendered(text)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a conversation that a template has rendered, which wrote the special tokens itself."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self._tokenizer)


class Detokenizer:
    """Token ids of one answer to text, piece by piece; a character is held back until all its bytes are there.

    The text depends on the ids alone, not on how they are divided into pushes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # [_context, _emitted) was emitted and is decoded again, since a token's text can depend on the one before it
        self._ids: list[int] = []
        self._context = 0
        self._emitted = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens complete. Special tokens have no text."""
        return "".join(self._push_one(token_id) for token_id in token_ids)

    def flush(self) -> str:
        """What the end of the answer leaves: an incomplete character, as U+FFFD."""
        return self._take(self._new_text())

    def _push_one(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._new_text()
        held = len(self._ids) - self._emitted
        if text.endswith(REPLACEMENT) and held < LONGEST_CHARACTER_TOKENS:
            return ""
        return self._take(text)

    def _new_text(self) -> str:
        before: str = self._decode(self._ids[self._context : self._emitted])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _take(self, text: str) -> str:
        self._context, self._emitted = self._emitted, len(self._ids)
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _chat_template(model_path: Path, config: dict[str, Any]) -> str | None:
    file = model_path / "chat_template.jinja"
    return file.read_text() if file.exists() else msgspec.convert(config, TokenizerConfig).default_template


def _token_text(token: str | dict[str, Any] | None) -> str:
    return token["content"] if isinstance(token, dict) else token or ""
