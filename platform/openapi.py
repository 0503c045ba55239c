"""The OpenAPI document: what Litestar derives from the handlers, plus what is the same for all of them.

That is: which key and scope an operation needs, the schemas of bodies, every status that there may be, and the
shape of its errors. Served as JSON; no page loads scripts from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, Router, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.types import ControllerRouterHandler
from litestar.typing import FieldDefinition

from loraplex import __version__
from loraplex.platform.anthropic.errors import ERROR_SCHEMA as MESSAGES_ERROR_SCHEMA

BEARER = "apiKey"
OWN_HEADER = "apiKeyHeader"
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong and what to do about it."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "code": {"type": ["string", "null"], "description": "Stable; meant for programs."},
                "details": {"description": "A report, where one belongs to the error."},
            },
        }
    },
}
ERRORS = {
    "400": "The request is malformed or a value is out of bounds",
    "401": "The API key is missing or not valid",
    "403": "The API key lacks the scope that this operation needs",
    "404": "There is no such thing, or it is not yours",
    "429": "Too much at once; try again after `retry-after` seconds",
    "500": "The server failed",
    "503": "The server cannot take the request now; try again after `retry-after` seconds",
}
"""Of everything that needs a key."""

ERRORS_OF_CHANGES = {
    "409": "The change conflicts with what is there",
    "413": "The body is too large",
    "415": "The body comes in a form that is not read here",
}
ERROR_OF_STREAMED_BODIES = {"408": "The body stalled"}
ERROR_OF_PRECONDITIONS = {"412": "It is not at the revision that the request is about"}
ERROR_OF_DEADLINES = {"504": "The request was not done within its own `timeout`"}

PRECONDITIONS = [
    {
        "name": "If-Match",
        "in": "header",
        "schema": {"type": "string", "pattern": '^("[0-9]{1,9}"|[0-9]{1,9})$'},
        "description": "Change it only from this revision: its ETag.",
    },
    {
        "name": "If-None-Match",
        "in": "header",
        "schema": {"type": "string", "const": "*"},
        "description": "Change nothing that is there.",
    },
]
"""Of handlers with `opt["preconditions"]`, which read them from the request."""

EVENTS = {"schema": {"type": "string", "description": "Server-sent events, where the request asks for `stream`."}}


class _NoPages(Router):
    """Litestar's own routes for the document end in HTML error pages; ours is `openapi_json`."""

    def register(self, value: ControllerRouterHandler) -> list[Any]:
        return []


def openapi_config() -> OpenAPIConfig:
    """Litestar's part of the document."""
    return OpenAPIConfig(
        title="Loraplex",
        version=__version__,
        description="Many tenants' LoRA adapters on one base model. `/v1` speaks OpenAI's protocol, and "
        "`/v1/messages` Anthropic's.",
        use_handler_docstrings=True,
        openapi_router=_NoPages("/", route_handlers=[]),
    )


@get("/openapi.json", opt={"public": True}, include_in_schema=False, sync_to_thread=True)
def openapi_json(request: Request[Any, Any, Any]) -> Response[bytes]:
    """This document, built when it is first asked for: it takes longer than all else that an app is made of."""
    state = request.app.state
    if "openapi_json" not in state:
        state.openapi_json = build_document(request.app)
    return Response(state.openapi_json, media_type="application/json")


def build_document(app: Litestar) -> bytes:
    """The document of all routes of `app`, as JSON."""
    document = app.openapi_schema.to_schema()
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.update(_schemas_of(handler for _, handler in _documented(app)))
    schemas.update(Error=ERROR_SCHEMA, MessagesError=MESSAGES_ERROR_SCHEMA)
    components["securitySchemes"] = {
        BEARER: {"type": "http", "scheme": "bearer", "description": "A Loraplex API key."},
        OWN_HEADER: {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key."},
    }
    for path, handler in _documented(app):
        for method in handler.http_methods:
            operation = document["paths"][path][method.lower()]
            scope = handler.opt.get("scope")
            if "request_body" in handler.opt:  # of a handler that reads the raw stream
                operation["requestBody"] = {"required": True, "content": handler.opt["request_body"]}
            if handler.opt.get("preconditions"):
                operation["parameters"] = [*operation.get("parameters", []), *PRECONDITIONS]
            if "answers" in handler.opt:  # of one that answers in several forms
                operation["responses"]["200"]["content"] = handler.opt["answers"]
            if "stream" in _body_fields(handler):
                operation["responses"]["200"]["content"]["text/event-stream"] = EVENTS
            operation["security"] = [] if scope is None else [{BEARER: [scope]}, {OWN_HEADER: [scope]}]
            if scope is not None:
                _add_errors(operation, _errors_of(handler, method), handler.opt.get("error_schema", "Error"))
            _drop_content(operation, method)
    return msgspec.json.encode(document)


def _documented(app: Litestar) -> Iterator[tuple[str, HTTPRouteHandler]]:
    for route in app.routes:
        for handler in getattr(route, "route_handlers", []):
            if handler.resolve_include_in_schema():
                yield route.path_format, handler


def _schemas_of(handlers: Iterable[HTTPRouteHandler]) -> dict[str, Any]:
    """Of all bodies, by msgspec, which reads them: Litestar's lack bounds inside of lists, and what is forbidden."""
    bodies: set[Any] = set()
    for handler in handlers:
        answer = handler.parsed_return_field
        answers = [answer, *answer.inner_types] + [
            FieldDefinition.from_annotation(spec.data_container) for spec in (handler.responses or {}).values()
        ]
        bodies.update(field.annotation for field in (handler.parsed_data_field, *answers) if field is not None)
    structs = sorted((body for body in bodies if _is_struct(body)), key=lambda struct: struct.__name__)
    return msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")[1]


def _is_struct(body: Any) -> bool:
    return isinstance(body, type) and issubclass(body, msgspec.Struct)


def _body_fields(handler: HTTPRouteHandler) -> tuple[str, ...]:
    data = handler.parsed_data_field
    return data.annotation.__struct_fields__ if data is not None and _is_struct(data.annotation) else ()


def _errors_of(handler: HTTPRouteHandler, method: str) -> dict[str, str]:
    """Every error that an operation with a scope can answer with, beside those that it names itself."""
    errors = dict(ERRORS)
    if method not in ("GET", "HEAD"):
        errors |= ERRORS_OF_CHANGES
    if "request_body" in handler.opt:
        errors |= ERROR_OF_STREAMED_BODIES
    if handler.opt.get("preconditions"):
        errors |= ERROR_OF_PRECONDITIONS
    if "timeout" in _body_fields(handler):
        errors |= ERROR_OF_DEADLINES
    return errors


def _add_errors(operation: dict[str, Any], errors: Mapping[str, str], schema: str) -> None:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    responses = operation["responses"]
    described = {status: response["description"] for status, response in responses.items() if status[0] in "45"}
    for status, description in sorted({**described, **errors}.items()):
        responses[status] = {"description": description, "content": content}


def _drop_content(operation: dict[str, Any], method: str) -> None:
    """Of answers that HTTP gives no body."""
    for status, response in operation["responses"].items():
        if method == "HEAD" or status == "204":
            response.pop("content", None)
