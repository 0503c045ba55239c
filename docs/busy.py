"""Traffic of several tenants with many adapters, for pictures of a server at work."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from demo_server import ADAPTERS, Keys, Server, bearer, ensure_tenant, publish

TENANTS = {
    "acme": ("concierge", "ticket-router", "order-json", "returns"),
    "globex": ("house-style", "summaries", "headlines"),
    "umbrella": ("triage", "claims"),
    "wayne": ("field-notes",),
}
SERVER_OPTIONS = (
    *("--kv-cache-bytes", "320MB", "--adapter-device-bytes", "8MB"),
    *("--max-num-seqs", "20", "--max-step-tokens", "128"),
)
"""Small memories, so that there is something to see of loads, evictions and waiting."""

INSTRUCTIONS = "You answer customers of an online shop. Be short, be kind, and never promise what you cannot keep. " * 3
TOPICS = ("a parcel that is late", "a torn jacket", "an invoice", "a gift", "a bicycle", "a lost password")


@contextmanager
def traffic(server: Server, keys: Keys, folder: Path, users: int = 24) -> Iterator[None]:
    """Publish the adapters, then so many users ask without a pause until the block ends."""
    models = [model for tenant in TENANTS for model in _publish(server, keys, folder, tenant)]
    is_over = threading.Event()
    threads = [
        threading.Thread(target=_ask, args=(server.url, models, number, is_over), daemon=True)
        for number in range(users)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _publish(server: Server, keys: Keys, folder: Path, tenant: str) -> Iterator[tuple[str, str]]:
    """(key, model) of each of a tenant's adapters, which are variants of the examples."""
    ensure_tenant(server, keys.operator(), tenant)
    key = keys.tenant(tenant)
    examples = sorted(path for path in ADAPTERS.iterdir() if path.is_dir())
    for number, name in enumerate(TENANTS[tenant]):
        variant = folder / f"{tenant}-{name}"
        shutil.copytree(examples[number % len(examples)], variant, dirs_exist_ok=True)
        config = variant / "adapter_config.json"
        settings = json.loads(config.read_text())
        settings["lora_alpha"] += 0.01 * (1 + sum(name.encode()) % 97)  # other bytes, hardly another adapter
        config.write_text(json.dumps(settings))
        yield key, publish(server, key, name, variant)["model"]


def _ask(url: str, models: list[tuple[str, str]], number: int, is_over: threading.Event) -> None:
    draw = random.Random(number)  # noqa: S311  nobody has to be surprised
    weights = [1 / (rank + 1) for rank in range(len(models))]
    with httpx.Client(base_url=url, timeout=120) as client:
        while not is_over.is_set():
            key, model = draw.choices(models, weights)[0]
            topic = draw.choice(TOPICS)
            system = {"role": "system", "content": INSTRUCTIONS}
            user = {"role": "user", "content": f"Tell me about {topic}. " * draw.choice((1, 2, 6, 60))}
            body = {"model": model, "messages": [system, user], "max_tokens": draw.randint(24, 160), "ignore_eos": True}
            with suppress(httpx.HTTPError):
                client.post("/v1/chat/completions", headers=bearer(key), json=body)
            time.sleep(draw.random())
