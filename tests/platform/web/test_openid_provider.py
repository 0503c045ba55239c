"""Signing in through a certified OpenID provider, another's program in a process of its own, in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from api_running import run_api
from chromium import Tab, listening, running_chromium
from database_fixtures import on_sqlite
from openid_server import free_port

from loraplex.adapters.database import Database
from loraplex.platform.oidc_flow import CALLBACK_PATH

pytestmark = [pytest.mark.anyio, on_sqlite, pytest.mark.slow]

SOURCES = Path(__file__).parents[2] / "openid_provider"


@contextmanager
def running_provider(folder: Path, redirect_uri: str) -> Iterator[str]:
    """Its issuer. npm brings the versions that the lock file names."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no Node.js with npm, which the provider runs on")
    for file in SOURCES.iterdir():
        shutil.copy(file, folder)
    subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=200)
    port = free_port()
    command = [node, "provider.mjs", str(port), redirect_uri]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield f"http://127.0.0.1:{port}"
        process.kill()


async def test_people_sign_in_through_a_provider(database: Database, tmp_path: Path, tiny_model_dir: Path) -> None:
    """Its word makes an operator of whom the mapping names, and lets nobody else in; ours is the session that ends."""
    folder = tmp_path / "provider"
    folder.mkdir()
    port = free_port()
    own = f"http://127.0.0.1:{port}"
    with running_provider(folder, own + CALLBACK_PATH) as issuer:
        settings = {
            "public_url": own,
            "oidc_issuer": issuer,
            "oidc_client_id": "loraplex",
            "oidc_client_secret": "a-secret-of-the-client-that-is-long-enough",
            "oidc_name": "Example",
            "oidc_roles": "platform=operator",
            "oidc_email_domains": "example.com",
            "password_login": False,
        }
        async with (
            run_api(database, tmp_path, tiny_model_dir, **settings) as api,
            listening(api.app, port) as url,
            running_chromium() as browser,
        ):
            tab = await sign_in(Tab(await (await browser.new_context()).new_page(), url), "ops-ada")
            await tab.page.get_by_role("heading", name="API keys").wait_for()
            assert tab.page.url == f"{url}/admin/keys"
            await tab.press("People")
            await tab.page.get_by_role("cell", name="Example").wait_for()
            await tab.check()
            await tab.press("Sign out")
            await tab.page.get_by_text("You are signed out.").wait_for()
            await tab.check()

            other = await sign_in(Tab(await (await browser.new_context()).new_page(), url), "eve")
            await other.page.get_by_role("alert").get_by_text("may not sign in here").wait_for()
            await other.check()
            [account] = await api.services.accounts.list_accounts()
            assert (account.login, account.role, account.has_password) == ("ops-ada", "operator", False)


async def sign_in(tab: Tab, name: str) -> Tab:
    """From a page of ours, by the provider's forms for the name and for its consent."""
    await tab.open("/admin/keys")
    await tab.check()
    await tab.press("Sign in with Example")
    await tab.page.locator("[name=login]").fill(name)
    await tab.page.locator("[name=password]").fill("any")
    await tab.page.locator("button[type=submit]").click()
    await tab.page.get_by_role("button", name="Continue").click()
    return tab
