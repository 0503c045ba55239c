"""Acceptance: of whatever another tenant has, every route says what it says of nothing; and it stays as it is.

The requests are made from the routes themselves (`two_tenants`): one that is new, or takes a new parameter, fails here
until it is said what it names.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_running import Api, run_api
from browsing import Visitor, signed_in
from database_fixtures import postgres_database
from secret_hunt import HUNT
from sqlalchemy import select
from two_tenants import BODIES, NAMES, NO_NAMES, OURS, THEIRS, Case, Objects, Of, cases, missing, stock

from loraplex.adapters.database import Database
from loraplex.adapters.schema import Base
from loraplex.platform.web.access import csrf_token

pytestmark = pytest.mark.anyio

OF_EACH = frozenset({"x-request-id", "request-id", "openai-processing-ms", "date"})
"""Headers that differ between any two answers."""
OF_USE = frozenset({"last_used_at", "last_seen_at", "last_login_at"})


@dataclass
class Site:
    """Two tenants that have the same, and a person of the one that asks."""

    api: Api
    database: Database
    ours: Objects
    theirs: Objects
    visitor: Visitor

    async def ask(self, case: Case, objects: list[Any], *, by_key: bool | None = None) -> httpx.Response:
        """As our tenant: an API by a key, a page by a session; by_key: whatever it is."""
        options = case.request(objects)
        headers = options.pop("headers", {}) | {"origin": "http://api"}
        if (not case.is_page) if by_key is None else by_key:
            return await self.api.client.request(**options, headers=headers | self.api.auth(OURS))
        headers["x-csrf-token"] = csrf_token(str(self.visitor.session))
        return await self.visitor.client.request(**options, headers=headers)

    async def rows(self) -> dict[str, list[Any]]:
        """All that the database has, but when keys and sessions were used last."""
        found = {}
        async with self.database.read() as session:
            for table in Base.metadata.sorted_tables:
                columns = [column for column in table.columns if column.name not in OF_USE]
                found[table.name] = sorted(map(repr, await session.execute(select(*columns))))
        return found

    def files(self) -> set[tuple[Path, int]]:
        folders = self.api.services.settings.adapters_dir, self.api.services.settings.files_dir
        return {(path, path.stat().st_size) for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database with all tables, all empty, for all tests here."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("database") / "loraplex.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite_file"), path)
        yield f"sqlite:///{path}"
        return
    template = request.getfixturevalue("migrated_postgres_database")
    with postgres_database(request.getfixturevalue("postgres_server"), template) as url:
        yield url


@pytest.fixture(scope="module")
async def site(
    url: str, tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, make_adapter: Callable[..., Path]
) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("two-tenants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loraplex.platform.live.stream.STREAM_SECONDS", 0.0)  # else a minute
        async for site in _site(url, folder, tiny_model_dir, make_adapter):
            yield site


async def _site(url: str, folder: Path, tiny_model_dir: Path, make_adapter: Callable[..., Path]) -> AsyncIterator[Site]:
    adapters = [make_adapter(folder / str(rank), rank=rank, modules=["v_proj"]) for rank in (1, 2)]
    sources = {"import_sources": "hf://models/", "hf_endpoint": "http://127.0.0.1:9"}
    database = Database(url)
    async with run_api(database, folder / "data", tiny_model_dir, **sources) as api:
        theirs = await stock(api, THEIRS, "a", adapters)
        ours = await stock(api, OURS, "g", adapters[:1])
        limits = {"requests_per_minute": 10**6, "tokens_per_minute": 10**8, "adapter_requests_per_minute": 10**6}
        url = f"/api/v1/admin/tenants/{OURS}/limits"  # so that answers tell of them where they do
        assert (await api.client.put(url, json=limits, headers=api.auth("operator"))).is_success
        yield Site(api, database, ours, theirs, await signed_in(api, ours.names["login"]))
    await database.dispose()


on_sqlite = pytest.mark.parametrize("url", ["sqlite"], indirect=True)


@on_sqlite
async def test_it_is_known_of_every_field_whether_it_names_something(site: Site) -> None:
    """Of every body in the OpenAPI document; of parameters the routes themselves tell, and `cases` fails."""
    document = (await site.api.client.get("/openapi.json")).json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            named = f"{method.upper()} {path}"
            for kind in operation.get("requestBody", {}).get("content", {}).values():
                naming = {name for name in _fields(document, kind.get("schema", {})) if NAMES.fullmatch(name)}
                unknown = naming - NO_NAMES - set(_marked(BODIES.get(named, ())))
                assert not unknown, f"{named}: say in tests/two_tenants.py what {sorted(unknown)} name"


@pytest.mark.parametrize(
    ("url", "is_page"),
    [("sqlite", False), ("sqlite", True), pytest.param("postgres", False, marks=pytest.mark.postgres)],
    indirect=["url"],
)
async def test_what_is_anothers_reads_as_what_is_not(site: Site, is_page: bool) -> None:
    """By status, body and headers, at every place where a request names something; and nothing comes of it: all rows
    and files are what they were, and the engine has heard nothing."""
    absent = missing(site.theirs)
    HUNT.look(repr(await site.rows()), "the database")
    before, files, asked = await site.rows(), site.files(), len(site.api.services.engine.asked)
    told = []
    for case in cases(site.api.app, is_page=is_page):
        places = case.places()
        for first, kind in enumerate(places):
            if f"{case.method} {case.template}" in NAMES_WHAT_IT_MAKES and kind == "alias":
                continue
            known = [site.ours.names] * first
            foreign = await site.ask(case, known + [site.theirs.names] * (len(places) - first))
            nothing = await site.ask(case, known + [absent.names] * (len(places) - first))
            where = f"{case.method} {case.template} {case.request([absent.names] * len(places))['url']}: {kind}"
            if plain(foreign, site.theirs, absent) != plain(nothing, site.theirs, absent):
                told.append(f"{where}: {foreign.status_code} {foreign.text[:300]} / {nothing.text[:300]}")
            elif foreign.status_code not in expected(site, case, kind):
                told.append(f"{where}: {foreign.status_code} {foreign.text[:300]}")
    assert not told, "\n".join(told)
    assert await site.rows() == before
    assert site.files() == files
    assert (len(site.api.services.engine.asked), site.api.services.engine.warmed) == (asked, [])


@on_sqlite
async def test_what_is_ones_own_is_found(site: Site) -> None:
    """The same requests with one's own names read something: it is whose they are that made the difference. And what
    they read, and every list, has nothing of the other tenant."""
    foreign = site.theirs.markers()
    for case in [*cases(site.api.app, is_page=False), *cases(site.api.app, is_page=True)]:
        if case.method == "GET" and needs_anybody(site, case):
            answer = await site.ask(case, [site.ours.names] * len(case.places()))
            where = f"{case.method} {case.template} {answer.status_code}: {answer.text[:300]}"
            seen = [marker for marker in foreign if marker in answer.text]
            assert not seen, f"{where}: {seen}"
            leads_to_own = answer.headers.get("location", "").endswith(f"/{OURS}")
            is_known = answer.status_code in (200, 503) or leads_to_own
            assert is_known or is_for_operators(site, case) or "rest" in case.template, where


@on_sqlite
async def test_keys_open_no_page_and_sessions_no_api(site: Site) -> None:
    """Whatever is asked for, with one's own names."""
    before = await site.rows()
    for is_page in (False, True):
        for case in cases(site.api.app, is_page=is_page):
            if not needs_anybody(site, case):
                continue
            answer = await site.ask(case, [site.ours.names] * len(case.places()), by_key=is_page)
            wanted = 401 if not is_page or re.search("/(script|feeds)/", case.template) else 303
            assert answer.status_code == wanted, (case.method, case.template, answer.status_code, answer.text[:200])
    assert await site.rows() == before


@on_sqlite
async def test_a_tenants_idempotency_keys_are_its_own(site: Site) -> None:
    """The same one, before the same request, is another one of another tenant."""
    made = []
    for who in (THEIRS, OURS):
        headers = site.api.auth(who) | {"idempotency-key": "the-same"}
        made.append(await site.api.client.post("/api/v1/adapters", json={"name": "twin"}, headers=headers))
    assert [answer.status_code for answer in made] == [201, 201]
    assert [answer.json()["tenant"] for answer in made] == [THEIRS, OURS]


@on_sqlite
async def test_forms_make_things_for_ones_own_tenant(site: Site) -> None:
    """Whatever tenant they name."""
    for path, fields in (
        ("/admin/adapters/new", {"name": "formed"}),
        ("/admin/keys/new", {"name": "formed", "kind": "tenant", "scopes": "inference"}),
    ):
        made = await site.visitor.submit(path, path, tenant=THEIRS, **fields)
        assert made.status_code in (200, 201), made.text
    keys = await site.api.services.tenants.list_keys(THEIRS)
    adapters = await site.api.services.registry.list_adapters(await site.api.tenant_id(THEIRS), 100)
    assert "formed" not in {thing.name for thing in (*keys, *adapters)}


NAMES_WHAT_IT_MAKES = frozenset({"PUT /api/v1/adapters/{name}/aliases/{alias}"})
"""On an adapter of one's own an alias may have any name, also that of another's."""


NEVER_HAD = {
    ("GET /api/v1/adapters/{name}/aliases/{alias}/history", "alias"): 200,
    ("POST /api/v1/adapters/{name}/aliases/{alias}/rollback", "alias"): 409,
}
"""What is said of a name that an adapter of one's own has not and never had."""


def plain(answer: httpx.Response, *objects: Objects) -> tuple[int, str, list[tuple[str, str]]]:
    """An answer without the names that were asked for, and without what is each answer's own."""
    names = sorted(((name, kind) for each in objects for kind, name in each.names.items()), key=lambda n: -len(n[0]))
    names += [(each.tenant, "tenant") for each in objects]

    def anonymous(text: str) -> str:
        text = re.sub(r"req_[0-9a-f]{32}", "<request>", text)
        text = re.sub(r'"(start|end)":"[^"]*"', "<now>", text)
        for name, kind in names:
            text = re.sub(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])", f"<{kind}>", text)
        return text

    headers = [(name, anonymous(value)) for name, value in answer.headers.items() if name not in OF_EACH]
    return answer.status_code, anonymous(answer.text), headers


def expected(site: Site, case: Case, kind: str) -> tuple[int, ...]:
    """404, but for what tenants may not ask for at all, and for lists, that begin after a name or show the tenant's."""
    if handler_of(site, case).opt.get("scope") == "admin":
        return (403,)
    never_had = NEVER_HAD.get((f"{case.method} {case.template}", kind))
    if never_had is not None:
        return never_had, 404
    return (200, 400, 404) if case.query else (404,)


def needs_anybody(site: Site, case: Case) -> bool:
    """Whether the route is for somebody at all, and not for whoever comes."""
    return not handler_of(site, case).opt.get("public") and handler_of(site, case).opt.get("page") != "anyone"


def is_for_operators(site: Site, case: Case) -> bool:
    opt = handler_of(site, case).opt
    return opt.get("scope") == "admin" or opt.get("page") == "operator"


def handler_of(site: Site, case: Case) -> Any:
    [route] = [route for route in site.api.app.routes if route.path_format == case.template]
    return route.route_handler_map[case.method][0]


def _fields(document: dict[str, Any], schema: Any, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """The names of all properties, however deep."""
    if isinstance(schema, list):
        for part in schema:
            yield from _fields(document, part, seen)
    elif isinstance(schema, dict):
        yield from schema.get("properties", {})
        reference = schema.get("$ref")
        if reference is not None and reference not in seen:
            component = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
            yield from _fields(document, component, seen | {reference})
        for name, part in schema.items():
            yield from _fields(document, list(part.values()) if name == "properties" else part, seen)


def _marked(body: Any) -> Iterator[str]:
    """The names of the fields that `Of` says to name something."""
    if isinstance(body, dict):
        for name, part in body.items():
            if isinstance(part, Of):
                yield name
            yield from _marked(part)
    elif isinstance(body, list | tuple):
        for part in body:
            yield from _marked(part)
