"""Batches through OpenAI's client, on real servers, one of which is killed half way."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from batch_files import CHAT, COMPLETIONS, by_custom_id, jsonl, request
from database_fixtures import execute
from e2e.server import Server, eventually, running_server
from e2e.test_restart import kill_everything
from openai import ConflictError, NotFoundError, OpenAI
from openai.types import Batch, BatchRequestCounts
from sqlalchemy import make_url

OPTIONS = {"served_model_name": "tiny", "dtype": "float32", "kv_cache_bytes": 8 << 20}
ENDED = ("completed", "failed", "expired", "cancelled")


def create(client: OpenAI, entries: list[dict], endpoint: str = COMPLETIONS) -> Batch:
    file = client.files.create(file=("in.jsonl", jsonl(entries)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"run": "nightly"}
    )


def ended(client: OpenAI, batch: Batch, seconds: float = 60) -> Batch:
    return eventually(lambda: client.batches.retrieve(batch.id), lambda now: now.status in ENDED, seconds=seconds)


def wait_until_half(client: OpenAI, batch: Batch, lines: int) -> Batch:
    def is_half(now: Batch) -> bool:
        assert now.status not in ENDED, "it was too fast to be killed half way"
        return now.request_counts.completed >= lines // 2

    return eventually(lambda: client.batches.retrieve(batch.id), is_half, seconds=120)


def output(client: OpenAI, file_id: str | None) -> dict[str, dict]:
    return {} if file_id is None else by_custom_id(client.files.content(file_id).read())


def publish(server: Server, key: str, make_adapter: Callable[..., Path], folder: Path, count: int) -> list[str]:
    """Adapters of different ranks; their names."""
    names = [f"bot-{index}" for index in range(count)]
    for index, name in enumerate(names):
        server.upload(
            key, name, make_adapter(folder / name, rank=2 + index % 3, seed=index, modules=["q_proj", "v_proj"])
        )
    return names


def input_of(lines: int, models: list[str]) -> list[dict]:
    """Lines that go round the models, and differ."""
    return [
        request(f"line {index}", models[index % len(models)], max_tokens=12, ignore_eos=True) for index in range(lines)
    ]


def check_answers(client: OpenAI, batch: Batch, entries: list[dict]) -> None:
    """Each line is answered once, by its adapter, with the text that the same request has over HTTP."""
    answers = output(client, batch.output_file_id)
    assert batch.error_file_id is None
    assert answers.keys() == {entry["custom_id"] for entry in entries}
    assert batch.request_counts.to_dict() == {"total": len(entries), "completed": len(entries), "failed": 0}
    for entry in entries:
        assert answers[entry["custom_id"]]["response"]["body"]["model"] == f"acme/{entry['body']['model']}@1"
    for entry in entries[:: len(entries) // 5]:
        body = dict(entry["body"])
        ignore_eos = {"ignore_eos": body.pop("ignore_eos")}
        alone = client.completions.create(**body, extra_body=ignore_eos)
        assert answers[entry["custom_id"]]["response"]["body"]["choices"][0]["text"] == alone.choices[0].text


def test_openais_client_runs_a_batch(site):
    """Upload, create, look, download, list, cancel and delete, as OpenAI's documentation has it; and other tenants'
    files and batches are not there."""
    client, foreign = site.server.openai(site.acme), site.server.openai(site.globex)
    messages = [{"role": "user", "content": "hi"}]
    options = {"messages": messages, "max_tokens": 4, "temperature": 0}
    entries = [
        request("base", "tiny", CHAT, **options),
        request("adapter", "tickets", CHAT, **options),
        request("foreign", "globex/tickets", CHAT, **options),
    ]
    created = create(client, entries, CHAT)
    batch = ended(client, created)

    assert (batch.status, batch.metadata) == ("completed", {"run": "nightly"})
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    answers, errors = output(client, batch.output_file_id), output(client, batch.error_file_id)
    for name, model in (("base", "tiny"), ("adapter", "tickets")):
        alone = client.chat.completions.create(model=model, **options)
        body = answers[name]["response"]["body"]
        assert (body["choices"][0]["message"]["content"], body["model"]) == (
            alone.choices[0].message.content,
            alone.model,
        )
    assert errors["foreign"]["response"]["body"]["error"]["code"] == "model_not_found"
    assert next(iter(client.batches.list(limit=1))).id == batch.id
    assert {batch.output_file_id, batch.input_file_id} <= {file.id for file in client.files.list(limit=2)}
    with pytest.raises(ConflictError):
        client.batches.cancel(batch.id)
    assert client.files.delete(batch.input_file_id).deleted
    for look in (
        lambda: client.files.retrieve(batch.input_file_id),
        lambda: foreign.files.content(batch.output_file_id),
        lambda: foreign.batches.retrieve(batch.id),
    ):
        with pytest.raises(NotFoundError):
            look()

    failed = ended(client, create(client, [request("a", url=CHAT)]))
    assert (failed.status, failed.errors.data[0].line) == ("failed", 1)
    long = [request(str(n), max_tokens=400, ignore_eos=True) for n in range(400)]
    cancelled = ended(client, client.batches.cancel(create(client, long).id))
    assert cancelled.status == "cancelled"
    assert len(output(client, cancelled.error_file_id)) + len(output(client, cancelled.output_file_id)) == 400


def survive(
    model: Path, make_adapter: Callable[..., Path], folder: Path, lines: int, adapters: int, *, wait: bool
) -> BatchRequestCounts:
    """What was counted of a batch when its server was killed half way; the next one answers the rest.

    wait: until the lease of the dead one has ended by itself."""
    with running_server(model, folder / "data", **OPTIONS) as server:
        key = server.create_tenant("acme")
        entries = input_of(lines, publish(server, key, make_adapter, folder, adapters))
        client = server.openai(key)
        batch = create(client, entries)
        wait_until_half(client, batch, lines)
        kill_everything(server)
    if not wait:
        with closing(sqlite3.connect(folder / "data" / "loraplex.db", isolation_level=None)) as database:
            database.execute("UPDATE batches SET due_at = created_at")
    with running_server(model, folder / "data", **OPTIONS) as server:
        client = server.openai(key)
        kept = client.batches.retrieve(batch.id).request_counts
        batch = ended(client, batch, seconds=240)
        check_answers(client, batch, entries)
    return kept


def test_a_batch_survives_kill_dash_nine(tiny_model_dir, make_adapter, tmp_path):
    """Every line is answered once, by its adapter, with the text that it has without a batch."""
    kept = survive(tiny_model_dir, make_adapter, tmp_path, 300, 4, wait=False)
    assert 150 <= kept.completed < 300


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_lines_over_twenty_adapters_survive_kill_dash_nine(tiny_model_dir, make_adapter, tmp_path):
    """Acceptance, at its full size and with the real wait for the lease of the dead server."""
    kept = survive(tiny_model_dir, make_adapter, tmp_path, 1000, 20, wait=True)
    print(f"{kept.completed} lines were answered before the kill, 1000 after the restart")
    assert 500 <= kept.completed < 1000


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("empty_database_url", ["postgres"], indirect=True)
def test_another_server_ends_what_a_dead_one_began(empty_database_url, tiny_model_dir, make_adapter, tmp_path):
    """Two servers on one database and one folder of files: the client sees no more of it than a delay."""
    first_dir, second_dir = tmp_path / "first", tmp_path / "second"
    second_dir.mkdir()
    for shared in ("adapters", "files"):
        (first_dir / shared).mkdir(parents=True)
        (second_dir / shared).symlink_to(first_dir / shared)
    options = OPTIONS | {"database_url": empty_database_url}
    with running_server(tiny_model_dir, first_dir, **options) as first:
        key = first.create_tenant("acme")
        entries = input_of(200, publish(first, key, make_adapter, tmp_path, 3))
        batch = create(first.openai(key), entries)
        wait_until_half(first.openai(key), batch, len(entries))
        kill_everything(first)
    with running_server(tiny_model_dir, second_dir, **options) as second:
        execute(make_url(empty_database_url), "UPDATE batches SET due_at = created_at")  # the lease of the first ends
        client = second.openai(key)
        check_answers(client, ended(client, batch, seconds=120), entries)
