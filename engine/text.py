"""Text to token ids and back: chat template, tokenizer, incremental detokenizer.

Runs in the API process. Knows the tokenizer files of a model folder, and tokens that adapters add; knows no tensors and
no requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import msgspec
from tokenizers import AddedToken as TokenizersToken
from tokenizers import Tokenizer

from loraplex.adapters.types import AddedToken
from loraplex.engine.templates import (
    UP_TO_THE_ANSWER,
    Messages,
    TemplateError,
    TemplateOptions,
    TokenizerConfig,
    compile_template,
    render,
)
from loraplex.engine.token_bytes import TokenBytes

MAX_RENDERED_CHARS = 8 << 20
END_TOKENS = 16
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER_TOKENS = 4  # UTF-8 bytes of one character; what is still incomplete then is no character at all


class TextCodec:
    """Reads tokenizer.json, tokenizer_config.json and chat_template.jinja of a Hugging Face folder.

    tool_template: for conversations with tools, which is nearly always the same one.
    end: the token that ends an answer beside those of the model, where an adapter has one.
    """

    def __init__(self, model_path: Path) -> None:
        self.tokenizer_path = model_path / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(self.tokenizer_path))
        config_path = model_path / "tokenizer_config.json"
        config = msgspec.json.decode(config_path.read_bytes() if config_path.exists() else b"{}", type=TokenizerConfig)
        self.special_tokens: Mapping[str, str] = config.special_tokens
        self.chat_template = _chat_template(model_path, config)
        self.tool_template = _tool_template(model_path, config) or self.chat_template
        self._template = compile_template(self.chat_template) if self.chat_template else None
        self._token_bytes = TokenBytes(self._tokenizer)
        is_other = self.tool_template is not None and self.tool_template != self.chat_template
        self._tool_template = compile_template(self.tool_template or "") if is_other else self._template
        self.end: int | None = None

    def with_tokens(self, added: Sequence[AddedToken], special_tokens: Mapping[str, str]) -> TextCodec:
        """That of an adapter's tokenizer: this one with more tokens, or with others in their places."""
        codec = copy(self)
        codec.special_tokens = {**self.special_tokens, **special_tokens}
        codec._tokenizer = _extended(self._tokenizer, added) if added else self._tokenizer
        codec._token_bytes = TokenBytes(codec._tokenizer)
        codec.end = codec.token_id(special_tokens["eos_token"]) if "eos_token" in special_tokens else None
        return codec

    @property
    def size(self) -> int:
        """How many tokens there are."""
        size: int = self._tokenizer.get_vocab_size()
        return size

    def token_id(self, token: str) -> int | None:
        """None: it is no token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the tokenizer adds by itself (a BOS, if any)."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def render_chat(self, messages: Messages, options: TemplateOptions = UP_TO_THE_ANSWER) -> list[int]:
        """Token ids of a conversation, by the model's own template, up to where the assistant's answer begins.

        Raises TemplateError when the model has no chat template or the template refuses the messages.
        """
        template = self._tool_template if options.tools is not None else self._template
        if template is None:
            raise TemplateError("this model has no chat template; use /v1/completions")
        text = render(template, messages, self.special_tokens, options)
        if len(text) > MAX_RENDERED_CHARS:
            raise TemplateError(f"the rendered conversation is longer than {MAX_RENDERED_CHARS} characters")
        return self.encode_rendered(text)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a conversation that a template has rendered, which wrote the special tokens itself."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones included. What is no token has no text."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text

    def spell(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary has it; "" for what is no token."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for in UTF-8; maybe part of a character."""
        return self._token_bytes.of(token_id)

    def end_of(self, token_ids: Sequence[int]) -> str:
        """Text of the last few tokens, special ones included."""
        return self.decode(token_ids[-END_TOKENS:])

    def detokenizer(self, *, special_tokens: bool = False, markers: Iterable[str] = ()) -> Detokenizer:
        """special_tokens: they have a text, too; without that, those of `markers` have."""
        if special_tokens:
            return Detokenizer(self._tokenizer, special_tokens=True)
        ids = {marker: self.token_id(marker) for marker in markers}
        told = {
            token_id: marker
            for marker, token_id in ids.items()
            if token_id is not None and not self._tokenizer.decode([token_id], skip_special_tokens=True)
        }
        return Detokenizer(self._tokenizer, told=told)


class Detokenizer:
    """Token ids of one answer to text, piece by piece; a character is held back until all its bytes are there.

    The text depends on the ids alone, not on how they are divided into pushes. told: special tokens that have a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special_tokens: bool = False,
        told: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        self._told = told
        # [_context, _emitted) was emitted and is decoded again, since a token's text can depend on the one before it
        self._ids: list[int] = []
        self._context = 0
        self._emitted = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these tokens complete. Special tokens have one if they were asked for, or are told."""
        return "".join(self._push_one(token_id) for token_id in token_ids)

    def flush(self) -> str:
        """What the end of the answer leaves: an incomplete character, as U+FFFD."""
        return self._take(self._new_text())

    def _push_one(self, token_id: int) -> str:
        if token_id in self._told:
            text = self.flush()
            self._ids.append(token_id)
            self._context = self._emitted = len(self._ids)
            return text + self._told[token_id]
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
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not self._special_tokens)
        return text


def _chat_template(model_path: Path, config: TokenizerConfig) -> str | None:
    file = model_path / "chat_template.jinja"
    return file.read_text() if file.exists() else config.default_template


def _tool_template(model_path: Path, config: TokenizerConfig) -> str | None:
    file = model_path / "additional_chat_templates" / "tool_use.jinja"
    return file.read_text() if file.exists() else config.template_named("tool_use")


def _extended(base: Tokenizer, added: Sequence[AddedToken]) -> Tokenizer:
    """Made in less than a millisecond, and small: its model, with all that was learned, is that of `base`."""
    tokenizer = Tokenizer(base.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(base, part)) is not None:
            setattr(tokenizer, part, value)
    tokens = base.get_added_tokens_decoder()
    for token in added:
        flags = {name: value for name, value in asdict(token).items() if name not in ("id", "content")}
        tokens[token.id] = TokenizersToken(token.content, **flags)
    tokenizer.add_tokens([tokens[token_id] for token_id in sorted(tokens)])
    return tokenizer
