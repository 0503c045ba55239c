"""Pictures of the admin pages, light and dark, in docs/screens/: of a server that has something to show.

Starts one on the default base with the example adapters, gives it some traffic, and goes through every page in a
Chromium that is found on the system. `--only NAME` takes one page's pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from demo_server import ADAPTERS, Keys, Server, bearer, loraplex, post, prepare_model, publish, serving  # noqa: E402
from screenshot_usage import write_usage  # noqa: E402

SCREENS = ROOT / "docs" / "screens"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 820}
PASSWORD = "a sentence is easy to keep"  # noqa: S105  of a server that ends with this script

PAGES = {
    "overview": "/admin",
    "adapters": "/admin/adapters",
    "adapter": "/admin/adapters/acme/concierge",
    "version": "/admin/adapters/acme/concierge/versions/2",
    "upload": "/admin/adapters/acme/concierge/upload",
    "adapter-new": "/admin/adapters/new?tenant=acme",
    "tenants": "/admin/tenants",
    "tenant": "/admin/tenants/acme",
    "tenant-new": "/admin/tenants/new",
    "keys": "/admin/keys",
    "key-new": "/admin/keys/new?tenant=acme",
    "usage": "/admin/usage?range=30d",
    "requests": "/admin/requests?range=7d",
    "prices": "/admin/prices",
    "people": "/admin/people",
    "person-new": "/admin/people/new",
    "account": "/admin/account",
    "nothing": "/admin/nothing",
}


STEPS = ("setup", "empty", "playground", "key-created", "alias-move", "request", "login")
"""What can be seen only after something was done."""


def main() -> None:
    """Set-up and sign-in first: they can be seen only then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[*PAGES, *STEPS])
    only = parser.parse_args().only
    SCREENS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        data_dir = Path(folder)
        if (models := ROOT / ".cache" / "models").is_dir():
            (data_dir / "models").symlink_to(models.resolve())
        prepare_model(data_dir)
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"])
        with serving(data_dir, Console()) as server:
            take_pictures(browser, server, only)
        browser.close()


def find_chromium() -> str:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise SystemExit("There is no Chromium: install Debian's chromium, or set CHROMIUM to a program.")
    return program


def take_pictures(browser: Browser, server: Server, only: str | None) -> None:
    page = browser.new_context(viewport=SIZE, base_url=server.url, reduced_motion="reduce").new_page()

    def take(name: str, path: str | None = None) -> None:
        if only in (None, name):
            picture(page, name, path)

    take("setup", "/admin/setup")
    token = (server.data_dir / "setup-token").read_text().strip()
    page.goto("/admin/setup")
    for name, value in (("token", token), ("login", "ada"), ("password", PASSWORD)):
        page.fill(f"[name={name}]", value)
    page.click("button[type=submit]")
    take("empty", "/admin")
    fill(server, Keys(server))
    for name, path in PAGES.items():
        take(name, path)
    page.goto("/admin/playground?tenant=acme&model=acme/ticket-router@1")
    page.fill("#prompt", "My parcel has not arrived yet. Where is it?")
    page.locator(".answer select").nth(2).select_option("acme/concierge@1")
    page.fill("#max-tokens", "48")
    page.click("text=Ask all")
    for number in range(3):
        page.locator(".answer").nth(number).get_by_text("tokens in").wait_for()
    take("playground")
    page.goto("/admin/keys/new?tenant=acme")
    page.fill("[name=name]", "checkout service")
    page.click("button.primary")
    page.locator("#secret").evaluate("element => { element.value = `lk_${'0'.repeat(12)}_…` }")  # no key in a picture
    take("key-created")
    page.goto("/admin/adapters/acme/concierge")
    page.click("summary:has-text('Move or split')")
    take("alias-move")
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
    page.goto(f"/admin/requests?range=custom&end={yesterday}&tenant=acme&adapter=concierge")
    page.locator("tbody th a").nth(2).click()
    page.get_by_role("heading", name="Times").wait_for()
    take("request")
    page.click("text=Sign out")
    take("login", "/admin/login")


def picture(page: Page, name: str, path: str | None) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        if path is not None:
            page.goto(path)
        page.mouse.move(0, 0)
        page.screenshot(path=SCREENS / f"{name}-{scheme}.png", full_page=name != "requests")  # which is long


def fill(server: Server, keys: Keys) -> None:
    """Three tenants, adapters with versions and a canary, some requests."""
    for slug, name in (("acme", "Acme Support"), ("globex", "Globex Publishing"), ("initech", "Initech")):
        post(server, "/api/v1/admin/tenants", keys.operator(), json={"slug": slug, "name": name}, exists_ok=True)
    suspended = {"suspended": True}
    url = f"{server.url}/api/v1/admin/tenants/initech"
    httpx.patch(url, headers=bearer(keys.operator()), json=suspended).raise_for_status()
    acme, globex = keys.tenant("acme"), keys.tenant("globex")
    body = {"tenant": "acme", "name": "nightly evaluation", "scopes": ["inference"]}
    post(server, "/api/v1/admin/keys", keys.operator(), json=body | {"expires_at": "2030-01-01T00:00:00Z"})
    for folder in ("house-style", "ticket-router"):
        publish(server, acme, "concierge", ADAPTERS / folder)
    for key, name in ((acme, "ticket-router"), (acme, "order-json"), (globex, "house-style")):
        publish(server, key, name, ADAPTERS / name)
    for split in ({"1": 1}, {"1": 90, "2": 10}):
        alias = f"{server.url}/api/v1/adapters/concierge/aliases/prod"
        httpx.put(alias, headers=bearer(acme), json={"split": split}).raise_for_status()
    pin = f"{server.url}/api/v1/adapters/concierge/versions/2/pin"
    httpx.put(pin, headers=bearer(acme), json={"seconds": 8 * 3600}, timeout=60).raise_for_status()
    for key, model in ((acme, "concierge@1"), (acme, "concierge@2"), (acme, "ticket-router"), (globex, "house-style")):
        messages = [{"role": "user", "content": "My parcel has not arrived yet."}]
        post(server, "/v1/chat/completions", key, json={"model": model, "messages": messages, "max_tokens": 16})
    prices = {"currency": "EUR", "default": {"prompt": 150_000, "cached": 15_000, "completion": 600_000}}
    dear = {"acme/concierge": {"prompt": 300_000, "cached": 30_000, "completion": 1_200_000}}
    url = f"{server.url}/api/v1/admin/usage/prices"
    httpx.put(url, headers=bearer(keys.operator()), json=prices | {"adapters": dear}).raise_for_status()
    written = write_usage(f"sqlite:///{server.data_dir / 'loraplex.db'}")
    with ThreadPoolExecutor(1) as pool:  # playwright has a loop in this thread
        pool.submit(asyncio.run, written).result()
    person = ["account", "create", "wile", "--tenant", "acme", "--data-dir", str(server.data_dir)]
    subprocess.run([loraplex(), *person], check=True, capture_output=True)


if __name__ == "__main__":
    main()
