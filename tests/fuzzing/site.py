"""A real server for generated requests: what is on it, sending, and keeping it stocked. Knows the management API."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import requests
from api_running import StandingEngine, ready_of
from e2e.server import BASE, Server, checked, running_server
from fuzzing.bodies import Known
from fuzzing.cases import Operation, Sent, operations_of
from fuzzing.documented import Documented, Undocumented

from loraplex.adapters.database import Database
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.app import create_app
from loraplex.platform.services import assemble
from loraplex.platform.settings import Settings

PATIENCE_SECONDS = 20.0
"""No request takes longer: the context is short, and so is everything that is generated."""

OPTIONS = {
    "served_model_name": BASE, "max_model_len": 64, "max_choices_per_request": 4, "kv_cache_bytes": 16 << 20,
    "adapter_device_bytes": 16 << 20,
    "max_files_per_tenant": 40, "max_batches_per_tenant": 20, "max_open_uploads": 100, "max_imports_per_tenant": 1000,
    "import_sources": "hf://acme/ s3://models/", "hf_endpoint": "http://127.0.0.1:9",
    "s3_endpoint": "http://127.0.0.1:9", "s3_access_key_id": "a", "s3_secret_access_key": "b",
}  # fmt: skip


LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": BASE, "prompt": "a", "max_tokens": 1},
}
"""Of a batch's input."""


class Hang(Undocumented):
    """There was no answer."""


@dataclass
class FuzzSite:
    """A server with the tenants acme and globex, and victim, to whom everything may happen."""

    server: Server
    keys: dict[str | None, str]
    operations: list[Operation]
    documented: Documented
    files: dict[str, bytes]
    folders: dict[str, Path]
    known: Known = field(default_factory=dict)
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._client = httpx.Client(base_url=self.server.url, timeout=PATIENCE_SECONDS)
        self.session = requests.Session()

    def close(self) -> None:
        self._client.close()
        self.session.close()

    def send(self, sent: Sent) -> None:
        """Raises Undocumented for an answer that the document does not have, and Hang for none."""
        headers = sent.headers | self.authorization(sent.who)
        try:
            request = self._client.build_request(
                sent.operation.method.upper(), "/", headers=headers, content=sent.body,
                extensions={"target": sent.target.encode()},  # as it is, where a URL would be made tidy
            )  # fmt: skip
            answer = self._client.send(request)
        except httpx.TimeoutException as error:
            raise Hang(f"no answer within {PATIENCE_SECONDS:g} seconds") from error
        except httpx.TransportError as error:
            raise Undocumented(f"the connection broke: {error!r}") from error
        self.look_at(sent.operation, sent.plain_json, answer.status_code, answer.headers, answer.content)

    def look_at(
        self, operation: Operation, sent: bytes | None, status: int, headers: Mapping[str, str], body: bytes
    ) -> None:
        """Check an answer, and what was sent if it was accepted. Raises Undocumented."""
        self.seen[str(operation), status] += 1
        self.documented.check(operation.method, operation.path, status, headers, body)
        if sent and operation.struct is not None and status < 400:
            self.documented.check_accepted(operation.method, operation.path, sent)

    def authorization(self, who: str | None) -> dict[str, bytes]:
        return {} if who is None else {"authorization": b"Bearer " + self.keys[who].encode()}

    def restock(self) -> None:
        """What cases delete is made again, and `known` says what there is now."""
        acme = self.keys["acme"]
        with self.server.http() as operator:
            checked(operator.patch("/api/v1/admin/tenants/victim", json={"suspended": False}))
        self.keys["victim"] = self.server.create_key("victim", ["inference", "adapters"])["secret"]
        for name in ("tickets", "short"):
            self._stock_adapter("acme", name)
        self._stock_adapter("globex", "tickets")
        self._stock_adapter("victim", "odd")
        digest = self._get("victim", "/api/v1/adapters/odd/versions")["data"][-1]["digest"]
        with self.server.http(acme) as http:
            for file in http.get("/v1/files").json()["data"][20:]:
                http.delete(f"/v1/files/{file['id']}")
            uploads = http.get("/api/v1/uploads").json()["data"]
            for upload in uploads[2:]:
                http.delete(f"/api/v1/uploads/{upload['id']}")
            for batch in http.get("/v1/batches").json()["data"]:
                if batch["status"] in ("validating", "in_progress"):
                    http.post(f"/v1/batches/{batch['id']}/cancel")
            file = checked(http.post("/v1/files", files={"file": json.dumps(LINE).encode()}, data={"purpose": "batch"}))
            http.post(
                "/v1/batches",
                json={"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"},
            )
            content = {"adapter_config.json": self.files["config"], "adapter_model.safetensors": b"0" * 10}
            announced = [
                {"name": n, "size_bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in content.items()
            ]
            http.post("/api/v1/uploads", json={"adapter": "short", "files": announced})
            http.put(
                "/api/v1/adapters/tickets/aliases/prod",
                json={"version": self._get("acme", "/api/v1/adapters/tickets")["versions"][-1]},
            )
            responses = [
                checked(http.post("/v1/responses", json={"model": BASE, "input": "a", "max_output_tokens": 1}))["id"]
            ]
        adapters = {name: self._get("acme", f"/api/v1/adapters/{name}") for name in ("tickets", "short")}
        numbers = sorted({number for adapter in adapters.values() for number in adapter["versions"]})
        files = [entry["id"] for entry in self._get("acme", "/v1/files")["data"]]
        batches = [entry["id"] for entry in self._get("acme", "/v1/batches")["data"]]
        uploads = [entry["id"] for entry in self._get("acme", "/api/v1/uploads")["data"]]
        imports = [entry["id"] for entry in self._get("acme", "/api/v1/imports")["data"]]
        keys = [key["id"] for key in self._get("operator", "/api/v1/admin/keys?tenant=victim")["data"]]
        self.known |= {
            "name": ["tickets", "short"], "files/name": list(content), "files": [announced, announced[::-1]],
            "source": ["hf://acme/x@" + "0" * 40], "lora_name": ["loaded", "acme/loaded"], "adapter": ["tickets",
            "short"], "number": numbers, "version": numbers,
            "alias": ["prod", "canary"], "slug": ["victim", "nobody"], "tenant": ["victim"], "digest": [digest],
            "key_id": keys, "file_id": files or ["file-1"],
            "response_id": responses, "previous_response_id": responses,
            "input_file_id": files or ["file-1"], "batch_id": batches or ["batch_1"],
            "upload_id": uploads or ["0" * 32], "import_id": imports or ["0" * 32],
            "after": [*files[:2], *batches[:2], "tickets", "acme/tickets", *imports[:1]], "limit": [1, 2, 20],
            "model": [BASE, "tickets", "acme/short", "tickets@prod"],
            "lora_path": [str(path) for path in self.folders.values()],
        }  # fmt: skip

    def _stock_adapter(self, who: str, name: str) -> None:
        with self.server.http(self.keys[who]) as http:
            found = http.get(f"/api/v1/adapters/{name}/versions")
        if not found.is_success or not found.json()["data"]:
            self.server.upload(self.keys[who], name, self.folders[name if who == "acme" else who])

    def _get(self, who: str, path: str) -> Any:
        with self.server.http(self.keys[who]) as http:
            return checked(http.get(path))

    def check_whole(self) -> None:
        """The server has come through: nothing is lost, nothing hangs, nothing was a surprise to it."""
        self.server.wait_until_idle()
        with self.server.http() as http:
            assert http.get("/readyz").status_code == 200
        log = self.server.log.read_text(errors="replace")
        assert "Traceback" not in log, log[-6000:]
        assert "request_failed" not in log, log[-6000:]


@contextmanager
def fuzz_site(model: Path, folder: Path, make_adapter: Callable[..., Path], **options: Any) -> Iterator[FuzzSite]:
    """options: of the server, for instance `database_url`."""
    folders = {
        "tickets": make_adapter(folder / "loras" / "tickets", rank=8, seed=1),
        "short": make_adapter(folder / "loras" / "short", rank=2, modules=("q_proj", "v_proj"), seed=2),
        "globex": make_adapter(folder / "loras" / "globex", rank=4, seed=3),
        "victim": make_adapter(folder / "loras" / "victim", rank=2, seed=4),
    }  # fmt: skip
    secrets = {name: str(value) for name, value in OPTIONS.items()} | {"lora_dirs": str(folder / "loras")}
    with running_server(model, folder / "data", secrets, **options) as server:
        keys = {slug: server.create_tenant(slug) for slug in ("acme", "globex", "victim")} | {
            "operator": server.admin_key
        }
        document = checked(httpx.get(f"{server.url}/openapi.json", timeout=60))
        small = {
            "config": (folders["short"] / "adapter_config.json").read_bytes(),
            "weights": (folders["short"] / "adapter_model.safetensors").read_bytes(),
        }
        lines = json.dumps(LINE).encode()
        files = {**small, "file": lines, "purpose": b"batch"}
        site = FuzzSite(
            server, keys, operations_of(unserved_app(model, folder), document), Documented(document), files, folders
        )
        with closing(site):
            site.restock()
            yield site


def unserved_app(model: Path, folder: Path) -> Any:
    """The application with all its routes, which nobody serves."""
    engine: Any = StandingEngine(ready_of(lora_shape(ModelConfig.from_folder(model))))
    settings = Settings(data_dir=folder / "unserved", served_model_name=BASE)
    return create_app(assemble(settings, Database(f"sqlite:///{folder}/unserved.db"), engine, model))
