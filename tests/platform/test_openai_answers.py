"""What a client gets when the engine is slow, coarse or failing, told by a scripted engine."""

import json

import pytest
from scripted_engine import Api, Script

from loraplex.engine.client import EngineUnavailable, GenerationFailed


def content(payloads):
    choices = [choice for payload in payloads for choice in payload.get("choices", ())]
    return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]


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
