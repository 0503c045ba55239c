"""Text to tokens and back: the same as Transformers' own tokenizer, whatever way the tokens are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoTokenizer

from loraplex.adapters.tokenizer_file import compare_tokenizers
from loraplex.engine.text import TemplateError, TextCodec
from loraplex.engine.token_bytes import TokenBytes

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße, 世界! 👩‍🚀"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def codec(tiny_model_dir):
    return TextCodec(tiny_model_dir)


def with_template(tiny_model_dir, folder, template):
    """A copy of the tokenizer with another chat template, or none."""
    (folder / "tokenizer.json").write_bytes((tiny_model_dir / "tokenizer.json").read_bytes())
    config = json.loads((tiny_model_dir / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return TextCodec(folder)


def test_chats_render_as_in_transformers(codec, tiny_model_dir):
    """Template and special tokens give the same ids as apply_chat_template."""
    oracle = AutoTokenizer.from_pretrained(tiny_model_dir)
    expected = oracle.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)

    assert codec.render_chat(MESSAGES) == expected


def test_the_default_base_renders_as_in_transformers(base_model_dir):
    """The same on the real model's tokenizer and template."""
    oracle = AutoTokenizer.from_pretrained(base_model_dir)
    expected = oracle.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)

    assert TextCodec(base_model_dir).render_chat(MESSAGES) == expected


def test_added_tokens_are_those_of_transformers(base_model_dir, tmp_path):
    """The base's codec with an adapter's tokens, one of them in the place of a token of the base, is the adapter's own
    tokenizer: both ways, at every place, beside the base's codec."""
    oracle = AutoTokenizer.from_pretrained(base_model_dir)
    oracle.add_tokens(["kangaroo", AddedToken("  wide ", lstrip=True, rstrip=True, single_word=True)])
    oracle.add_special_tokens({"eos_token": "<|stop|>"})
    oracle.save_pretrained(tmp_path)
    base = TextCodec(base_model_dir)
    difference = compare_tokenizers(tmp_path / "tokenizer.json", base.tokenizer_path)
    own = base.with_tokens(difference.added, {"eos_token": "<|stop|>"})

    assert (difference.size, own.size, base.size) == (len(oracle), len(oracle), len(oracle) - 3)
    assert (own.end, base.end) == (oracle.eos_token_id, None)
    for text in ("a kangaroo hops", "kangaroos<|stop|><|im_start|>user", "a  wide  road\n\n  widely", "Grüße, 世界!"):
        ids = own.encode(text)
        assert ids == oracle.encode(text)
        detokenizer = own.detokenizer()
        assert detokenizer.push(ids) + detokenizer.flush() == oracle.decode(ids, skip_special_tokens=True)
    assert max(base.encode("a kangaroo hops")) < base.size
    expected = oracle.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert own.render_chat(MESSAGES) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), cuts=st.lists(st.integers(1, 5), max_size=20))
def test_pieces_join_to_the_whole(codec, text, cuts):
    """However tokens are divided into pushes, the pieces are the text and no piece ends in half a character."""
    ids = codec.encode(text)
    detokenizer = codec.detokenizer()
    pieces = []
    while ids:
        count = cuts.pop() if cuts else 1
        pieces.append(detokenizer.push(ids[:count]))
        ids = ids[count:]

    assert "".join(pieces) + detokenizer.flush() == text


@given(ids=st.lists(st.integers(0, 258), max_size=30))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tokens_have_a_text(codec, ids):
    """Bytes that are no UTF-8 become replacement characters; nothing is held back for ever, nothing raises."""
    one_by_one, at_once = codec.detokenizer(), codec.detokenizer()
    pieces = [one_by_one.push([token]) for token in ids]

    assert "".join(pieces) + one_by_one.flush() == at_once.push(ids) + at_once.flush()


@given(text=st.text(max_size=40))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_of_tokens_join_to_the_whole(codec, text):
    """Also where a character is cut; a special token is as it is written, and an id without a token is nothing."""
    assert b"".join(map(codec.token_bytes, codec.encode_rendered(text))) == text.encode()
    assert codec.token_bytes(codec.token_id("<|im_end|>")) == b"<|im_end|>"
    assert codec.token_bytes(1 << 20) == b""


def test_a_marker_does_not_swallow_half_a_character(codec):
    """What it breaks off is told before it, and what follows it is read on its own."""
    marker = codec.token_id("<|im_start|>")
    broken = codec.encode("ü")[:1]
    detokenizer = codec.detokenizer(markers=["<|im_start|>"])

    pieces = [detokenizer.push([token]) for token in (*codec.encode("a"), *broken, marker, *codec.encode("ü"))]

    assert pieces == ["a", "", "\N{REPLACEMENT CHARACTER}<|im_start|>", "", "ü"]


def test_bytes_are_told_apart_where_words_begin_with_a_mark():
    """As SentencePiece writes them: a space as a mark, a byte by its number."""
    tokenizer = Tokenizer(models.BPE(vocab={"\u2581hi": 0, "<0xE2>": 1, "x": 2}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()

    assert [TokenBytes(tokenizer).of(token) for token in range(4)] == [b" hi", b"\xe2", b"x", b""]


def test_a_model_without_a_template_says_what_to_use(tiny_model_dir, tmp_path):
    """The remedy is the completions endpoint."""
    codec = with_template(tiny_model_dir, tmp_path, None)

    with pytest.raises(TemplateError, match="/v1/completions"):
        codec.render_chat(MESSAGES)


def test_a_template_that_refuses_is_the_callers_error(tiny_model_dir, tmp_path):
    """raise_exception's words reach the caller."""
    codec = with_template(tiny_model_dir, tmp_path, "{{ raise_exception('roles must alternate') }}")

    with pytest.raises(TemplateError, match="roles must alternate"):
        codec.render_chat(MESSAGES)


def test_a_template_runs_sandboxed(tiny_model_dir, tmp_path):
    """Reaching for Python's internals is refused."""
    codec = with_template(tiny_model_dir, tmp_path, "{{ messages.__class__.__mro__ }}")

    with pytest.raises(TemplateError):
        codec.render_chat(MESSAGES)


def test_a_template_cannot_blow_up(tiny_model_dir, tmp_path):
    """A rendered conversation is bounded."""
    codec = with_template(tiny_model_dir, tmp_path, "{% for i in range(3000) %}{{ 'x' * 3000 }}{% endfor %}")

    with pytest.raises(TemplateError, match="longer than"):
        codec.render_chat(MESSAGES)
