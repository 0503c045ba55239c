"""What requests call the objects of tenants: for every parameter, field and form of every route, or it is said that it
names none. Knows how a tenant comes by one of each kind; a route that is new here has to say what it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from api_running import Api, bad_files
from batch_files import jsonl, request
from browsing import PASSWORD

from loraplex.platform.manage.resumable import BYTES_FROM_OFFSET

OURS, THEIRS, NOBODYS = "globex", "acme", "nemo"
"""Who asks; whose it is that is asked for; nobody, in as many letters as that."""

T = TypeVar("T")

MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Of:
    """Where a value stands that names an object of this kind."""

    kind: str


PARAMETERS: Mapping[tuple[str, str], Of | str] = {
    ("adapters", "name"): Of("adapter"),
    ("adapters", "tenant"): Of("tenant"),
    ("{tenant}", "name"): Of("adapter"),
    ("versions", "number"): Of("version"),
    ("versions", "digest"): Of("digest"),
    ("aliases", "alias"): Of("alias"),
    ("uploads", "upload_id"): Of("upload"),
    ("files", "name"): "adapter_config.json",
    ("imports", "import_id"): Of("import"),
    ("models", "model"): Of("model"),
    ("files", "file_id"): Of("file"),
    ("batches", "batch_id"): Of("batch"),
    ("responses", "response_id"): Of("response"),
    ("tenants", "slug"): Of("tenant"),
    ("contents", "slug"): Of("tenant"),
    ("limits", "slug"): Of("tenant"),
    ("requests", "record_id"): Of("record"),
    ("jobs", "tenant"): Of("tenant"),
    ("script", "tenant"): Of("tenant"),
    ("keys", "key_id"): Of("key"),
    ("people", "login"): Of("login"),
    ("admin", "rest"): "nothing/here",
    ("assets", "digest"): "0" * 16,
    ("{digest}", "name"): "app.css",
}
"""Of paths: what stands before the parameter, and its name."""

ACTIONS: Mapping[str, tuple[str, ...]] = {
    "/admin/tenants/{slug}/{action}": ("suspend", "resume"),
    "/admin/people/{login}/{action}": ("disable", "enable", "password"),
    "/admin/adapters/{tenant}/{name}/versions/{number}/{action}": ("warm", "pin", "unpin", "evict", "delete"),
    "/admin/adapters/{tenant}/{name}/aliases/{action}": ("move", "rollback", "delete"),
}

QUERIES: Mapping[str, Of | None] = {
    "tenant": Of("tenant"),
    "model": Of("model"),
    "adapter": Of("adapter"),
    "key": Of("key"),
    "key_id": Of("key"),
    "actor": Of("key"),
    "object": Of("object"),
    **dict.fromkeys(
        ("limit", "order", "purpose", "q", "dry_run", "stream", "format", "what", "step", "group", "endpoint")
    ),
    **dict.fromkeys(("start", "end", "since", "until", "before", "action", "errors", "largest_first", "range")),
}
"""By name, save `after`, which is of the kind that is listed."""

CURSORS: Mapping[str, Of] = {
    "/v1/models": Of("model"),
    "/v1/files": Of("file"),
    "/v1/batches": Of("batch"),
    "/v1/responses/{response_id}/input_items": Of("item"),
    "/api/v1/adapters": Of("adapter"),
    "/api/v1/imports": Of("import"),
    "/api/v1/usage/requests": Of("cursor"),
    "/api/v1/admin/usage/requests": Of("cursor"),
    "/admin/requests": Of("cursor"),
    "/api/v1/admin/adapters": Of("model"),
    "/admin/adapters": Of("model"),
}


def _generations(**body: Any) -> tuple[dict[str, Any], ...]:
    """By each of the fields that name what generates."""
    named = {"adapters": [{"model": Of("model")}], "adapter_id": Of("model"), "lora_path": Of("model")}
    return {"model": Of("model"), **body}, *({"model": "tiny", field: name, **body} for field, name in named.items())


_CHATS = _generations(messages=MESSAGES, max_tokens=1)
BODIES: Mapping[str, tuple[Any, ...]] = {
    "POST /v1/chat/completions": _CHATS,
    "POST /admin/script/{tenant}/chat/completions": _CHATS,
    "POST /v1/completions": _generations(prompt="hi", max_tokens=1),
    "POST /v1/embeddings": ({"model": Of("model"), "input": "hi"},),
    "POST /v1/responses": (
        *_generations(input="hi", max_output_tokens=1),
        {"model": "tiny", "previous_response_id": Of("response"), "input": "hi", "max_output_tokens": 1},
    ),
    "POST /tokenize": ({"model": Of("model"), "prompt": "hi"},),
    "POST /detokenize": ({"model": Of("model"), "tokens": [5]},),
    "POST /v1/messages": _CHATS,
    "POST /v1/messages/count_tokens": _generations(messages=MESSAGES),
    "POST /v1/batches": ({"input_file_id": Of("file"), "endpoint": "/v1/completions", "completion_window": "24h"},),
    "POST /api/v1/adapters": ({"name": "new"},),
    "POST /api/v1/uploads": ({"adapter": Of("adapter"), "files": bad_files()},),
    "POST /admin/script/{tenant}/uploads": ({"adapter": Of("adapter"), "files": bad_files()},),
    "POST /api/v1/imports": ({"adapter": Of("adapter"), "source": "hf://models/bot"},),
    "PUT /api/v1/adapters/{name}/versions/{number}/profile": ({"system_prompt": "Be brief."},),
    "PUT /api/v1/adapters/{name}/versions/{number}/pin": ({"seconds": 60},),
    "PUT /api/v1/adapters/{name}/aliases/{alias}": ({"version": Of("version")}, {"split": {"1": 1}}),
    "POST /api/v1/adapters/{name}/aliases/{alias}/rollback": ({}, {"to": 1}),
    "POST /v1/load_lora_adapter": ({"lora_name": Of("model"), "lora_path": "/nowhere"},),
    "POST /v1/unload_lora_adapter": ({"lora_name": Of("model")},),
    "POST /api/v1/admin/tenants": ({"slug": "new"},),
    "PATCH /api/v1/admin/tenants/{slug}": ({"suspended": True},),
    "PUT /api/v1/admin/tenants/{slug}/limits": ({},),
    "POST /api/v1/admin/keys": ({"tenant": Of("tenant"), "name": "k", "scopes": ["inference"]},),
    "PUT /api/v1/admin/keys/{key_id}/limits": ({},),
    "PUT /api/v1/admin/tenants/{slug}/budget": ({"tokens": 5},),
    "PUT /api/v1/admin/keys/{key_id}/budget": ({"tokens": 5},),
    "PATCH /api/v1/admin/keys/{key_id}": ({"name": "k"},),
    "POST /api/v1/admin/keys/{key_id}/rotate": ({"overlap_seconds": 60},),
    "PUT /api/v1/admin/usage/contents/{slug}": ({"days": 1},),
    "PUT /api/v1/admin/usage/prices": ({"currency": "EUR"},),
    "POST /api/v1/admin/versions/{digest}/quarantine": ({"reason": "because"},),
    "POST /api/v1/admin/versions/{digest}/release": ({},),
}
"""JSON, with `Of` where an object is named."""

WITHOUT_FIELDS = (
    "POST /admin/setup",
    "POST /admin/login",
    "POST /admin/logout",
    "POST /admin/logout/everywhere",
    "POST /admin/account/password",
    "POST /admin/tenants/new",
    "POST /admin/tenants/{slug}/{action}",
    "POST /admin/people/new",
    "POST /admin/people/{login}/{action}",
    "POST /admin/keys/new",  # of one's own tenant, whatever the form says
    "POST /admin/keys/{key_id}/revoke",
    "POST /admin/keys/{key_id}/edit",
    "POST /admin/keys/{key_id}/rotate",
    "POST /admin/keys/{key_id}/end-old-secret",
    "POST /admin/limits/{slug}",
    "POST /admin/prices",
    "POST /admin/prices/adapters",
    "POST /admin/prices/adapters/delete",
    "POST /admin/requests/{record_id}/contents/delete",
    "POST /admin/tenants/{slug}/contents",
    "POST /admin/tenants/{slug}/contents/delete",
    "POST /admin/adapters/new",  # so is this
    "POST /admin/adapters/{tenant}/{name}/delete",
    "POST /admin/jobs/{tenant}/imports/{import_id}/cancel",
    "POST /admin/jobs/{tenant}/imports/{import_id}/again",
    "POST /admin/jobs/{tenant}/batches/{batch_id}/cancel",
    "POST /admin/jobs/{tenant}/uploads/{upload_id}/drop",
)
"""Forms of pages: their path and the session's own token say whose object they are about."""
FORMS: Mapping[str, Mapping[str, Any]] = {
    "POST /admin/adapters/{tenant}/{name}/versions/{number}/{action}": {"seconds": "3600"},
    "POST /admin/adapters/{tenant}/{name}/aliases/{action}": {"alias": "prod", "revision": "0", "weight-1": "1"},
    **{named: {} for named in WITHOUT_FIELDS},
}
"""Of pages, with `Of` where a field names an object."""

NO_NAMES: frozenset[str] = frozenset({
    "id", "name", "call_id", "tool_call_id", "tool_use_id", "toolset_name", "user_id",  # the client's own
    "allowed_token_ids", "stop_token_ids", "lora_int_id", "prompt_cache_key", "file", "files", "slug",
    "base_model",  # the server's
    "versions",  # a limit
    "adapters", "split", "to",  # whose parts are named, or versions of the adapter in the path
})  # fmt: skip
NAMES = re.compile(
    r"(.*_)?(id|ids|model|models|adapter|adapters|alias|aliases|tenant|slug|login|account|file|files|batch|batches|"
    r"key|keys|upload|version|versions|import|response|responses|digest|split|to|name|item|conversation)"
)
"""Fields that, by their own name, name something: each is in NO_NAMES, or `Of` in all BODIES of its operation."""


@dataclass(frozen=True)
class Objects:
    """One of each kind, of one tenant."""

    tenant: str
    names: Mapping[str, str]

    def markers(self) -> list[str]:
        """What nobody else is to see, in whatever answer."""
        return [self.tenant, *(name for kind, name in self.names.items() if kind != "version")]


async def stock(api: Api, who: str, letter: str, folders: list[Path]) -> Objects:
    """Have a tenant make one of each: an adapter with a version from each folder, and all that is about it. Names end
    in `letter`, so that two tenants' differ."""
    name, alias, headers = f"bot-{letter}", f"beta-{letter}", api.auth(who)

    async def post(path: str, **options: Any) -> Any:
        answer = await api.client.post(path, headers=headers, **options)
        assert answer.is_success, (path, answer.text)
        return answer.json()

    await api.services.tenants.set_content_days(who, 1)
    await post("/api/v1/adapters", json={"name": name})
    versions = [(await api.upload(who, name, folder)).json() for folder in folders]
    aliases = f"/api/v1/adapters/{name}/aliases"
    assert (await api.client.put(f"{aliases}/{alias}", json={"version": 1}, headers=headers)).is_success
    profile = f"/api/v1/adapters/{name}/versions/{len(folders)}/profile"
    assert (await api.client.put(profile, json={"system_prompt": "Be brief."}, headers=headers)).is_success
    upload = await post("/api/v1/uploads", json={"adapter": name, "files": bad_files()})
    job = await post("/api/v1/imports", json={"adapter": name, "source": "hf://models/bot"})
    file = await post("/v1/files", files={"file": jsonl([request("a")])}, data={"purpose": "batch"})
    batch = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    response = await post("/v1/responses", json={"model": "tiny", "input": "a secret plan", "max_output_tokens": 1})
    items = await api.client.get(f"/v1/responses/{response['id']}/input_items", headers=headers)
    await api.services.ledger.write()
    told = await api.client.get("/api/v1/usage/requests?endpoint=responses", headers=headers)
    [record] = told.json()["data"]
    begun = datetime.fromisoformat(record["started_at"])
    account = await api.services.accounts.create(f"ada-{letter}", PASSWORD, who)
    names = {
        "tenant": who,
        "adapter": name,
        "model": f"{who}/{name}",
        "version": str(len(versions)),
        "digest": versions[-1]["digest"],
        "alias": alias,
        "upload": upload["id"],
        "import": job["id"],
        "file": file["id"],
        "batch": (await post("/v1/batches", json=batch))["id"],
        "response": response["id"],
        "item": items.json()["data"][0]["id"],
        "key": (await api.services.tenants.list_keys(who))[0].id,
        "login": account.login,
        "object": f"adapters/{name}",
        "record": record["id"],
        "cursor": f"{round(begun.timestamp() * 1e6)}-{record['id']}",
    }
    return Objects(who, names)


def missing(objects: Objects) -> Objects:
    """Names like these, as long as these and next to them in every order, of nothing."""
    others = {kind: re.sub(r"[0-9a-zA-Z](?=[0-9a-zA-Z]{0,7}$)", "0", name) for kind, name in objects.names.items()}
    others |= {"tenant": NOBODYS, "adapter": "bot-b", "alias": "beta-b", "login": "ada-b", "version": "9"}
    others |= {"model": f"{objects.tenant}/bot-b", "object": "adapters/bot-b"}
    return Objects(NOBODYS, others)


@dataclass(frozen=True)
class Case:
    """A request with places where objects are named, in order: those of the path, then of the query and the body."""

    method: str
    template: str
    is_page: bool
    path: tuple[Of | str, ...]
    query: Mapping[str, Of]
    body: Any
    is_form: bool

    def places(self) -> list[str]:
        """The kinds that are named."""
        return [
            place.kind for place in (*self.path, *self.query.values(), *_within(self.body)) if isinstance(place, Of)
        ]

    def request(self, objects: list[Mapping[str, str]]) -> dict[str, Any]:
        """As httpx takes it; objects: whose are named, place by place."""
        whose = iter(objects)
        fill: Callable[[Of], Any] = lambda place: _value(next(whose), place)  # noqa: E731
        url = "".join(str(fill(part)) if isinstance(part, Of) else part for part in self.path)
        query = {name: fill(place) for name, place in self.query.items()}
        options: dict[str, Any] = {"method": self.method, "url": url, "params": query}
        if self.is_form:
            options["data"] = _filled(self.body, fill)
        elif self.method == "PATCH" and self.template.endswith("/files/{name}"):
            options |= {"content": b"{", "headers": {"content-type": BYTES_FROM_OFFSET, "upload-offset": "0"}}
        elif self.template.endswith("/versions") and self.method == "POST":
            options["files"] = {"config": b"{}", "weights": b""}
        elif self.template == "/v1/files" and self.method == "POST":
            options |= {"files": {"file": b"{}"}, "data": {"purpose": "batch"}}
        elif self.body is not None:
            options["json"] = _filled(self.body, fill)
        return options


def cases(app: Any, *, is_page: bool) -> Iterator[Case]:
    """Every request to every route, each query parameter by itself. Fails for what is not known here."""
    for route in app.routes:
        for handler in route.route_handlers:
            if (handler.opt.get("page", "file") != "file") != is_page or handler.opt.get("page") == "file":
                continue
            for method in sorted(handler.http_methods - {"OPTIONS"}):
                for path in _paths(route.path_format):
                    yield from _cases_of(method, route.path_format, handler, path, is_page=is_page)


def _cases_of(method: str, template: str, handler: Any, path: tuple[Of | str, ...], *, is_page: bool) -> Iterator[Case]:
    named = f"{method} {template}"
    is_form = is_page and method == "POST" and "/script/" not in template
    bodies: tuple[Any, ...] = (None,)
    if is_form:
        bodies = (_known(FORMS, named),)
    elif "data" in handler.parsed_fn_signature.parameters:
        bodies = _known(BODIES, named)
    for body in bodies:
        yield Case(method, template, is_page, path, {}, body, is_form)
    for name in query_parameters(handler, template):
        place = _known(CURSORS, template) if name == "after" else _known(QUERIES, name)
        if place is not None:
            yield Case(method, template, is_page, path, {name: place}, bodies[0], is_form)


def _known(table: Mapping[Any, T], key: Any) -> T:
    assert key in table, f"say in tests/two_tenants.py what this names: {key}"
    return table[key]


def query_parameters(handler: Any, template: str) -> list[str]:
    """The names of what a handler, or what is injected into it, takes from the query."""
    provided = handler.resolve_dependencies()
    given = {*provided, *re.findall(r"{(\w+)}", template), "request", "data", "headers"}
    fields = dict(handler.parsed_fn_signature.parameters)
    for name in [name for name in fields if name in provided]:
        fields |= provided[name].parsed_fn_signature.parameters
    return [
        name
        for name, field in fields.items()
        if name not in given and type(field.kwarg_definition).__name__ != "HeaderParameter"
    ]


def _paths(template: str) -> Iterator[tuple[Of | str, ...]]:
    """A path for each action, in pieces."""
    pieces: list[Of | str] = []
    before = ""
    for segment in template.split("/")[1:]:
        pieces.append("/")
        if segment == "{action}":
            yield from ((*pieces, action) for action in _known(ACTIONS, template))
            return
        pieces.append(_known(PARAMETERS, (before, segment[1:-1])) if segment.startswith("{") else segment)
        before = segment
    yield tuple(pieces)


def _within(body: Any) -> Iterator[Of]:
    if isinstance(body, Of):
        yield body
    elif isinstance(body, Mapping | list):
        for part in body.values() if isinstance(body, Mapping) else body:
            yield from _within(part)


def _filled(body: Any, fill: Callable[[Of], Any]) -> Any:
    if isinstance(body, Of):
        return fill(body)
    if isinstance(body, Mapping):
        return {name: _filled(part, fill) for name, part in body.items()}
    return [_filled(part, fill) for part in body] if isinstance(body, list) else body


def _value(names: Mapping[str, str], place: Of) -> Any:
    value = names[place.kind]
    return int(value) if place.kind == "version" else value
