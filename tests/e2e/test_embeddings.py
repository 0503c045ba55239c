"""Embeddings, tokens and models' names over HTTP, with the official openai client where it has a word for it."""

import math

import openai
import pytest
from e2e.server import BASE

TEXTS = ["How do I cook rice?", "Where is my parcel?", "Bonjour"]


def vectors(client, model=BASE, given=TEXTS, **options):
    return [item.embedding for item in client.embeddings.create(model=model, input=given, **options).data]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def token_ids(site, text, model=BASE):
    with site.server.http(site.acme) as http:
        return http.post("/tokenize", json={"model": model, "prompt": text}).json()["tokens"]


@pytest.mark.parametrize(("model", "canonical"), [(BASE, BASE), ("tickets", "acme/tickets@1")])
def test_floats_and_base64_are_the_same_vectors(site, model, canonical):
    """Of length 1, in the order of the inputs, each as it is alone; the client's default is base64."""
    client = site.server.openai(site.acme)
    raw = client.embeddings.with_raw_response.create(model=model, input=TEXTS)
    answer = raw.parse()

    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.model == canonical
    assert raw.headers.get("x-adapter-version") == (None if canonical == BASE else canonical)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(token_ids(site, text)) for text in TEXTS)
    by_base64 = [item.embedding for item in answer.data]
    for vector, alone in zip(by_base64, vectors(client, model, encoding_format="float", user="u"), strict=True):
        assert len(vector) == 64
        assert math.isclose(dot(vector, vector), 1, abs_tol=1e-5)
        assert dot(vector, alone) > 0.99999
    assert dot(vectors(client, model, TEXTS[0], dimensions=64)[0], by_base64[0]) > 0.99999


def test_text_and_token_ids_are_the_same_input(site):
    """One or many; an adapter gives vectors of its own."""
    client = site.server.openai(site.acme)
    ids = [token_ids(site, text) for text in TEXTS]
    base = vectors(client)

    for given, expected in ((ids, base), (ids[1], base[1:2]), (TEXTS[1], base[1:2])):
        for vector, wanted in zip(vectors(client, BASE, given), expected, strict=True):
            assert dot(vector, wanted) > 0.99999
    assert dot(vectors(client, "tickets")[0], base[0]) < 0.999


def test_long_inputs_are_cut_to_their_end(site):
    """vLLM's field: to so many tokens, or with -1 to what the model takes."""
    client = site.server.openai(site.acme)
    ids = token_ids(site, "ab" * 400)

    for most, kept in ((5, ids[-5:]), (-1, ids[-512:])):
        answer = client.embeddings.create(model=BASE, input="ab" * 400, extra_body={"truncate_prompt_tokens": most})
        assert answer.usage.prompt_tokens == len(kept)
        assert dot(answer.data[0].embedding, vectors(client, BASE, kept)[0]) > 0.99999


def test_more_inputs_than_the_engine_takes_at_once(site):
    """They wait their turn, and come back in order."""
    client = site.server.openai(site.acme)
    many = vectors(client, "tickets", [f"{number}" for number in range(50)])

    for number in (0, 17, 49):
        assert dot(many[number], vectors(client, "tickets", str(number))[0]) > 0.99999


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": ""}, "invalid_value", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input[1]"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": ["a", 1]}, "invalid_type", "input"),
        ({"input": [[1], [999]]}, "invalid_value", "input[1]"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
        ({"input": ["a", "b" * 600]}, "context_length_exceeded", "input[1]"),
        ({"truncate_prompt_tokens": 0}, "invalid_value", "truncate_prompt_tokens"),
        ({"dimensions": 32}, "unsupported_value", "dimensions"),
        ({"encoding_format": "int8"}, "invalid_value", "encoding_format"),
        ({"colour": "red"}, "unknown_parameter", "colour"),
        ({"model": "globex/tickets"}, "model_not_found", "model"),
    ],
)
def test_what_cannot_be_embedded_is_refused(site, fields, code, param):
    """By the field at fault."""
    body = {"model": BASE, "input": "a"} | fields
    with site.server.http(site.acme) as http:
        response = http.post("/v1/embeddings", json=body)

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404 if "model" in fields else 400, code, param)
    assert error["type"] == "invalid_request_error"


def test_tokens_of_text_and_conversations(site):
    """vLLM's shapes: there and back again, and a conversation as a completion of it runs."""
    with site.server.http(site.acme) as http:
        body = {"model": "tickets", "prompt": "Hi!<|im_end|>", "return_token_strs": True}
        told = http.post("/tokenize", json=body).json()
        assert told == {
            "count": 4,
            "max_model_len": 512,
            "tokens": [42, 75, 3, 2],
            "token_strs": ["H", "i", "!", "<|im_end|>"],
        }
        back = http.post("/detokenize", json={"tokens": told["tokens"]})
        assert back.json() == {"prompt": "Hi!<|im_end|>"}

        messages = [{"role": "user", "content": "Hi!"}]
        told = http.post("/tokenize", json={"model": BASE, "messages": messages}).json()
        body = {"model": BASE, "messages": messages, "max_tokens": 1}
        assert told["count"] == http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
        assert told["token_strs"] is None


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/tokenize", {}, "missing_required_parameter", "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "invalid_value", "prompt"),
        ("/tokenize", {"prompt": "a", "model": "nothing"}, "model_not_found", "model"),
        ("/detokenize", {"tokens": [288]}, "invalid_value", "tokens"),
        ("/detokenize", {"tokens": [-1]}, "invalid_value", "tokens[0]"),
    ],
)
def test_what_has_no_tokens_is_refused(site, path, body, code, param):
    """By the field at fault; and without a key nothing is told."""
    with site.server.http(site.acme) as http:
        error = http.post(path, json=body).json()["error"]
        assert (error["code"], error["param"]) == (code, param)
        assert http.post(path, json=body, headers={"authorization": ""}).status_code == 401


def test_an_adapter_is_deleted_by_its_name(site, make_adapter, tmp_path):
    """Once, by its owner, as a whole; the base and what is not there stay as they are."""
    client = site.server.openai(site.acme)
    site.server.upload(site.acme, "brief", make_adapter(tmp_path / "brief", rank=2, modules=("v_proj",), seed=71))

    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete(BASE)
    with pytest.raises(openai.BadRequestError, match="without @"):
        client.models.delete("brief@1")
    with pytest.raises(openai.NotFoundError) as foreign:
        site.server.openai(site.globex).models.delete("acme/brief")
    with pytest.raises(openai.PermissionDeniedError):
        site.server.openai(site.server.create_key("acme", ["inference"])["secret"]).models.delete("brief")
    assert client.models.delete("acme/brief").model_dump() == {"id": "acme/brief", "object": "model", "deleted": True}
    with pytest.raises(openai.NotFoundError) as gone:
        client.models.delete("acme/brief")
    assert gone.value.body == foreign.value.body
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("brief")
