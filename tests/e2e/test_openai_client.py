"""The official openai client works against a real server by changing the URL, the key and the model name."""

import asyncio

import pytest
from e2e.server import BASE

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "Say something."}]
ACME_MODELS = [BASE, "tickets", "acme/tickets", "tickets@1", "short"]


def answer(client, model, **options):
    """The text of a greedy chat answer."""
    options = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0} | options
    return client.chat.completions.create(model=model, **options).choices[0].message.content


def streamed(client, **options):
    """All chunks of a streamed chat answer."""
    options = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0} | options
    with client.chat.completions.create(stream=True, **options) as stream:
        return list(stream)


def text_of(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize(
    ("model", "canonical"),
    [(BASE, BASE), ("tickets", "acme/tickets@1"), ("acme/short", "acme/short@1"), ("short@1", "acme/short@1")],
)
def test_chat_answers_under_the_resolved_name(site, model, canonical):
    """Base and adapters answer; the body and a header tell which version it was."""
    client = site.server.openai(site.acme)

    raw = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, max_tokens=8, temperature=0)

    completion = raw.parse()
    assert completion.model == canonical
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "length"
    assert raw.headers.get("x-adapter-version") == (None if canonical == BASE else canonical)
    assert raw.headers["x-request-id"]
    assert completion.system_fingerprint.count("_") == (1 if canonical == BASE else 2)


def test_base_and_adapters_answer_differently(site):
    """Each adapter changes the text, and one tenant's adapter is not another's of the same name."""
    acme, globex = site.server.openai(site.acme), site.server.openai(site.globex)

    texts = {answer(acme, BASE), answer(acme, "tickets"), answer(acme, "short"), answer(globex, "tickets")}

    assert len(texts) == 4
    assert answer(globex, BASE) == answer(acme, BASE)


@pytest.mark.parametrize("model", [BASE, "tickets", "short"])
def test_a_stream_says_what_the_whole_answer_says(site, model):
    """At temperature 0 the deltas add up to the answer in one piece, with the same reason to end and the same usage."""
    client = site.server.openai(site.acme)
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=24, temperature=0)

    chunks = streamed(client, model=model, stream_options={"include_usage": True})

    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 24
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, whole.model)
    }
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_events_have_openais_form(site):
    """The exact headers and frames: role first, usage only when asked for, [DONE] at the end."""
    body = {"model": BASE, "messages": MESSAGES, "max_tokens": 3, "temperature": 0, "stream": True}
    with site.server.http(site.acme) as http:
        response = http.post("/v1/chat/completions", json=body)

    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    frames = response.text.split("\n\n")
    assert frames[-1] == ""
    assert frames[-2] == "data: [DONE]"
    assert all(frame.startswith("data: ") for frame in frames[:-1])
    assert '"delta":{"role":"assistant","content":""}' in frames[0]
    assert '"delta":{}' in frames[-3]
    assert '"finish_reason":"length"' in frames[-3]
    assert '"usage"' not in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(site, stream):
    """Also where it lies across tokens; the engine stops there, and the reason is `stop`."""
    client = site.server.openai(site.acme)
    text = answer(client, "tickets")
    stop = text[5:9]
    expected = text[: text.index(stop)]

    if stream:
        chunks = streamed(client, model="tickets", stop=[stop, "never said"])
        assert text_of(chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        cut = client.chat.completions.create(
            model="tickets", messages=MESSAGES, max_tokens=24, temperature=0, stop=[stop, "never said"]
        )
        assert cut.choices[0].message.content == expected
        assert cut.choices[0].finish_reason == "stop"
        assert cut.usage.completion_tokens < 24


def test_a_seed_makes_sampling_repeatable(site):
    """Equal seeds give equal texts, alone or not; another seed gives another."""
    client = site.server.openai(site.acme)
    options = {"temperature": 1.5, "max_tokens": 32, "extra_body": {"top_k": 50, "min_p": 0.001}}

    first, second = answer(client, BASE, seed=7, **options), answer(client, BASE, seed=7, **options)

    assert first == second
    assert answer(client, BASE, seed=8, **options) != first


@pytest.mark.parametrize("model", [BASE, "tickets"])
def test_choices_differ_and_are_repeatable(site, model):
    """With a seed, three choices are three texts, the first of them what one alone is; streamed, they are the same."""
    client = site.server.openai(site.acme)
    options = {"model": model, "messages": MESSAGES, "temperature": 1.5, "max_tokens": 24, "seed": 11}
    whole = client.chat.completions.create(n=3, **options)
    chunks = streamed(client, n=3, stream_options={"include_usage": True}, **options)

    texts = [choice.message.content for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert client.chat.completions.create(**options).choices[0].message.content == texts[0]
    of_choice = [[c for chunk in chunks for c in chunk.choices if c.index == index] for index in range(3)]
    assert ["".join(choice.delta.content or "" for choice in choices) for choices in of_choice] == texts
    reasons = [[choice.finish_reason for choice in choices if choice.finish_reason] for choices in of_choice]
    assert reasons == [[choice.finish_reason] for choice in whole.choices]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.prompt_tokens == client.chat.completions.create(**options).usage.prompt_tokens


def test_choices_of_a_long_prompt_compute_it_once(site):
    """What the others have in full pages comes from the cache, though all were asked for at once."""
    client, before = site.server.openai(site.acme), site.server.engine().status
    prompt = "Nobody has asked this of the server before. " * 5
    client.completions.create(model="short", prompt=prompt, n=4, max_tokens=2)
    after = site.server.engine().status

    computed, cached = (
        (after.prompt_tokens - before.prompt_tokens),
        (after.cached_prompt_tokens - before.cached_prompt_tokens),
    )
    assert computed == 4 * len(prompt)
    assert cached == 3 * (len(prompt) // 16 * 16)


def test_completions_of_several_prompts_are_what_each_is_alone(site):
    """As texts or as token ids, with the prompt in front where it is asked for, and the best of several."""
    client = site.server.openai(site.acme)
    options = {"model": "short", "temperature": 0, "max_tokens": 8}
    alone = [client.completions.create(prompt=prompt, **options).choices[0].text for prompt in ("Hello", "Bye")]

    together = client.completions.create(prompt=["Hello", "Bye"], echo=True, **options)
    by_ids = client.completions.create(prompt=[[3 + ord(c) - 33 for c in word] for word in ("Hello", "Bye")], **options)
    best = client.completions.create(model="short", prompt="Hello", n=1, best_of=3, max_tokens=8)

    assert [choice.text for choice in together.choices] == ["Hello" + alone[0], "Bye" + alone[1]]
    assert [choice.text for choice in by_ids.choices] == alone
    assert (len(best.choices), best.usage.prompt_tokens, best.usage.completion_tokens) == (1, 5, 24)


def test_completions_take_text_or_token_ids(site):
    """Both forms of the same prompt give the same text, streamed or not; 16 tokens unless told otherwise."""
    client = site.server.openai(site.acme)
    by_text = client.completions.create(model="short", prompt="Hello", temperature=0)
    # The tiny tokenizer has one id per byte, the printable ones from 3 on.
    by_ids = client.completions.create(model="short", prompt=[3 + ord(c) - 33 for c in "Hello"], temperature=0)
    stream = client.completions.create(model="short", prompt="Hello", temperature=0, stream=True)

    assert by_text.choices[0].text == by_ids.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in stream) == by_text.choices[0].text
    assert by_text.usage.completion_tokens == 16
    assert by_text.usage.prompt_tokens == 5


def test_cached_tokens_are_told_and_end_at_a_salt(site):
    """A repeated prompt is cached inside the tenant, not for another tenant, and not under another `cache_salt`."""
    prompt = "A prompt that is long enough to fill some pages of the cache. " * 4

    def cached(key, **extra):
        client = site.server.openai(key)
        usage = client.completions.create(model=BASE, prompt=prompt, max_tokens=1, extra_body=extra).usage
        return usage.prompt_tokens_details.cached_tokens

    assert cached(site.acme) == 0
    assert cached(site.acme) > 0
    assert cached(site.globex) == 0
    assert cached(site.acme, cache_salt="a") == 0
    assert cached(site.acme, cache_salt="a") > 0


def test_models_are_the_base_and_ones_own(site):
    """The list and the single entries, by every spelling; nothing of other tenants."""
    client = site.server.openai(site.acme)

    models = {model.id: model for model in client.models.list()}

    assert set(models) == {BASE, "acme/tickets", "acme/short"}
    assert models["acme/tickets"].parent == BASE
    assert models["acme/tickets"].root == "acme/tickets@1"
    assert client.models.retrieve(BASE).id == BASE
    assert client.models.retrieve("acme/tickets").root == "acme/tickets@1"
    assert client.models.retrieve("tickets@1").root == "acme/tickets@1"
    assert [m.id for m in site.server.openai(site.globex).models.list()] == [BASE, "globex/tickets"]


async def test_concurrent_streams_of_all_models_share_batches(site):
    """Async clients of two tenants, all at once: every text is what it is alone, and steps hold several adapters."""
    jobs = [(site.acme, model) for model in (BASE, "tickets", "short")] * 2 + [(site.globex, "tickets")] * 2
    alone = {(key, model): answer(site.server.openai(key), model, max_tokens=64) for key, model in set(jobs)}

    async def run(key, model):
        async with site.server.async_openai(key) as client:
            stream = await client.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=64, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts = await asyncio.gather(*[run(*job) for job in jobs])

    assert texts == [alone[job] for job in jobs]
    assert max(len(step.adapters) for step in site.server.engine().recent_steps) >= 2
    site.server.wait_until_idle()
