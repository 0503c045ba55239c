"""The official openai client's Responses API works against a real server, stored and not."""

from __future__ import annotations

import pytest
from e2e.server import BASE, checked, eventually
from openai import BadRequestError, NotFoundError
from pydantic import BaseModel, Field

MODELS = [BASE, "tickets"]
GREEDY = {"temperature": 0, "max_output_tokens": 24}
TOOL = {
    "type": "function",
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"ticket": {"enum": [1, 2]}}, "required": ["ticket"]},
    "strict": True,
}
TEMPLATE = """
{%- if tools %}{{ tools | length }}{% endif %}
{%- for message in messages %}{{ message.role }}:{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{%- endfor %}"""


class Ticket(BaseModel):
    number: int = Field(ge=0, le=99)
    is_open: bool


@pytest.mark.parametrize("model", MODELS)
def test_a_response_says_what_a_chat_says(site, model):
    """By the base and by an adapter; streamed and whole, with the same usage."""
    client = site.server.openai(site.acme)
    chat = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Say something."}], temperature=0, max_tokens=24
    )

    raw = client.responses.with_raw_response.create(model=model, input="Say something.", **GREEDY)
    whole = raw.parse()
    with client.responses.stream(model=model, input="Say something.", **GREEDY) as stream:
        events = list(stream)

    assert whole.output_text == chat.choices[0].message.content
    assert whole.model == chat.model
    assert raw.headers.get("x-adapter-version") == (None if model == BASE else chat.model)
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (chat.usage.prompt_tokens, 24)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    last = events[-1].response
    assert (events[-1].type, last.output_text) == ("response.incomplete", whole.output_text)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == last.output_text


def test_a_conversation_goes_on_by_the_id_of_its_last_response(site):
    """Each turn sees those before it; retrieve, input_items and delete do what they say."""
    client = site.server.openai(site.acme)
    first = client.responses.create(model="tickets", input="One.", **GREEDY)
    with client.responses.stream(model="tickets", input="Two.", previous_response_id=first.id, **GREEDY) as stream:
        second = list(stream)[-1].response

    sent = [{"role": "user", "content": "One."}, *first.output, {"role": "user", "content": "Two."}]
    alone = client.responses.create(model="tickets", input=sent, store=False, **GREEDY)

    assert second.output_text == alone.output_text
    assert second.usage.input_tokens == alone.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(second.id) == second
    items = list(client.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [item.content[0].text for item in items] == ["One.", first.output_text, "Two."]
    client.responses.delete(first.id)
    other = site.server.openai(site.globex)
    for ask in (
        lambda: client.responses.retrieve(first.id),
        lambda: client.responses.retrieve(alone.id),
        lambda: client.responses.create(model=BASE, input="x", previous_response_id=second.id),
        lambda: other.responses.retrieve(second.id),
    ):
        with pytest.raises(NotFoundError):
            ask()
    with pytest.raises(BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(second.id)


def test_a_tool_is_called_and_its_output_sent_back(site):
    """By the stored response or with the whole conversation, which comes to the same."""
    key = site.server.create_tenant("callers")
    site.server.upload(key, "caller", site.loras / "a")
    with site.server.http(key) as http:
        checked(http.put("/api/v1/adapters/caller/versions/1/profile", json={"chat_template": TEMPLATE}))
    client = site.server.openai(key)
    asked = {"role": "user", "content": "Which ticket?"}
    options = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    with client.responses.stream(model="caller", input=[asked], **options) as stream:
        first = stream.get_final_response()
    [call] = first.output
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "open"}]

    assert call.parsed_arguments["ticket"] in (1, 2)
    on = client.responses.create(model="caller", input=outputs, previous_response_id=first.id, **GREEDY)
    alone = client.responses.create(model="caller", input=[asked, *first.output, *outputs], **GREEDY)
    assert on.output_text == alone.output_text
    assert on.usage.input_tokens == alone.usage.input_tokens


def test_pydantic_models_are_parsed(site):
    client = site.server.openai(site.acme)
    options = {"input": "Which ticket?", "text_format": Ticket, "extra_body": {"seed": 1}}
    parsed = client.responses.parse(model="tickets", **options)
    assert isinstance(parsed.output_parsed, Ticket)
    with client.responses.stream(model=BASE, **options) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Ticket)


def test_log_probabilities_are_told_with_the_text(site):
    """The same ones in a stream, one for each token, and none of them is stored."""
    client = site.server.openai(site.acme)
    options = {"model": "tickets", "input": "x", "include": ["message.output_text.logprobs"], "top_logprobs": 2}

    whole = client.responses.create(**options, **GREEDY)
    with client.responses.stream(**options, **GREEDY) as stream:
        events = list(stream)

    told = whole.output[0].content[0].logprobs
    assert len(told) == 24
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in told)
    deltas = [logprob for event in events if event.type == "response.output_text.delta" for logprob in event.logprobs]
    assert [token.token for token in deltas] == [token.token for token in told][: len(deltas)]
    assert len(events[-1].response.output[0].content[0].logprobs) == 24
    assert client.responses.retrieve(whole.id).output[0].content[0].logprobs == []


def test_nothing_is_stored_for_a_client_that_goes_away(site):
    """Its sequence ends, and its response is not found."""
    client = site.server.openai(site.acme)
    options = {"max_output_tokens": 400, "extra_body": {"ignore_eos": True}}
    with client.responses.create(model="tickets", input="Go on.", stream=True, **options) as stream:
        created = next(stream)
    site.server.wait_until_idle()

    def is_found():
        try:
            return bool(client.responses.retrieve(created.response.id))
        except NotFoundError:
            return False

    assert eventually(is_found, lambda found: not found) is False
