"""Tenants' weights, who has how much of the engine, and what was refused: as operators see them, and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_running import IDLE, Api, StandingEngine, code, ready_of, run_api
from browsing import signed_in, text_of
from database_fixtures import on_sqlite

from loraplex.adapters.database import Database
from loraplex.engine.messages import Inspection, OwnerShare, Share
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.platform.limits.rules import TenantLimits

pytestmark = [pytest.mark.anyio, on_sqlite]

TENANTS = "/api/v1/admin/tenants"
COMPLETION = {"model": "tiny", "prompt": [5, 6, 7, 8], "max_tokens": 6}


class SharedEngine(StandingEngine):
    """It has served whom it was told to have served."""

    def serve(self, **owners: OwnerShare) -> None:
        self.shares = list(owners.values())

    async def inspect(self) -> Inspection:
        return Inspection(
            question_id=1, status=IDLE, host=[], device=[], running=[], recent_steps=[], shares=self.shares
        )


@pytest.fixture
async def api(database: Database, tmp_path: Path, tiny_model_dir: Path) -> AsyncIterator[Api]:
    engine = SharedEngine(ready_of(lora_shape(ModelConfig.from_folder(tiny_model_dir))))
    async with run_api(database, tmp_path, tiny_model_dir, engine=engine) as running:
        yield running


def owner(name: str, service: float, **fields: float) -> OwnerShare:
    counts = {"running": int(fields.pop("running", 0)), "waiting": int(fields.pop("waiting", 0))}
    shown = {"weight": 1.0, "counter": 0.0, "oldest_seconds": 0.0} | fields
    return OwnerShare(owner=name, recent_service=service, **shown, **counts)


async def test_a_tenants_requests_carry_its_weight_and_no_request_says_another(api: Api) -> None:
    """From the first request after a change on; a client can set neither weight nor owner."""
    asked = api.services.engine.asked  # type: ignore[attr-defined]
    tenant = await api.tenant_id("acme")
    await api.client.post("/v1/completions", json=COMPLETION, headers=api.auth("acme"))
    changed = await api.client.patch(f"{TENANTS}/acme", json={"weight": 2.5}, headers=api.auth("operator"))
    assert (changed.json()["weight"], changed.json()["suspended"]) == (2.5, False)
    await api.client.post("/v1/completions", json=COMPLETION, headers=api.auth("acme"))
    assert [request.share for request in asked] == [Share(tenant, 1.0), Share(tenant, 2.5)]
    for field in ("share", "weight", "owner"):
        refused = await api.client.post("/v1/completions", json={**COMPLETION, field: 9}, headers=api.auth("acme"))
        assert refused.status_code == 400


@pytest.mark.parametrize("weight", [0, -1, 0.05, 101, "3", True])
async def test_a_weight_out_of_bounds_is_refused(api: Api, weight: object) -> None:
    """Also for a new tenant, and nothing is made."""
    auth = api.auth("operator")
    changed = await api.client.patch(f"{TENANTS}/acme", json={"weight": weight}, headers=auth)
    made = await api.client.post(TENANTS, json={"slug": "initech", "weight": weight}, headers=auth)
    assert [answer.status_code for answer in (changed, made)] == [400, 400]
    assert changed.json()["error"]["param"] == made.json()["error"]["param"] == "weight"
    assert [tenant["weight"] for tenant in (await api.client.get(TENANTS, headers=auth)).json()["data"]] == [1.0, 1.0]


async def test_operators_see_who_has_how_much_by_name(api: Api) -> None:
    """The engine's opaque owners as tenants, shares beside those that weights give, and what was refused and why."""
    acme, globex = await api.tenant_id("acme"), await api.tenant_id("globex")
    await api.services.limit_owners.set_tenant("globex", lambda _: TenantLimits(requests_per_minute=1))
    for _ in range(3):
        await api.client.post("/v1/completions", json=COMPLETION, headers=api.auth("globex"))
    api.services.engine.serve(  # type: ignore[attr-defined]
        a=owner(acme, 300.0, weight=3.0, counter=100.0, running=2),
        b=owner(globex, 50.0, counter=130.0, waiting=4, oldest_seconds=1.5),
        c=owner("", 50.0, counter=90.0),
        d=owner("deleted", 0.0),
    )
    answer = await api.client.get("/api/v1/admin/fairness", headers=api.auth("operator"))

    first, second = answer.json()["data"]
    assert (first["tenant"], first["share"], first["fair_share"], first["ahead"]) == ("acme", 0.75, 0.6, 10.0)
    assert (second["tenant"], second["share"], second["fair_share"]) == ("globex", 0.125, 0.2)
    assert (second["ahead"], second["waiting"], second["oldest_seconds"]) == (40.0, 4, 1.5)
    assert (first["refused"], second["refused"]) == ({}, {"requests per minute": 2})
    assert code(await api.client.get("/api/v1/admin/fairness", headers=api.auth("acme"))) == (
        403,
        "insufficient_permissions",
    )


async def test_the_page_shows_operators_all_and_a_tenants_people_their_own(api: Api) -> None:
    """And takes a weight and limits from operators alone, in the words of the API."""
    acme, globex = await api.tenant_id("acme"), await api.tenant_id("globex")
    api.services.engine.serve(a=owner(acme, 300.0, running=2), b=owner(globex, 700.0))  # type: ignore[attr-defined]
    operator, acme_admin = await signed_in(api, "ada"), await signed_in(api, "wile", "acme")
    shown = text_of(await operator.get("/admin/limits"))
    assert "70.0% | 50.0%" in shown
    page = "/admin/limits/acme"
    saved = await operator.submit(page, page, weight="4", tokens_per_minute="90000", adapters="")
    assert "Limits and weight hold" in text_of(saved)
    limits = (await api.client.get(f"{TENANTS}/acme/limits", headers=api.auth("operator"))).json()
    assert (limits["tokens_per_minute"], limits["adapters"]) == (90000, None)
    wrong = await operator.submit(page, page, weight="4", adapters="0")
    assert (wrong.status_code, 'value="0"' in wrong.text) == (400, True)

    own = await acme_admin.get("/admin/limits", follow_redirects=True)
    assert own.url.path == page
    assert "700" not in text_of(own)
    assert "90 000" in text_of(own)
    assert '<form method="post" action="/admin/limits' not in own.text
    foreign, absent = [await acme_admin.get(f"/admin/limits/{slug}") for slug in ("globex", "nobody")]
    assert (foreign.status_code, foreign.text) == (404, absent.text.replace("nobody", "globex"))
    assert (await acme_admin.submit("/admin", page, weight="9")).status_code == 404
