"""A person at a browser, as far as HTTP goes: cookies, forms as they stand on the page, where a request comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from typing import Any

import httpx
from api_running import Api

PASSWORD = "seven herons by the canal"


@dataclass
class Visitor:
    """One browser: its own cookies on the application of `api`."""

    api: Api
    client: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def submit(self, page: str, action: str, *, follow: bool = True, **fields: Any) -> httpx.Response:
        """Send a form as it stands on a page of ours: with the page's token, from our own origin."""
        token = await self.token(page)
        fields = {name: value for name, value in fields.items() if value is not None}
        return await self.post(action, {"_csrf": token, **fields}, follow=follow)

    async def post(
        self, action: str, fields: dict[str, Any], *, follow: bool = False, **headers: str
    ) -> httpx.Response:
        headers = {"origin": "http://api"} | {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(action, data=fields, headers=headers, follow_redirects=follow)

    async def token(self, page: str) -> str:
        found = re.search(r'name="_csrf" value="([0-9a-f]*)"', (await self.get(page)).text)
        return found[1] if found else ""

    async def sign_in(self, login: str, password: str = PASSWORD) -> httpx.Response:
        return await self.post("/admin/login", {"login": login, "password": password})

    @property
    def session(self) -> str | None:
        return self.client.cookies.get("loraplex_session")


def visit(api: Api, *, scheme: str = "http", client: str = "127.0.0.1") -> Visitor:
    transport = httpx.ASGITransport(api.app, client=(client, 5000))
    return Visitor(api, httpx.AsyncClient(transport=transport, base_url=f"{scheme}://api"))


async def signed_in(api: Api, login: str, tenant: str | None = None) -> Visitor:
    """A person with an account of that name, which is made where there is none."""
    if login not in {account.login for account in await api.services.accounts.list_accounts()}:
        await api.services.accounts.create(login, PASSWORD, tenant)
    visitor = visit(api)
    assert (await visitor.sign_in(login)).status_code == 303
    return visitor


def text_of(response: httpx.Response) -> str:
    """What is on the page, without its tags."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", response.text)))
