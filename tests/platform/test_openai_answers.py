"""What a client gets when the engine is slow, coarse or failing, told by a scripted engine."""

import json

import pytest
from scripted_engine import Api, Script, Scripts, content

from loraplex.engine.client import EngineUnavailable, GenerationFailed


def test_a_character_of_several_bytes_is_never_split():
    """Deltas hold whole characters, however its tokens arrive; what is left over at the end is one replacement."""
    flag, family = "🏳️‍🌈".encode(), "👩‍👩‍👧".encode()
    says = [bytes([byte]) for byte in flag] + [family[:5], family[5:], b"\xf0\x9f"]

    payloads, done = Api(Script(*says)).streamed()

    assert done
    assert "".join(content(payloads)) == (flag + family).decode() + "�"
    assert all("�" not in piece for piece in content(payloads)[:-1])


def test_line_separators_of_unicode_do_not_break_frames():
    """Clients that use str.splitlines see one line for each frame."""
    text = "a\u2028b\u2029c\u0085d\r\ne"
    response = Api(Script(text.encode())).chat(stream=True)

    lines = [line for line in response.text.splitlines() if line]

    assert all(line.startswith("data: ") for line in lines)
    assert "".join(content([json.loads(line.removeprefix("data: ")) for line in lines[:-1]])) == text


@pytest.mark.parametrize(
    "pieces", [[b"one STOP two"], [b"one S", b"TO", b"P two"], [bytes([b]) for b in b"one STOP two"]]
)
def test_text_and_usage_do_not_depend_on_how_tokens_arrive(pieces):
    """One by one or joined for a slow reader: the text before the stop string, 8 tokens, and the engine is stopped."""
    api = Api(Script(*pieces))

    body = api.chat(stop="STOP").json()

    assert body["choices"][0]["message"]["content"] == "one "
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert api.engine.aborted


def test_the_beginning_of_a_stop_string_is_text_when_no_more_comes():
    """What was held back is not lost."""
    payloads, _ = Api(Script(b"so ST", b"", finish="length")).streamed(stop=["STOP"])

    assert "".join(content(payloads)) == "so ST"
    assert payloads[-1]["choices"][0]["finish_reason"] == "length"


def test_a_failure_before_the_first_token_is_an_http_status():
    """A stream that never began is refused like any request."""
    api = Api(Script(GenerationFailed("adapter_load_failed", "the adapter's file is gone")))

    response = api.chat(stream=True)

    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.json()["error"]["code"] == "adapter_load_failed"
    assert [finished[1] for finished in api.metrics.finished] == ["error"]


def test_a_failure_in_mid_stream_is_an_error_frame_and_done():
    """The status is long sent: the client is told in the stream, and the stream ends as it should."""
    api = Api(Script(b"so ", b"far", GenerationFailed("engine_restarted", "the engine was restarted")))

    payloads, done = api.streamed()

    assert "".join(content(payloads)) == "so far"
    assert payloads[-1]["error"]["code"] == "engine_restarted"
    assert done
    assert [finished[1] for finished in api.metrics.finished] == ["error"]


@pytest.mark.parametrize(
    "says", [(b"so ", RuntimeError("a secret of ours")), (b"so ", GenerationFailed("new", "secret"))]
)
def test_our_own_faults_tell_nothing_in_mid_stream_either(says):
    """The error frame has no text of the exception."""
    payloads, done = Api(Script(*says)).streamed()

    assert payloads[-1]["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(payloads)
    assert done


def test_an_engine_that_takes_nothing_is_a_503():
    """Its own words, and when to try again."""
    response = Api(Script(EngineUnavailable("the server has its hands full", 3))).chat()

    assert response.status_code == 503
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["code"] == "engine_unavailable"


def test_a_sequence_that_the_engine_gives_up_is_an_error():
    """An answer is never cut short in silence."""
    response = Api(Script(b"so", finish="abort")).chat()

    assert response.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_each_request_is_counted_once(stream):
    """With its endpoint, its reason to end and its tokens."""
    api = Api(Script(b"ab", b"c"))

    api.chat(stream=stream)

    assert [finished[:5] for finished in api.metrics.finished] == [("chat", "stop", 5, 2, 3)]


def test_the_request_reaches_the_engine_as_asked():
    """Sampling, limits and salts; the rest of the context where chat gives no limit."""
    script = Script(b"a")
    api = Api(script)
    api.chat(temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, seed=-1, stop_token_ids=[3], ignore_eos=True)
    api.chat(max_completion_tokens=7, cache_salt="mine")

    first, second = script.asked

    assert (first.adapters, first.salt, first.prompt) == ((), b"salt", list(b"hello"))
    assert first.sampling.max_tokens == 4000 - 5
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.min_p) == (0.5, 0.9, 0.1)
    assert (first.sampling.top_k, first.sampling.seed) == (0, (1 << 63) - 1)
    assert (first.sampling.stop_token_ids, first.sampling.ignore_eos) == ((3,), True)
    assert second.sampling.max_tokens == 7
    assert second.salt not in (b"", b"salt")


def test_a_long_prompt_is_tokenised_beside_the_event_loop():
    """And is refused with the words that clients look for."""
    response = Api(Script(b"a")).chat(messages=[{"role": "user", "content": "x" * 10_000}])

    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 4000 tokens" in response.json()["error"]["message"]


def refusal(response):
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


def test_choices_are_sequences_of_one_prompt():
    """Each with its text and its reason to end; the prompt counts once. The first has the seed of the request, the
    others have seeds of their own and wait for its prompt."""
    api = Api(Scripts(Script(b"one"), Script(b"two", b"!", finish="length"), Script(b"")))

    body = api.chat(n=3, seed=5).json()

    told = [(choice["index"], choice["message"]["content"], choice["finish_reason"]) for choice in body["choices"]]
    assert told == [(0, "one", "stop"), (1, "two!", "length"), (2, "", "stop")]
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    first, second, third = api.engine.asked
    assert [asked.after for asked in (first, second, third)] == [None, first.request_id, first.request_id]
    assert len({asked.request_id for asked in api.engine.asked}) == 3
    assert first.sampling.seed == 5
    assert len({asked.sampling.seed for asked in api.engine.asked}) == 3
    alone = Api(Scripts(Script(b"one")))
    alone.chat(seed=5)
    assert alone.engine.asked[0].sampling == first.sampling


def test_a_stream_of_several_choices_ends_once():
    """Each begins with its role and has its own reason to end; then the usage of all, and one [DONE]."""
    scripts = Script(b"a", b"b"), Script(b"x", b"y", b"z", finish="length")
    payloads, done = Api(Scripts(*scripts)).streamed(n=2, stream_options={"include_usage": True})

    *chunks, last = payloads
    of_choice = [[chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == i] for i in (0, 1)]
    assert done
    assert [[choice["delta"].get("content") for choice in choices] for choices in of_choice] == [
        ["", "a", "b", None],
        ["", "x", "y", "z", None],
    ]
    assert [choices[-1]["finish_reason"] for choices in of_choice] == ["stop", "length"]
    assert all(choice["finish_reason"] is None for choices in of_choice for choice in choices[:-1])
    assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == ([], 5, 5)
    assert all(chunk["usage"] is None for chunk in chunks)


def test_chunks_tell_the_usage_so_far():
    """To whoever asks for usage and for it in each of them: that of the chunk's own choice, then that of all."""
    scripts = Script(b"a", b"b"), Script(b"x", b"y", b"z")
    asked = {"n": 2, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    (*chunks, last), _ = Api(Scripts(*scripts)).streamed(**asked)

    of_choice = [[chunk["usage"] for chunk in chunks if chunk["choices"][0]["index"] == i] for i in (0, 1)]
    completions = [[usage["completion_tokens"] for usage in usages] for usages in of_choice]
    assert completions[0][0] == completions[1][0] == 0
    assert [usages[-1] for usages in completions] == [2, 3]
    assert all(usages == sorted(usages) for usages in completions)
    assert {usage["prompt_tokens"] for usages in of_choice for usage in usages} == {5}
    assert last["usage"]["completion_tokens"] == 5
    payloads, _ = Api(Script(b"a")).streamed(stream_options={"continuous_usage_stats": True})
    assert all("usage" not in payload for payload in payloads)


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_fails_at_once_fails_the_request(stream):
    """With its HTTP status; all sequences are aborted and counted as failed."""
    failing = Script(GenerationFailed("adapter_load_failed", "the adapter's file is gone"))
    others = Script(b"so far", b"so good"), Script(b"never", b"told")
    api = Api(Scripts(others[0], failing, others[1]))

    assert refusal(api.chat(n=3, stream=stream)) == (503, "adapter_load_failed", None)
    assert all(script.aborted for script in others)
    assert [finished[1] for finished in api.metrics.finished] == ["error"] * 3


def test_a_choice_that_fails_later_ends_the_stream():
    """One error frame, one [DONE], and nothing runs on."""
    failing = Script(b"b", GenerationFailed("engine_restarted", "the engine was restarted"))
    api = Api(Scripts(Script(b"a", b"a", b"a"), failing))

    payloads, done = api.streamed(n=2)

    assert done
    assert payloads[-1]["error"]["code"] == "engine_restarted"
    assert [finished[1] for finished in api.metrics.finished] == ["error"] * 2


def test_choices_that_the_engine_does_not_take_leave_none_behind():
    """What was begun before the refusal is aborted."""
    first = Script(b"a")
    api = Api(Scripts(first, Script(EngineUnavailable("the server has its hands full", 3))))

    assert refusal(api.chat(n=2)) == (503, "engine_unavailable", None)
    assert first.aborted


def test_prompts_in_a_list_are_answered_in_their_order():
    """n choices of each, as text or token ids, equal prompts computed once; `echo` begins each with its prompt."""
    api = Api(Scripts(*[Script(text) for text in (b"1", b"2", b"3", b"4", b"5", b"6")]))

    body = api.complete(prompt=["ab", list(b"cde"), "ab"], n=2, echo=True, seed=1).json()

    told = [(choice["index"], choice["text"]) for choice in body["choices"]]
    assert told == [(0, "ab1"), (1, "ab2"), (2, "cde3"), (3, "cde4"), (4, "ab5"), (5, "ab6")]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (7, 6)
    ids = [asked.request_id for asked in api.engine.asked]
    assert [asked.after for asked in api.engine.asked] == [None, ids[0], None, ids[2], ids[0], ids[0]]
    seeds = [asked.sampling.seed for asked in api.engine.asked]
    assert seeds == [1, seeds[1]] * 3


def test_a_stream_echoes_the_prompt_first():
    """In a chunk of its own for each choice, ahead of all text."""
    response = Api(Scripts(Script(b"x"), Script(b"y"))).complete(prompt="ab", n=2, echo=True, stream=True)

    chunks = [json.loads(frame.removeprefix("data: ")) for frame in response.text.split("\n\n")[:-2]]
    texts = [(choice["index"], choice["text"]) for chunk in chunks for choice in chunk["choices"]]
    assert texts[:2] == [(0, "ab"), (1, "ab")]
    assert sorted(texts[2:]) == [(0, ""), (0, "x"), (1, ""), (1, "y")]


def test_the_best_have_the_highest_mean_log_probability():
    """Of as many candidates as `best_of` says, the best first; all of them count. One without tokens is no answer."""
    says = {b"": 0.0, b"long and good": -0.5, b"bad": -2.0, b"best": -0.1}
    api = Api(Scripts(*[Script(text, logprob=logprob) for text, logprob in says.items()]))

    body = api.complete(n=2, best_of=4).json()

    assert [choice["text"] for choice in body["choices"]] == ["best", "long and good"]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (5, sum(map(len, says)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"best_of": 9}, "best_of"),
        ({"prompt": ["a"] * 5, "n": 2}, "n"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"best_of": 2, "temperature": 0}, "best_of"),
    ],
)
def test_what_a_request_may_have_of_choices_is_bounded(fields, param):
    """Over all prompts together; refused before anything runs."""
    api = Api(Script(b"a"))

    assert refusal(api.complete(**fields)) == (400, "invalid_value", param)
    assert not api.engine.asked
