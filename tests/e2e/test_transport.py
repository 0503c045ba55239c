"""What lies below the requests: compressed bodies, many requests on one connection, headers of every answer."""

import gzip
import http.client
import io
import json
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e.server import BASE, eventually

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Say something."}]
BODY = {"model": BASE, "messages": MESSAGES, "max_tokens": 4, "temperature": 0}


class Wire(io.BytesIO):
    """All that came over a connection; an answer that has been read does not close it."""

    def close(self):
        pass

    def makefile(self, _mode):
        return self

    def answers(self, methods):
        for method in methods:
            answer = http.client.HTTPResponse(self, method=method)
            answer.begin()
            yield answer.status, answer.headers, answer.read()


def request(site, name, method="POST", path=CHAT, body=None, **headers):
    """As bytes; its answer has `name` as its id."""
    content = b"" if body is None else json.dumps(body).encode()
    head = {"host": "x", "authorization": f"Bearer {site.acme}", "x-request-id": name} | headers
    head |= {"content-length": str(len(content))} if content else {}
    lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in head.items()), "", ""]
    return "\r\n".join(lines).encode() + content


def requests_of(site, caller):
    """Slow and fast ones, streams, errors and large bodies, the last of which ends the connection."""
    kinds = [
        {"body": BODY | {"max_tokens": 40, "model": "tickets"}},
        {"method": "GET", "path": "/v1/models"},
        {"body": BODY | {"stream": True}},
        {"body": BODY | {"temperature": 9}},
        {"body": BODY | {"messages": [{"role": "user", "content": "x" * 200_000}]}},
        {"method": "GET", "path": "/livez"},
        {"path": "/v1/embeddings", "body": {"model": "short", "input": "Hello"}},
        {"method": "GET", "path": "/nowhere"},
        {"body": BODY, "connection": "close"},
    ]
    return [(f"{caller}-{index}", kind) for index, kind in enumerate(kinds)]


def test_requests_that_are_written_at_once_are_answered_in_order(site):
    """On each of several connections at the same time, whole and each to its own request."""

    def talk(caller):
        asked = requests_of(site, caller)
        with socket.create_connection(site.server.address, timeout=60) as connection:
            connection.sendall(b"".join(request(site, name, **kind) for name, kind in asked))
            received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        return list(Wire(received).answers([kind.get("method", "POST") for _, kind in asked]))

    with ThreadPoolExecutor(6) as callers:
        for caller, answers in enumerate(callers.map(talk, range(6))):
            assert [headers["x-request-id"] for _, headers, _ in answers] == [f"{caller}-{i}" for i in range(9)]
            assert [status for status, _, _ in answers] == [200, 200, 200, 400, 400, 200, 200, 404, 200]
            assert json.loads(answers[0][2])["usage"]["completion_tokens"] == 40
            assert answers[2][2].endswith(b"data: [DONE]\n\n")
            assert json.loads(answers[4][2])["error"]["code"] == "context_length_exceeded"
            assert json.loads(answers[8][2])["usage"]["completion_tokens"] == 4


def hung_up(site):
    """How many chats have ended because their client was gone."""
    with site.server.http() as client:
        lines = client.get("/metrics").text.splitlines()
    ended = 'endpoint="chat",finish_reason="client_closed"'
    return sum(float(line.split()[-1]) for line in lines if ended in line and "_total" in line)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_all_its_requests_with_it(site, stream):
    """Also those that stand behind one that runs, which then ends too."""
    before = hung_up(site)
    long = BODY | {"model": "tickets", "max_tokens": 400, "ignore_eos": True, "stream": stream}
    with socket.create_connection(site.server.address, timeout=60) as connection:
        connection.sendall(b"".join(request(site, f"gone-{index}", body=long) for index in range(3)))
        eventually(lambda: site.server.engine().status.running, lambda running: running == 1)

    eventually(lambda: hung_up(site), lambda now: now == before + 1)
    site.server.wait_until_idle()


def test_what_is_no_request_gets_openais_error(site):
    """And the end of the connection; behind an answer that is under way there is no room for one."""
    with socket.create_connection(site.server.address, timeout=60) as connection:
        connection.sendall(b"NOT HTTP\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    [(status, headers, body)] = Wire(received).answers(["GET"])
    assert (status, headers["connection"], json.loads(body)["error"]["type"]) == (400, "close", "invalid_request_error")


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_requests_are_read(site, encoding, compress):
    """As if they were plain, with the same bounds."""
    with site.server.http(site.acme) as client:

        def post(body, **headers):
            return client.post(CHAT, content=body, headers={"content-type": "application/json", **headers})

        plain = post(json.dumps(BODY).encode())
        packed = post(compress(json.dumps(BODY).encode()), **{"content-encoding": encoding})
        assert packed.json()["choices"] == plain.json()["choices"]

        for body, named, status, code in (
            (compress(b" " * (64 << 20)), encoding, 413, "request_too_large"),
            (compress(b"{}")[:-3], encoding, 400, "invalid_content_encoding"),
            (b"{}", encoding, 400, "invalid_content_encoding"),
            (compress(b"{"), encoding, 400, "invalid_json"),
            (b"{}", "br", 415, "unsupported_content_encoding"),
        ):
            refused = post(body, **{"content-encoding": named})
            assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


def test_inference_tells_how_long_it_took(site):
    """Answers, streams and errors: a whole number of milliseconds, and the request's id."""
    with site.server.http(site.acme) as client:
        for fields in ({}, {"stream": True}, {"temperature": 9}):
            headers = client.post(CHAT, json=BODY | fields).headers
            assert headers["openai-processing-ms"].isdigit()
            assert headers["x-request-id"].startswith("req_")
        assert "openai-processing-ms" not in client.get("/livez").headers
