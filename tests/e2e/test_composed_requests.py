"""Weighted sums of adapters through the whole server, with the openai client."""

from __future__ import annotations

from typing import NamedTuple

import openai
import pytest
from e2e.server import BASE

OPTIONS = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 16, "temperature": 0}


class Told(NamedTuple):
    """What an answer says, and whose it says that it is."""

    text: str
    model: str
    fingerprint: str
    header: str | None


def ask(client, model, adapters=None):
    """What is told, and how many tokens of the prompt were cached."""
    extra = {"ignore_eos": True} | ({"adapters": adapters} if adapters else {})
    raw = client.chat.completions.with_raw_response.create(model=model, extra_body=extra, **OPTIONS)
    answer, header = raw.parse(), raw.headers.get("x-adapter-version")
    told = Told(answer.choices[0].message.content, answer.model, answer.system_fingerprint, header)
    return told, answer.usage.prompt_tokens_details.cached_tokens


def test_a_sum_is_one_model_in_text_and_in_the_structured_field(site):
    """Both forms give the same answer, which names the sum; its parts alone, and other weights, give others."""
    client = site.server.openai(site.acme)
    summed, _ = ask(client, "tickets*0.6+short*-0.8")
    structured, _ = ask(client, BASE, [{"model": "acme/tickets@1", "weight": 0.6}, {"model": "short", "weight": -0.8}])
    others = [ask(client, model)[0] for model in (BASE, "tickets", "short", "tickets*0.6", "tickets*0.6+short*-0.7")]

    assert summed == structured
    assert summed.model == summed.header == "acme/tickets@1*0.6+acme/short@1*-0.8"
    assert len({told.text for told in [summed, *others]}) == 6
    assert len({told.fingerprint for told in [summed, *others]}) == 6


def test_a_scale_of_one_is_the_adapter_itself(site):
    """The same answer, name, fingerprint and header, and from its cached prefix."""
    client = site.server.openai(site.acme)

    first, _ = ask(client, "tickets*1")
    for told, cached_tokens in (ask(client, "tickets"), ask(client, BASE, [{"model": "tickets"}])):
        assert told == first
        assert cached_tokens > 0


@pytest.mark.parametrize(
    ("model", "adapters", "error", "param"),
    [
        ("tickets+nothing", None, openai.NotFoundError, "model"),
        ("tickets*much", None, openai.BadRequestError, "model"),
        (BASE, [{"model": "nothing"}], openai.NotFoundError, "adapters"),
        (BASE, [{"model": "tickets", "weight": 17}], openai.BadRequestError, "adapters[0].weight"),
        (BASE, [{"model": "tickets"}] * 9, openai.BadRequestError, "adapters"),
        ("short", [{"model": "tickets"}], openai.BadRequestError, "adapters"),
    ],
)
def test_a_sum_that_cannot_be_is_refused_by_its_field(site, model, adapters, error, param):
    """Before anything runs."""
    with pytest.raises(error) as refused:
        ask(site.server.openai(site.acme), model, adapters)
    assert refused.value.param == param
