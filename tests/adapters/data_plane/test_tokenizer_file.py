"""What a tokenizer adds to the base's is found, and nothing else is taken for it."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest

from loraplex.adapters.tokenizer_file import MAX_ADDED_TOKENS, compare_tokenizers
from loraplex.adapters.types import AddedToken
from loraplex.adapters.untrusted_json import CheckFailed

BASE = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "<s>", "special": True, "normalized": False}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel"},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]},
}


def token(token_id, content, **flags):
    return {"id": token_id, "content": content, **flags}


def compare(tmp_path, own):
    (tmp_path / "base.json").write_text(json.dumps(BASE))
    (tmp_path / "own.json").write_text(own if isinstance(own, str) else json.dumps(own))
    return compare_tokenizers(tmp_path / "own.json", tmp_path / "base.json")


def changed(**parts):
    """The base's with other parts; of `model` and `added_tokens` what is given comes on top."""
    own = deepcopy(BASE)
    own["added_tokens"] += parts.pop("added_tokens", [])
    own["model"] |= parts.pop("model", {})
    return own | parts


def test_added_tokens_are_found(tmp_path):
    """By rising id, with their flags; how a newer library writes merges is no difference."""
    more = [token(5, "<end>", special=True, normalized=False), token(4, "kangaroo", lstrip=True)]
    found = compare(tmp_path, changed(added_tokens=more, model={"merges": [["a", "b"]]}))

    kangaroo = AddedToken(4, "kangaroo", lstrip=True)
    assert found.added == (kangaroo, AddedToken(5, "<end>", special=True, normalized=False))
    assert (found.size, found.ignored) == (6, ())


def test_a_token_of_the_base_may_mean_something_else(tmp_path):
    """As those that a base reserves for this."""
    own = changed()
    own["added_tokens"] = [token(0, "<tool>", special=True, normalized=False)]

    assert compare(tmp_path, own).added == (AddedToken(0, "<tool>", special=True, normalized=False),)


def test_parts_that_differ_are_told(tmp_path):
    """They are the base's when it is served."""
    assert compare(tmp_path, changed(normalizer={"type": "NFC"}, decoder=None)).ignored == ("normalizer", "decoder")


@pytest.mark.parametrize(
    ("own", "code"),
    [
        ("{", "tokenizer_invalid"),
        ("[]", "tokenizer_invalid"),
        ("[" * 100_000, "tokenizer_invalid"),
        ({"model": {}, "added_tokens": [{"content": "no id"}]}, "tokenizer_invalid"),
        (changed(added_tokens=[token(-1, "a")]), "tokenizer_invalid"),
        (changed(added_tokens=[token(4, "")]), "tokenizer_invalid"),
        (changed(added_tokens=[token(4, "x"), token(4, "y")]), "tokenizer_invalid"),
        (changed(added_tokens=[token(4, "x"), token(5, "x")]), "tokenizer_invalid"),
        (changed(added_tokens=[token(4, "x" * 257)]), "token_too_long"),
        (changed(added_tokens=[token(4 + i, f"t{i}") for i in range(MAX_ADDED_TOKENS + 1)]), "too_many_tokens"),
        (changed(model={"vocab": {"<s>": 0, "b": 1, "a": 2, "ab": 3}}), "tokenizer_unsupported"),
        (changed(model={"merges": ["b a"]}), "tokenizer_unsupported"),
        (changed(model={"merges": 7}), "tokenizer_unsupported"),
        (changed(model={"type": "Unigram"}), "tokenizer_unsupported"),
    ],
)
def test_what_is_not_the_base_with_more_is_refused(tmp_path, own, code):
    """With a code, and the way out."""
    with pytest.raises(CheckFailed) as refused:
        compare(tmp_path, own)

    assert refused.value.failure.code == code
    assert "leave it out" in refused.value.failure.message
