"""What an adapter's tokenizer.json has that the base's has not: tokens that were added to it.

A tokenizer of strangers is never run. The file is compared with the base's, and what it adds is taken over as data; as
large ones take a second and hundreds of megabytes, in a process: `python -m loraplex.adapters.tokenizer_file OWN BASE`.
Knows the form of the file; knows no weights.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loraplex.adapters.types import AddedToken
from loraplex.adapters.untrusted_json import CheckFailed, CheckFailure

TOKENIZER_BYTES = 64 << 20
"""The largest known, of a vocabulary of 262,144, has half of it."""

MEMORY_BYTES = 2 << 30
"""Address space of the process: twice what the largest files that are known take, both in memory."""

REFUSED = 3
"""An exit status."""

MAX_ADDED_TOKENS = 4096
MAX_TOKEN_CHARS = 256

_FOLLOWED = ("normalizer", "pre_tokenizer", "decoder")
"""Parts of the file that change what text becomes, beside the model."""


class _Token(msgspec.Struct, frozen=True):
    id: Annotated[int, Meta(ge=0, lt=1 << 31)]
    content: Annotated[str, Meta(min_length=1, pattern="^[^\\x00]*$")]
    special: bool = False
    normalized: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _Tokenizer(msgspec.Struct, frozen=True):
    model: dict[str, Any]
    added_tokens: list[_Token] = []
    normalizer: Any = None
    pre_tokenizer: Any = None
    decoder: Any = None


@dataclass(frozen=True, slots=True)
class TokenizerDifference:
    """added: by rising id. size: one more than the largest id. ignored: parts that differ, of which the base's are
    used. special_tokens: see `types.AdapterSpec`; they are not in this file."""

    size: int
    added: tuple[AddedToken, ...] = ()
    ignored: tuple[str, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)


def compare_tokenizers(path: Path, base_path: Path) -> TokenizerDifference:
    """Both are files as the tokenizers library writes them. Raises CheckFailed where one is not the other with more."""
    try:
        own = msgspec.json.decode(path.read_bytes(), type=_Tokenizer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refused("tokenizer_invalid", f"it is not a file of the tokenizers library ({error})") from error
    base = msgspec.json.decode(base_path.read_bytes(), type=_Tokenizer)
    if not _is_same_model(own.model, base.model):
        raise refused("tokenizer_unsupported", "beyond added tokens its vocabulary or merges are not the base's")
    base_tokens = {token.id: token for token in base.added_tokens}
    added = [token for token in own.added_tokens if token != base_tokens.get(token.id)]
    _check_tokens(added, own.added_tokens)
    ids = [*_ids(own.model), *(token.id for token in own.added_tokens)]
    return TokenizerDifference(
        size=max(ids, default=-1) + 1,
        added=tuple(AddedToken(**msgspec.structs.asdict(token)) for token in sorted(added, key=lambda token: token.id)),
        ignored=tuple(part for part in _FOLLOWED if getattr(own, part) != getattr(base, part)),
    )


def _is_same_model(own: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    parts = own.get("type", base.get("type")), own.get("vocab"), _pairs(own.get("merges"))
    return parts == (base.get("type", own.get("type")), base.get("vocab"), _pairs(base.get("merges")))


def _pairs(merges: Any) -> Any:
    """Merges are pairs, or in older files texts with a space between the two."""
    if not isinstance(merges, list):
        return None
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]


def _ids(model: Mapping[str, Any]) -> Sequence[int]:
    """Of a model that is the base's: a table by token, or a list in the order of ids."""
    vocab = model.get("vocab", {})
    return list(vocab.values()) if isinstance(vocab, dict) else range(len(vocab))


def _check_tokens(added: Sequence[_Token], tokens: Sequence[_Token]) -> None:
    if len(added) > MAX_ADDED_TOKENS:
        raise refused("too_many_tokens", f"it adds {len(added)} tokens, and may add {MAX_ADDED_TOKENS}")
    longest = max((len(token.content) for token in added), default=0)
    if longest > MAX_TOKEN_CHARS:
        raise refused("token_too_long", f"a token that it adds has {longest} characters of {MAX_TOKEN_CHARS} at most")
    for name, values in (("id", [token.id for token in tokens]), ("text", [token.content for token in tokens])):
        if len(set(values)) < len(values):
            raise refused("tokenizer_invalid", f"two of its added tokens have the same {name}")


def refused(code: str, reason: str) -> CheckFailed:
    message = f"tokenizer.json: {reason}; mend it, or leave it out to be served with the base's tokenizer"
    return CheckFailed(CheckFailure(code, "tokenizer", message))


def main() -> None:
    """Write the difference to standard output as JSON; with the exit status REFUSED, the failure."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        difference = compare_tokenizers(Path(sys.argv[1]), Path(sys.argv[2]))
    except CheckFailed as error:
        sys.stdout.buffer.write(msgspec.json.encode(error.failure))
        sys.exit(REFUSED)
    sys.stdout.buffer.write(msgspec.json.encode(difference))


if __name__ == "__main__":
    main()
