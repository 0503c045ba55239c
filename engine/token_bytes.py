"""What a single token stands for, as bytes: it may be part of a character. Knows how tokenizers write bytes as text."""

from __future__ import annotations

import re

from tokenizers import Tokenizer

WORD_BORDER = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's byte


def _byte_level_alphabet() -> dict[int, int]:
    """Byte-level BPE's characters to bytes: a printable one is its own byte, the others stand for the rest in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + place: byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


class TokenBytes:
    """Of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.get_added_tokens_decoder())
        state: bytes = b"" if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
        self._is_byte_level = b'"ByteLevel"' in state

    def of(self, token_id: int) -> bytes:
        """Nothing for an id that is no token: vocabularies are padded."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added:
            return token.encode()
        if self._is_byte_level:
            return token.translate(_BYTE_OF).encode("latin-1", errors="replace")
        if byte := _BYTE.fullmatch(token):
            return bytes.fromhex(byte[1])
        return token.replace(WORD_BORDER, " ").encode()
