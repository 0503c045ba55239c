"""The OpenAPI document says all there is: every route, its key, its errors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, run_api

from loraplex.adapters.database import Database

OPTIONAL_PARTS = {"chat_template", "tokenizer_config", "tokenizer"}

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    async with run_api(database, tmp_path, tiny_model_dir) as running:
        yield running


@pytest.fixture
async def document(api: Api) -> dict[str, Any]:
    response = await api.client.get("/openapi.json")
    assert response.status_code == 200
    return response.json()


async def test_every_route_is_in_the_document(api: Api, document: dict[str, Any]) -> None:
    """Nothing is served that is not documented, the pages for people and the document itself aside."""
    served = {
        (route.path_format, method.lower())
        for route in api.app.routes
        for handler in route.route_handlers
        for method in handler.http_methods
        if method != "OPTIONS" and "page" not in handler.opt
    } - {("/openapi.json", "get")}
    documented = {(path, method) for path, item in document["paths"].items() for method in item}
    assert documented == served


async def test_every_closed_operation_documents_its_key_and_its_errors(api: Api, document: dict[str, Any]) -> None:
    """Each names the scope it needs, and has its one error shape for all that can go wrong."""
    assert document["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["description"], (method, path)
            if not path.startswith(("/v1/", "/api/", "/tokenize", "/detokenize")):
                assert operation["security"] == []
                continue
            [[scope], same] = [next(iter(requirement.values())) for requirement in operation["security"]]
            assert {name for requirement in operation["security"] for name in requirement} == {"apiKey", "apiKeyHeader"}
            assert same == [scope]
            assert scope in ("inference", "adapters", "admin")
            expected = {"400", "401", "403", "404", "429", "500", "503"} | (
                {"409", "413"} if method not in ("get", "head") else set()
            )
            assert expected <= set(operation["responses"]), (method, path)
            for status, response in operation["responses"].items():
                if method == "head":
                    assert "content" not in response
                elif status[0] in "45":
                    schema = response["content"]["application/json"]["schema"]
                    name = "MessagesError" if path.startswith("/v1/messages") else "Error"
                    assert schema == {"$ref": f"#/components/schemas/{name}"}


async def test_bodies_are_documented(document: dict[str, Any]) -> None:
    """Every POST, PUT and PATCH that takes something says what: an upload is a form of two files, or raw bytes."""
    bodiless = set()
    for path, item in document["paths"].items():
        for method in {"post", "put", "patch"} & set(item):
            if "requestBody" not in item[method]:
                bodiless.add((method, path))
            else:
                assert item[method]["requestBody"]["content"], (method, path)
    assert bodiless == {
        ("post", "/api/v1/adapters/{name}/versions/{number}/warm"),
        ("post", "/api/v1/adapters/{name}/versions/{number}/evict"),
        ("post", "/api/v1/uploads/{upload_id}/complete"),
        ("post", "/v1/batches/{batch_id}/cancel"),
        ("post", "/v1/responses/{response_id}/cancel"),
        ("post", "/ping"),
    }
    upload = document["paths"]["/api/v1/adapters/{name}/versions"]["post"]["requestBody"]["content"]
    assert set(upload["multipart/form-data"]["schema"]["properties"]) == {"config", "weights", *OPTIONAL_PARTS}
    for view in ("VersionView", "VersionDetail", "CheckedView"):
        fields = document["components"]["schemas"][view]["properties"]
        assert all(fields[name]["description"] for name in ("invocation_tokens", "is_additive")), view


async def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    """Every $ref names a component that is there."""
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}:
        assert name in document["components"]["schemas"]
    assert len({op["operationId"] for item in document["paths"].values() for op in item.values()}) == sum(
        len(item) for item in document["paths"].values()
    )
