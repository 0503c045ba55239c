"""The whole API over a real registry and blob store; the engine is real where a test starts one, else it stands."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from litestar import Litestar

from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.blobs import ADAPTER_FILES
from loraplex.adapters.database import Database
from loraplex.adapters.registry import VersionInfo
from loraplex.adapters.types import BaseShape, adapter_digest
from loraplex.engine.client import EngineUnavailable
from loraplex.engine.events import Status
from loraplex.engine.generation import Generation
from loraplex.engine.messages import Generate, Inspection, Ready, Site, Snapshot, TokenChunk, Whereabouts
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.app import create_app
from loraplex.platform.manage.resumable import BYTES_FROM_OFFSET
from loraplex.platform.services import Services, assemble
from loraplex.platform.settings import Settings
from loraplex.platform.tenants import TenantDirectory

IDLE = Status(
    steps=7, running=0, waiting=0, pages_total=64, pages_used=0, pages_cached=0, preemptions=0, prompt_tokens=0,
    cached_prompt_tokens=0, generated_tokens=0, drafted_tokens=0, accepted_tokens=0, adapter_loads=0,
    adapter_evictions=0, adapter_device_bytes_used=0, adapter_pinned_bytes=0, adapter_host_bytes_used=0,
)  # fmt: skip


VERSION = VersionInfo(
    adapter_id="a1", tenant_id="t1", tenant="acme", name="bot", base_model="tiny", number=7, digest="d" * 64,
    size_bytes=1, max_rank=8, targets=("q_proj",), state="ready", state_reason="",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip
"""For what needs no database."""


@dataclass
class StandingEngine:
    """An engine that loaded its model and answers probes: what the management API needs of one."""

    ready: Ready
    status: Status | None = IDLE
    is_alive: bool = True
    restarts: int = 0
    tokens_per_second: float = 0.0
    progress_at: float = field(default_factory=time.monotonic)
    warmed: list[str] = field(default_factory=list)
    asked: list[Generate] = field(default_factory=list)
    pins: dict[tuple[str, str], float] = field(default_factory=dict)
    forgiven: list[str] = field(default_factory=list)
    quarantined: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    given_up: asyncio.Event = field(default_factory=asyncio.Event)

    def seconds_since_progress(self) -> float:
        return time.monotonic() - self.progress_at

    def generate(self, request: Generate) -> Generation:
        """Greedy text of its own for every adapter."""
        self.asked.append(request)
        generation = Generation(request, lambda request_id: None)
        logprob = -1.0 if request.adapters else -2.0
        chunk = TokenChunk(request.request_id, [5], [logprob], "length")
        asyncio.get_running_loop().call_soon(generation.deliver, chunk)
        return generation

    def warm(self, digest: str) -> None:
        self.warmed.append(digest)

    async def inspect(self) -> Inspection:
        raise EngineUnavailable("this engine only stands", retry_after_seconds=5)

    async def look(self, after_step: int, after_movement: int) -> Snapshot:
        raise EngineUnavailable("this engine only stands", retry_after_seconds=5)

    def forgive(self, digest: str) -> None:
        self.forgiven.append(digest)

    def pin(self, adapter: str, owner: str, until: float) -> asyncio.Future[Any]:
        """Asked for and not answered, as by an engine that is down."""
        self.pins[adapter, owner] = until
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(EngineUnavailable("this engine only stands", retry_after_seconds=5))
        answer.exception()  # as with the real one, it is no news to the event loop where nobody waits
        return answer

    def unpin(self, adapter: str, owner: str) -> None:
        self.pins.pop((adapter, owner), None)

    async def stop(self) -> None:
        self.is_alive = False

    async def locate(self, adapters: Any = None) -> list[Whereabouts]:
        raise EngineUnavailable("this engine only stands", retry_after_seconds=5)


@dataclass(frozen=True)
class Api:
    """A running application and keys of two tenants and an operator."""

    app: Litestar
    client: httpx.AsyncClient
    services: Services
    drain: asyncio.Event
    keys: dict[str, str]

    def auth(self, who: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[who]}"}

    async def tenant_id(self, slug: str) -> str:
        return (await self.services.tenants.get_tenant(slug)).id

    async def upload(self, who: str, name: str, folder: Path, **more: bytes) -> Any:
        """`more`: optional parts of the form."""
        files = {
            "config": ("adapter_config.json", (folder / "adapter_config.json").read_bytes()),
            "weights": ("adapter_model.safetensors", (folder / "adapter_model.safetensors").read_bytes()),
            **more,
        }
        return await self.client.post(f"/api/v1/adapters/{name}/versions", files=files, headers=self.auth(who))

    async def open_upload(self, who: str, name: str, folder: Path) -> Any:
        body = {"adapter": name, "files": announced(folder)}
        return await self.client.post("/api/v1/uploads", json=body, headers=self.auth(who))

    async def finish_upload(self, who: str, upload_id: str, folder: Path) -> Any:
        """Send what is missing of an upload, each file in two pieces, and complete it."""
        upload = f"/api/v1/uploads/{upload_id}"
        state = (await self.client.get(upload, headers=self.auth(who))).json()
        for file in state["files"]:
            content, offset = (folder / file["name"]).read_bytes(), file["offset"]
            middle = (offset + len(content)) // 2
            for start, end in ((offset, middle), (middle, len(content))):
                headers = self.auth(who) | {"content-type": BYTES_FROM_OFFSET, "upload-offset": str(start)}
                if start < end:
                    url = f"{upload}/files/{file['name']}"
                    sent = await self.client.patch(url, content=content[start:end], headers=headers)
                    assert sent.status_code == 204, sent.text
        return await self.client.post(f"{upload}/complete", headers=self.auth(who))


def announced(folder: Path) -> list[dict[str, Any]]:
    """A folder's files as an upload announces them."""
    contents = {name: (folder / name).read_bytes() for name in ADAPTER_FILES}
    return [
        {"name": name, "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]


def bad_files(size_bytes: int = 10) -> list[dict[str, Any]]:
    """Fit to be announced, never to be completed."""
    return [{"name": name, "size_bytes": size_bytes, "sha256": "0" * 64} for name in ADAPTER_FILES]


def code(response: Any) -> tuple[int, str]:
    """Status and code of an error."""
    return response.status_code, response.json()["error"]["code"]


def refusal(response: Any) -> tuple[int, str, str]:
    """Status, code and field of an error."""
    return *code(response), response.json()["error"]["param"]


def stored_digests(services: Services) -> set[str]:
    """Of all blobs, each computed anew from its bytes. Fails for one that has another's name."""
    digests = {directory.name for directory in services.settings.adapters_dir.glob("blobs/*/*")}
    for digest in digests:
        stored = services.blobs.open(digest)
        assert adapter_digest(stored.spec, hashlib.sha256(stored.weights_path.read_bytes()).hexdigest()) == digest
    return digests


@asynccontextmanager
async def run_api(
    database: Database,
    folder: Path,
    model: Path,
    *,
    engine: Any = None,
    keys: dict[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Api]:
    """Tenants acme and globex, with keys `acme`, `globex` (both scopes), `acme-chat` (inference) and `operator`.

    keys: of an application that ran before on the same database and folder."""
    services = await make_services(database, folder, model, engine=engine, **settings)
    drain = asyncio.Event()
    app = create_app(services, drain)
    keys = keys or await _make_keys(services.tenants)
    # In this loop, where Litestar's own test client would run the app in another one, apart from the engine's socket.
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        yield Api(app, client, services, drain, keys)
    await services.ledger.close()
    await services.templates.close()
    await services.grammars.close()


async def make_services(
    database: Database, folder: Path, model: Path, *, engine: Any = None, **settings: Any
) -> Services:
    """The parts of a server, whose database and folder another one may have used before."""
    engine = engine or StandingEngine(ready_of(lora_shape(ModelConfig.from_folder(model))))
    config = Settings(data_dir=folder, served_model_name="tiny", **settings)
    services = assemble(config, database, engine, model)
    await register_base_model(database, "tiny", services.base_shape.digest, str(model))
    return services


async def _make_keys(tenants: TenantDirectory) -> dict[str, str]:
    await tenants.create_tenant("acme")
    await tenants.create_tenant("globex")
    wanted = {
        "acme": ("acme", ["inference", "adapters"]),
        "globex": ("globex", ["inference", "adapters"]),
        "acme-chat": ("acme", ["inference"]),
        "acme-adapters": ("acme", ["adapters"]),
        "operator": (None, ["admin"]),
    }
    return {name: (await tenants.create_key(tenant, name, scopes))[1] for name, (tenant, scopes) in wanted.items()}


def ready_of(shape: BaseShape) -> Ready:
    sites = tuple(Site(s.name, s.in_features, tuple((p.module, p.out_features) for p in s.slices)) for s in shape.sites)
    return Ready(
        model_digest="0" * 64, architecture=shape.architecture, vocab_size=shape.vocab_size,
        hidden_size=64, num_layers=shape.num_layers, sites=sites,
        max_model_len=512, eos_token_ids=(2,), device="cpu", dtype="float32",
        kernels="none", num_pages=64, page_tokens=16, kv_cache_bytes=1 << 20,
        adapter_device_bytes=1 << 20,
    )  # fmt: skip
