"""A bad request fails alone: status, code and message for each, while another request goes on undisturbed."""

import contextlib
import json
import socket

import httpx
import openai
import pytest
from e2e.server import BASE, eventually

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


def post(site, body, key=None, path=CHAT):
    with site.server.http(key or site.acme) as http:
        if isinstance(body, bytes):
            return http.post(path, content=body, headers={"content-type": "application/json"})
        return http.post(path, json=body)


def seen(response):
    """(status, code, param, message) of an error in OpenAI's shape."""
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]
    return response.status_code, body["error"]["code"], body["error"]["param"], body["error"]["message"]


BAD_CHATS = [
    ({"max_tokens": 0}, "invalid_value", "max_tokens", "Invalid value for 'max_tokens': Expected `int` >= 1."),
    ({"max_tokens": -5}, "invalid_value", "max_tokens", "Invalid value for 'max_tokens': Expected `int` >= 1."),
    ({"max_tokens": 10**12}, "invalid_value", "max_tokens", "Expected `int` <= 16777216"),
    ({"max_tokens": 100_000}, "context_length_exceeded", "messages", "maximum context length is 512 tokens"),
    ({"temperature": "hot"}, "invalid_type", "temperature", "Expected `float | null`, got `str`"),
    ({"messages": []}, "invalid_value", "messages", "Expected `array` of length >= 1"),
    ({"n": 10_000}, "invalid_value", "n", "a request has at most 128 choices in all"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function", "Missing required"),
    ({"colour": "red"}, "unknown_parameter", "colour", "Unknown parameter: 'colour'."),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content", "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": "long " * 200}]},
        "context_length_exceeded",
        "messages",
        "This model's maximum context length is 512 tokens",
    ),
]


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "code", "param", "message"), BAD_CHATS)
def test_a_bad_field_is_a_400_that_names_it(site, fields, code, param, message, stream):
    """Each wrong value, streamed or not: the refusal comes before the first byte of a stream."""
    response = post(site, {"model": "tickets", "messages": MESSAGES, "stream": stream} | fields)

    status, *rest, told = seen(response)
    assert (status, *rest) == (400, code, param)
    assert message in told


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing_required_parameter"),
        (b"not json", "invalid_json"),
        (b'{"model": "tickets"', "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[]", "invalid_type"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": "tickets"}', "missing_required_parameter"),
    ],
)
def test_a_body_that_is_no_request_is_a_400(site, body, code):
    """Not JSON, cut off, nested too deeply, or not an object."""
    assert seen(post(site, body))[:2] == (400, code)


def test_a_body_that_is_too_large_is_a_413(site):
    """It is refused by its size, before it is read as anything."""
    assert seen(post(site, b" " * (8 << 20)))[:2] == (413, "request_too_large")


def test_a_prompt_as_long_as_the_context_leaves_no_room(site):
    """512 tokens fill the context of 512; one token less gets one token of answer."""
    assert seen(post(site, {"model": BASE, "prompt": [5] * 512, "max_tokens": 1}, path="/v1/completions"))[:3] == (
        400,
        "context_length_exceeded",
        "prompt",
    )
    fits = post(site, {"model": BASE, "prompt": [5] * 511, "max_tokens": 1}, path="/v1/completions")
    assert fits.json()["usage"]["completion_tokens"] == 1


def test_a_token_that_does_not_exist_is_a_400(site):
    """The vocabulary has 288 ids."""
    assert seen(post(site, {"model": BASE, "prompt": [288]}, path="/v1/completions"))[:3] == (
        400,
        "invalid_value",
        "prompt",
    )


BAD_NAMES = ["", "..", "../tickets", "acme/../tickets", "/tickets", "acme/", "a/b/c", "tickets@", "tickets@9", "тикеты"]


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("name", [*BAD_NAMES, "nothing", "x" * 10_240, "Tiny", "tickets\0"])
def test_a_name_that_means_nothing_is_a_404(site, name):
    """Malformed, too long, or absent: one answer, with a bounded echo."""
    status, code, param, message = seen(post(site, {"model": name, "messages": MESSAGES}))

    assert (status, code, param) == (404, "model_not_found", "model")
    assert message.endswith("does not exist or you do not have access to it.")
    assert len(message) < 300


def test_a_foreign_adapter_and_a_missing_one_are_the_same_404_byte_for_byte(site):
    """The body for acme's real adapter is the one that the same name has when nobody has it."""
    foreign = post(site, {"model": "acme/short", "messages": MESSAGES}, key=site.globex)
    missing = post(site, {"model": "nobody/short", "messages": MESSAGES}, key=site.globex)
    own_missing = post(site, {"model": "globex/short", "messages": MESSAGES}, key=site.globex)

    assert foreign.status_code == missing.status_code == own_missing.status_code == 404
    assert foreign.content.replace(b"acme/", b"nobody/") == missing.content
    assert own_missing.content.replace(b"globex/", b"nobody/") == missing.content
    volatile = {"x-request-id", "request-id", "date", "content-length", "openai-processing-ms"}
    assert {k: v for k, v in foreign.headers.items() if k not in volatile} == {
        k: v for k, v in missing.headers.items() if k not in volatile
    }


@pytest.mark.parametrize("name", ["acme/short", "acme/nothing", "nobody/short"])
def test_the_list_of_models_gives_nothing_away_either(site, name):
    """GET /v1/models/{name} of a foreign adapter is the 404 of a missing one."""
    with site.server.http(site.globex) as http:
        response = http.get(f"/v1/models/{name}")

    message = f"The model `{name}` does not exist or you do not have access to it."
    assert seen(response) == (404, "model_not_found", "model", message)


def test_keys_that_are_missing_wrong_revoked_or_too_weak(site):
    """401 with one text for every bad key, and 403 for a key without the scope."""
    revoked = site.server.create_key("acme", ["inference"])
    assert post(site, {"model": BASE, "messages": MESSAGES, "max_tokens": 1}, key=revoked["secret"]).status_code == 200
    with site.server.http() as admin:
        assert admin.delete(f"/api/v1/admin/keys/{revoked['id']}").status_code == 200

    body = {"model": BASE, "messages": MESSAGES}
    missing = httpx.post(f"{site.server.url}{CHAT}", json=body)
    wrong = post(site, body, key="lk_wrong")
    gone = post(site, body, key=revoked["secret"])
    weak = post(site, body, key=site.server.create_key("acme", ["adapters"])["secret"])

    assert seen(missing)[:2] == (401, None)
    assert missing.headers["www-authenticate"] == "Bearer"
    assert seen(wrong)[:2] == (401, "invalid_api_key")
    assert gone.json() == wrong.json()
    assert seen(weak)[:2] == (403, "insufficient_permissions")


def test_the_client_library_raises_its_own_errors(site):
    """The openai package finds code, param and request id where it looks for them."""
    client = site.server.openai(site.acme)

    with pytest.raises(openai.NotFoundError) as absent:
        client.chat.completions.create(model="nothing", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model=BASE, messages=MESSAGES, temperature=9)
    with pytest.raises(openai.AuthenticationError):
        site.server.openai("lk_wrong").models.list()

    assert absent.value.code == "model_not_found"
    assert absent.value.request_id
    assert (hot.value.code, hot.value.param) == ("invalid_value", "temperature")


LONG = {"messages": MESSAGES, "max_tokens": 480, "temperature": 0, "ignore_eos": True}
CLIENTS = 20


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize(("stream", "n"), [(False, 1), (True, 1), (True, 3)])
def test_clients_that_hang_up_free_their_pages(site, stream, n):
    """Many clients at once, gone in mid-stream or while they wait: the engine forgets all that they asked for."""
    before = hung_up(site)
    body = json.dumps({"model": "tickets", "stream": stream, "n": n, **LONG}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {site.acme}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with contextlib.ExitStack() as connections:
        for _ in range(CLIENTS):
            connection = socket.create_connection(site.server.address, timeout=60)
            connections.enter_context(connection).sendall(head.encode() + body)
        if stream:
            assert connection.recv(1)
        else:
            eventually(lambda: acme_sequences(site), lambda running: running > 0)

    eventually(lambda: acme_sequences(site), lambda running: running == 0)
    assert hung_up(site) > before


def hung_up(site):
    """How many requests have ended because their client was gone."""
    with site.server.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if 'finish_reason="client_closed"' in line and "_total" in line
    )


def acme_sequences(site):
    """How many sequences run with acme's adapter `tickets`."""
    engine = site.server.engine()
    return sum(site.tickets_digest in sequence.adapters for sequence in engine.running)


def test_an_adapter_that_is_deleted_finishes_its_requests(site, make_adapter, tmp_path):
    """The stream that runs ends with its whole text; the next request for the name is a 404."""
    site.server.upload(site.acme, "doomed", make_adapter(tmp_path / "doomed", rank=4, seed=9))
    client = site.server.openai(site.acme)
    body = {**LONG, "max_tokens": 300}
    body["extra_body"] = {"ignore_eos": body.pop("ignore_eos")}
    alone = client.chat.completions.create(model="doomed", **body).choices[0].message.content

    with client.chat.completions.create(model="doomed", stream=True, **body) as stream:
        text = next(stream).choices[0].delta.content
        with site.server.http(site.acme) as http:
            assert http.delete("/api/v1/adapters/doomed").status_code == 204
        refused = post(site, {"model": "doomed", "messages": MESSAGES})
        text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert seen(refused)[:2] == (404, "model_not_found")
    assert text == alone


@pytest.mark.usefixtures("bystander")
def test_all_pages_come_back_after_every_kind_of_refusal(site):
    """A burst of bad requests beside good ones leaves nothing behind in the engine."""
    for fields, _, _, _ in BAD_CHATS:
        assert post(site, {"model": "tickets", "messages": MESSAGES} | fields).status_code == 400
    assert site.server.engine().status.running <= 1


def test_the_server_is_idle_in_the_end(site):
    """After everything above no page is held and nothing runs."""
    site.server.wait_until_idle()
