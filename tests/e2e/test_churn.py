"""Acceptance: adapters come, go, move and are deleted under 32 decoding streams, and no stream notices."""

from __future__ import annotations

import asyncio
from itertools import cycle, islice

import pytest
from e2e.server import Server, checked, running_server

pytestmark = pytest.mark.anyio

STREAMS = 32
TOKENS = 96
VERSIONS = 6
ONE_ADAPTER = 2 * 1024 * 8 * 4  # bytes of rank 8 on all modules of the tiny model, fp32


@pytest.fixture(scope="module")
def folders(make_adapter, tmp_path_factory):
    """PEFT folders: six that serve from the start, and more that arrive later."""
    root = tmp_path_factory.mktemp("churn")
    ranks = islice(cycle((8, 4, 2, 8, 1)), 2 * VERSIONS)
    return [make_adapter(root / str(i), rank=rank, seed=i) for i, rank in enumerate(ranks)]


PATHS = {"native": {}, "fallback": {"kernels": "reference"}, "int8": {"quantization": "int8"}}


@pytest.fixture(scope="module", params=PATHS)
def server(request, tiny_model_dir, tmp_path_factory):
    """On every way to compute, with device memory for about three adapters and host memory for two, so that every step
    may have to load."""
    options = {
        "served_model_name": "tiny",
        "dtype": "float32",
        "max_num_seqs": 2 * STREAMS,
        "kv_cache_bytes": 8 << 20,
        "adapter_device_bytes": 3 * ONE_ADAPTER,
        "adapter_host_bytes": 2 * ONE_ADAPTER,
        **PATHS[request.param],
    }
    with running_server(tiny_model_dir, tmp_path_factory.mktemp("churn-data"), **options) as running:
        yield running


def prompt(index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Stream {index}: tell me about the number {index * 37}."}]


async def stream(client, index: int, model: str) -> tuple[str, str]:
    """One greedy stream: the model that answered, and the text."""
    chunks = await client.chat.completions.create(
        model=model,
        messages=prompt(index),
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    answered, text = "", []
    async for chunk in chunks:
        answered = chunk.model
        text.extend(choice.delta.content or "" for choice in chunk.choices)
    return answered, "".join(text)


def churn(server: Server, key: str, folders: list) -> int:
    """Upload, point, call and delete adapters, in a fixed order; the number of changes."""
    changes = 0
    with server.http(key) as client:
        for round_, folder in enumerate(folders):
            number = server.upload(key, "moving", folder)["version"]
            checked(client.put("/api/v1/adapters/moving/aliases/prod", json={"version": number}))
            server.upload(key, f"short-lived-{round_}", folder)
            for model in ("moving", f"short-lived-{round_}"):  # each a load, and so an eviction
                checked(client.post("/v1/completions", json={"model": model, "prompt": "Hi", "max_tokens": 2}))
            checked(client.put("/api/v1/adapters/moving/aliases/prod", json={"version": 1 + round_ % VERSIONS}))
            assert client.delete(f"/api/v1/adapters/short-lived-{round_}").is_success
            changes += 7
        assert client.delete("/api/v1/adapters/doomed").is_success
    return changes + 1


async def test_streams_are_untouched_by_loads_moves_and_deletes(server, folders):
    """Every answer equals its quiet-run answer of the version it was resolved to (fp32), nothing fails or leaks."""
    key = server.create_tenant("acme")
    for folder in folders[:VERSIONS]:
        server.upload(key, "moving", folder)
    server.upload(key, "doomed", folders[0])
    models = ["tiny", "moving", "doomed", *(f"moving@{number}" for number in range(1, VERSIONS + 1))]
    requests = list(enumerate(islice(cycle(models), STREAMS)))

    async with server.async_openai(key) as client:
        streams = [asyncio.create_task(stream(client, index, model)) for index, model in requests]
        changes = await asyncio.to_thread(churn, server, key, folders[VERSIONS:])
        busy = await asyncio.gather(*streams)
        server.wait_until_idle()
        status = server.engine().status
        quiet = {}
        for (index, asked), (answered, _) in zip(requests, busy, strict=True):
            if asked != "doomed":
                quiet[index] = await stream(client, index, answered)

    assert changes == 43
    assert status.adapter_evictions > VERSIONS
    for (index, asked), (answered, text) in zip(requests, busy, strict=True):
        assert len(text) > 0
        if asked == "doomed":
            assert answered == "acme/doomed@1"
        else:
            assert (answered, text) == quiet[index], asked
    doomed = [text for (_, asked), (_, text) in zip(requests, busy, strict=True) if asked == "doomed"]
    assert len(doomed) >= 3


async def test_a_deleted_adapter_answers_no_new_request(server, folders):
    """A stream that runs when its adapter is deleted ends as it would have; the next call is a 404."""
    key = server.create_tenant("globex")
    server.upload(key, "doomed", folders[0])
    server.upload(key, "twin", folders[0])
    async with server.async_openai(key) as client:
        running = await client.chat.completions.create(
            model="doomed",
            messages=prompt(1),
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        first = await anext(aiter(running))
        with server.http(key) as http:
            assert http.delete("/api/v1/adapters/doomed").is_success
            late = http.post("/v1/chat/completions", json={"model": "doomed", "messages": prompt(1)})
        text = "".join([c.delta.content or "" async for chunk in running for c in chunk.choices])
        _, expected = await stream(client, 1, "twin")

    assert first.model == "globex/doomed@1"
    assert late.status_code == 404
    assert late.json()["error"]["code"] == "model_not_found"
    assert text == expected
