"""OpenAI's and vLLM's sampling parameters through the official client, against a real server."""

import math

import openai
import pytest
from e2e.server import BASE
from tokenizers import Tokenizer

MESSAGES = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def client(site):
    return site.server.openai(site.acme)


@pytest.fixture(scope="module")
def ids(tiny_model_dir):
    """Token ids of a text: one for each byte."""
    tokenizer = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def complete(client, model=BASE, extra=None, **options):
    options = {"prompt": "hello", "max_tokens": 12, "temperature": 0} | options
    extra = {"ignore_eos": True, **(extra or {})}
    return client.completions.create(model=model, extra_body=extra, **options)


def text_of(client, **options):
    return complete(client, **options).choices[0].text


@pytest.mark.parametrize("model", [BASE, "tickets"])
def test_chat_tells_how_likely_its_tokens_were(client, model):
    """An entry for every token, whole or streamed, with its bytes and the most likely ones; greedy's is the first."""
    asked = {"model": model, "messages": MESSAGES, "max_tokens": 9, "temperature": 0, "logprobs": True}
    asked |= {"top_logprobs": 3, "extra_body": {"skip_special_tokens": False}}

    whole = client.chat.completions.create(**asked)
    with client.chat.completions.create(stream=True, **asked) as stream:
        choices = [chunk.choices[0] for chunk in stream]

    entries = whole.choices[0].logprobs.content
    assert len(entries) == whole.usage.completion_tokens
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == whole.choices[0].message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1 + 1e-6
    streamed = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    assert (
        client.chat.completions.create(**asked | {"logprobs": False, "top_logprobs": None}).choices[0].logprobs is None
    )


def test_completions_tell_where_each_token_is(client):
    """Four lists of one length, whole or streamed; the log-probability does not change with temperature or rules."""
    whole = complete(client, logprobs=2).choices[0]
    chunks = list(complete(client, logprobs=2, stream=True))

    told = whole.logprobs
    assert "".join(told.tokens) == whole.text
    assert [whole.text[at : at + 1] for at in told.text_offset] == told.tokens
    assert all(top[token] == pytest.approx(value) for token, value, top in each(told))
    streamed = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for part in streamed for token in part.tokens] == told.tokens
    assert [at for part in streamed for at in part.text_offset] == told.text_offset
    same = {"allowed_token_ids": list(range(200)), "repetition_penalty": 1.0001}
    other = complete(client, logprobs=0, temperature=1.0, seed=3, extra=same).choices[0].logprobs
    if other.tokens[0] == told.tokens[0]:
        assert other.token_logprobs[0] == pytest.approx(told.token_logprobs[0], abs=1e-4)


def each(told):
    return zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True)


@pytest.mark.parametrize("model", [BASE, "tickets"])
def test_an_echoed_prompt_is_scored_as_loglikelihoods_are_measured(client, model, ids):
    """Prompt and answer in one list, the first token without a score, and without generating anything; the same scores
    as vLLM's prompt_logprobs, and as those of the answer that greedy gave."""
    first = complete(client, model=model, logprobs=0).choices[0]
    prompt = "hello" + first.text
    one = complete(client, model=model, prompt=prompt, echo=True, logprobs=1, max_tokens=1).choices[0]
    none = complete(client, model=model, prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    by_ids = complete(client, model=model, prompt=ids(prompt), max_tokens=1, extra={"prompt_logprobs": 0}).choices[0]

    told = none.choices[0].logprobs
    assert none.usage.completion_tokens == 0
    assert none.choices[0].text == prompt == "".join(told.tokens)
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    assert told.token_logprobs[5:] == pytest.approx(first.logprobs.token_logprobs, abs=1e-4)
    assert all(value == pytest.approx(max(top.values())) for _, value, top in list(each(told))[5:])
    assert one.text[:-1] == prompt
    assert one.logprobs.token_logprobs[1:-1] == pytest.approx(told.token_logprobs[1:], abs=1e-4)
    assert one.logprobs.text_offset == list(range(len(one.text)))
    scores = [
        score[str(token)]["logprob"] for token, score in zip(ids(prompt)[1:], by_ids.prompt_logprobs[1:], strict=True)
    ]
    assert scores == pytest.approx(told.token_logprobs[1:], abs=1e-4)


def test_a_stop_token_has_its_place_among_the_scores(client, ids):
    """So that prompt and one token are always one longer than the prompt, as evaluations take for granted."""
    (stop,) = ids(text_of(client, max_tokens=1))

    stopped = complete(client, logprobs=1, echo=True, max_tokens=1, extra={"stop_token_ids": [stop]})

    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == "hello"
    assert len(stopped.choices[0].logprobs.tokens) == 6
    assert stopped.usage.completion_tokens == 0


def test_rules_hold_in_text(client, ids):
    """Each changes greedy's text as it says."""
    plain = text_of(client)
    (x,) = ids("x")

    assert text_of(client, logit_bias={str(x): 1000}) == "x" * 12
    assert set(text_of(client, extra={"allowed_token_ids": ids("abc")})) <= set("abc")
    word = plain[1:3]
    assert word not in text_of(client, extra={"bad_words": [word]})
    assert plain[0] not in text_of(client, extra={"bad_words": [plain[0]]})
    assert plain.startswith(text_of(client, stop=plain[2]))
    late = text_of(client, stop=plain[2], extra={"min_tokens": 6})
    assert late.startswith(plain[:6])
    assert (
        text_of(client, stop=plain[1:3], extra={"include_stop_str_in_output": True})
        == plain[: plain.find(plain[1:3]) + 2]
    )
    assert text_of(client, logit_bias={"2": 100}, max_tokens=2) == ""
    assert text_of(client, logit_bias={"2": 100}, max_tokens=2, extra={"skip_special_tokens": False}) != ""
    penalised = text_of(client, frequency_penalty=2, presence_penalty=2, extra={"repetition_penalty": 2.0})
    assert len(set(penalised)) == len(penalised)


def test_a_prompt_is_cut_from_the_left(client):
    """To what is asked for, or to what fits."""
    cut = complete(client, prompt="hello world", echo=True, extra={"truncate_prompt_tokens": 5})
    assert cut.choices[0].text.startswith("world")
    assert cut.usage.prompt_tokens == 5
    assert complete(client, prompt="a" * 600, extra={"truncate_prompt_tokens": -1}).usage.prompt_tokens == 500


def test_a_request_that_is_not_done_in_time_fails(client, site):
    """With a 504 of its own, which the client does not try again; in a stream, as an event."""
    asked = {"max_tokens": 480, "extra": {"timeout": 0.01}}
    with pytest.raises(openai.APIStatusError) as failure:
        complete(client, **asked)
    assert failure.value.status_code == 504
    assert failure.value.code == "deadline_exceeded"
    with pytest.raises(openai.APIError) as failure:
        list(complete(client, stream=True, **asked | {"extra": {"timeout": 0.1}}))
    assert failure.value.code == "deadline_exceeded"
    assert complete(client, extra={"timeout": 60}).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"288": 1}}, "logit_bias"),
        ({"allowed_token_ids": [5, 288]}, "allowed_token_ids"),
        ({"bad_words": ["x", "  "]}, "bad_words[1]"),
        ({"min_tokens": 13}, "min_tokens"),
        ({"allowed_token_ids": [2], "min_tokens": 2, "ignore_eos": False}, "allowed_token_ids"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(client, fields, param):
    """Tokens that it does not have, words that are none, and rules that leave nothing to choose from."""
    with pytest.raises(openai.BadRequestError) as refusal:
        complete(client, extra=fields)
    assert refusal.value.param == param


def test_priorities_are_taken(client):
    """A client may stand back; it has the same text."""
    assert text_of(client, extra={"priority": 7}) == text_of(client)
