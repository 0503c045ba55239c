"""Accounts that a provider vouches for, on SQLite and PostgreSQL: one for each person, with the role said last."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from loraplex.adapters.database import Database
from loraplex.platform.accounts import AccountDirectory
from loraplex.platform.identities import Grant, IdentityDirectory, NotAdmitted, grant_of
from loraplex.platform.oidc_flow import Identity
from loraplex.platform.passwords import Passwords
from loraplex.platform.settings import Settings
from loraplex.platform.tenants import TenantDirectory
from loraplex.platform.web_sessions import WebSessions

pytestmark = pytest.mark.anyio

ISSUER = "https://sso.example.com"


def settings(**more: Any) -> Settings:
    whole: dict[str, Any] = {
        "public_url": "https://models.example.com",
        "oidc_issuer": ISSUER,
        "oidc_client_id": "loraplex",
        "oidc_roles": "first=tenant:acme,ops=operator,second=tenant:globex",
    }
    return Settings(**whole | more)


def person(subject: str, *groups: str, **claims: Any) -> Identity:
    return Identity(ISSUER, subject, {"groups": list(groups), "preferred_username": "ada", **claims})


async def test_people_who_come_at_once_get_an_account_each(database: Database) -> None:
    """And one alone, however many of its windows open: names are told apart, subjects decide."""
    identities = IdentityDirectory(database, settings())
    comers = [person("one", "ops"), person("one", "ops"), person("two", "ops"), person("ONE", "ops")]
    found = await asyncio.gather(*map(identities.sign_in, comers))
    assert found[0].id == found[1].id
    assert len({account.id for account in found}) == 3
    listed = await AccountDirectory(database, Passwords()).list_accounts()
    assert len({account.login for account in listed}) == len(listed) == 3
    assert all(account.login.startswith("ada") and not account.has_password for account in listed)


async def test_a_role_that_changes_ends_the_sessions_from_before(database: Database) -> None:
    """One that stays keeps them; a tenant that is suspended lets nobody in."""
    tenants = TenantDirectory(database)
    acme = await tenants.create_tenant("acme")
    identities = IdentityDirectory(database, settings())
    sessions = WebSessions(database, idle=timedelta(hours=1), longest=timedelta(hours=1))
    account = await identities.sign_in(person("one", "ops"))
    for groups, role, is_kept in (
        (("ops", "other"), "operator", True),
        (("first", "ops"), "tenant-admin", False),
        (("first",), "tenant-admin", True),
        (("ops",), "operator", False),
    ):
        token = await sessions.open(account.id)
        again = await identities.sign_in(person("one", *groups))
        assert (again.id, again.role) == (account.id, role)
        assert again.tenant_id == (acme.id if role == "tenant-admin" else None)
        assert (await sessions.find(token) is not None) == is_kept
    token = await sessions.open(account.id)
    await tenants.set_suspended("acme", True)
    for refused in (person("one", "first"), person("one", "second"), person("one"), person("x" * 256, "ops")):
        with pytest.raises(NotAdmitted):
            await identities.sign_in(refused)
    assert await sessions.find(token) is None


@pytest.mark.parametrize(
    ("claim", "claims", "grant"),
    [
        ("groups", {"groups": ["ops", "first"]}, Grant("acme")),
        ("groups", {"groups": "ops"}, Grant(None)),
        ("realm_access.roles", {"realm_access": {"roles": ["second"]}}, Grant("globex")),
        ("https://example.com/roles", {"https://example.com/roles": ["ops"]}, Grant(None)),
        ("groups", {"groups": ["OPS", "ops "]}, None),
        ("groups", {"groups": {"ops": True}}, None),
        ("groups", {"groups": [["ops"]]}, None),
        ("groups.ops", {"groups": ["ops"]}, None),
        ("groups", {}, None),
    ],
)
def test_what_claims_make_of_people(claim: str, claims: dict[str, Any], grant: Grant | None) -> None:
    """The first value of the setting that the claim has, to the letter; nobody gets in by anything else."""
    asked = settings(oidc_role_claim=claim)
    if grant is None:
        with pytest.raises(NotAdmitted):
            grant_of(claims, asked)
    else:
        assert grant_of(claims, asked) == grant
