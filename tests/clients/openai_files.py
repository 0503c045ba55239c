"""OpenAI's Python client: embeddings, files, and batches of requests that are read from one and answered in another."""

from __future__ import annotations

import io
import json
import math
import time
from typing import Any

import openai
from openai_asking import GREEDY, client, text_of
from report import ADAPTER, BASE, MODELS, feature, holds, same

BATCH_SECONDS = 120


def embeddings(model: str) -> None:
    with feature("embeddings, base64 and float", model):
        packed = client.embeddings.create(model=model, input=["one", "two"]).data  # the client asks for base64
        plain = client.embeddings.create(model=model, input=["one", "two"], encoding_format="float").data
        same([item.index for item in packed], [0, 1])
        holds(distance(packed[1].embedding, plain[1].embedding) < 1e-4, "the same in both forms")
        holds(abs(math.hypot(*plain[0].embedding) - 1) < 1e-4, "of length 1")
        holds(distance(plain[0].embedding, plain[1].embedding) > 1e-3, "one is not two")
        (alone,) = client.embeddings.create(model=model, input="two").data
        holds(distance(alone.embedding, plain[1].embedding) < 1e-4, "the same alone")
        if model == ADAPTER:
            (of_base,) = client.embeddings.create(model=BASE, input="two").data
            holds(distance(alone.embedding, of_base.embedding) > 1e-3, "the adapter has a part in it")


def distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def line(custom_id: str, model: str) -> dict[str, Any]:
    body = {"model": model, **GREEDY}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def batches() -> None:
    lines = [*(line(str(index), MODELS[index % 2]) for index in range(4)), line("bad", "absent")]
    content = "\n".join(map(json.dumps, lines)).encode()
    with feature("files"):
        file = client.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")
        same((file.bytes, file.filename), (len(content), "lines.jsonl"))
        same(client.files.content(file.id).read(), content)
        holds(file.id in [listed.id for listed in client.files.list()], "listed")
        same(client.files.delete(file.id).deleted, True)
        try:
            client.files.retrieve(file.id)
        except openai.NotFoundError:
            pass
        else:
            raise AssertionError("a deleted file is there")
    with feature("batches"):
        file = client.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        deadline = time.monotonic() + BATCH_SECONDS
        while batch.status in ("validating", "in_progress", "finalizing") and time.monotonic() < deadline:
            time.sleep(0.5)
            batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        same((batch.status, counts.total, counts.completed, counts.failed), ("completed", 5, 4, 1))
        answers = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
        texts = {a["custom_id"]: a["response"]["body"]["choices"][0]["message"]["content"] for a in answers}
        same(texts, {str(index): text_of(MODELS[index % 2]) for index in range(4)})
        (failed,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
        same((failed["custom_id"], failed["response"]["status_code"]), ("bad", 404))
        holds(batch.id in [listed.id for listed in client.batches.list()], "listed")
