"""One server for the tests that only send requests: the tiny model, and three tenants with adapters.

The examples are commands, not a package: their folder goes on the path.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bucket_server import Bucket
from e2e.server import BASE, Server, running_server
from hub_server import Hub, running_hub

sys.path.append(str(Path(__file__).parents[2] / "examples"))


@dataclass
class Site:
    """acme has `tickets` (rank 8, all modules) and `short` (rank 2, q and v); globex has `tickets` of its own.

    The tenant default has `sql` and `chat` from the server's command line. acme, globex, default: keys. tickets_digest:
    of acme's. loras: the directory that the server may load from; it holds a PEFT folder a, b and c."""

    server: Server
    acme: str
    globex: str
    default: str
    loras: Path
    tickets_digest: str = ""


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """What the server may import from, beside the bucket `models`: `hf://acme/`."""
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def site(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    hub: Hub,
    bucket: Bucket,
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    loras = folder / "loras"
    a = make_adapter(loras / "a", rank=8, seed=1)
    b = make_adapter(loras / "b", rank=2, modules=("q_proj", "v_proj"), seed=2)
    c = make_adapter(loras / "c", rank=4, seed=3)
    options = {"served_model_name": BASE, "kv_cache_bytes": 32 << 20, "adapter_device_bytes": 32 << 20}
    options |= {"import_sources": "hf://acme/ s3://models/", "hf_endpoint": hub.url, "s3_endpoint": bucket.url}
    modules = f"sql={a}", json.dumps({"name": "chat", "path": str(b), "base_model_name": BASE})
    with running_server(
        tiny_model_dir, folder / "data", bucket.credentials, lora_modules=modules, lora_dirs=str(loras), **options
    ) as server:
        default = server.create_key("default", ["inference"])["secret"]
        site = Site(server, server.create_tenant("acme"), server.create_tenant("globex"), default, loras)
        site.tickets_digest = server.upload(site.acme, "tickets", a)["digest"]
        server.upload(site.acme, "short", b)
        server.upload(site.globex, "tickets", c)
        yield site


@pytest.fixture
def bystander(site: Site) -> Iterator[None]:
    """A stream that runs while the test does, and must end with the text that it has when alone."""
    client = site.server.openai(site.globex)
    options = {"model": "tickets", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "temperature": 0}
    options["extra_body"] = {"ignore_eos": True}
    alone = client.chat.completions.create(**options).choices[0].message.content
    with client.chat.completions.create(stream=True, **options) as stream:
        text = next(stream).choices[0].delta.content
        yield
        text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == alone
