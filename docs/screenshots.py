"""Pictures of the admin pages, light and dark, in docs/screens/: of a server that has something to show.

Starts one on the default base with the example adapters, gives it some traffic, and goes through every page in a
Chromium that is found on the system. `--only NAME` takes one page's pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from busy import SERVER_OPTIONS, traffic  # noqa: E402
from demo_server import ADAPTERS, Keys, Server, bearer, loraplex, post, prepare_model, publish, serving  # noqa: E402
from screenshot_usage import write_usage  # noqa: E402

SCREENS = ROOT / "docs" / "screens"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 820}
LIVE_MS = 65_000
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
    "limits": "/admin/limits",
    "tenant-limits": "/admin/limits/acme",
    "usage": "/admin/usage?range=30d",
    "requests": "/admin/requests?range=7d",
    "prices": "/admin/prices",
    "people": "/admin/people",
    "person-new": "/admin/people/new",
    "audit": "/admin/audit",
    "settings": "/admin/settings",
    "account": "/admin/account",
    "nothing": "/admin/nothing",
}


STEPS = (
    "setup", "empty", "playground", "live", "key-created", "key", "key-edit", "alias-move", "jobs", "request", "login",
)  # fmt: skip
"""What can be seen only after something was done."""
IMPORTS = ("--import-sources", "hf://acme/", "--hf-endpoint", "http://127.0.0.1:9")


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
        if only != "live":
            with serving(data_dir, Console(), *IMPORTS) as server:
                take_pictures(browser, server, only)
        if only in (None, "live"):
            busy_dir = data_dir / "busy"
            busy_dir.mkdir()
            (busy_dir / "models").symlink_to(data_dir / "models")
            with serving(busy_dir, Console(), *SERVER_OPTIONS) as server:
                take_live_pictures(browser, server)
        browser.close()


def find_chromium() -> str:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise SystemExit("There is no Chromium: install Debian's chromium, or set CHROMIUM to a program.")
    return program


def take_pictures(browser: Browser, server: Server, only: str | None) -> None:
    page = new_page(browser, server)

    def take(name: str, path: str | None = None) -> None:
        if only in (None, name):
            picture(page, name, path)

    take("setup", "/admin/setup")
    set_up(page, server)
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
    page.click("text=Done")
    key = page.url
    page.click("text=Edit")
    page.check("#r-some")
    page.check("#a-concierge")
    page.check("#a-order-json")
    take("key-edit")
    page.click("text=Save")
    page.click("summary:has-text('Rotate')")
    page.click("text=Make a new secret")
    take("key", key)
    page.goto("/admin/adapters/acme/concierge")
    page.click("summary:has-text('Move or split')")
    take("alias-move")
    begin_jobs(server, Keys(server))
    take("jobs", "/admin/jobs")
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
    page.goto(f"/admin/requests?range=custom&end={yesterday}&tenant=acme&adapter=concierge")
    page.locator("tbody th a").nth(2).click()
    page.get_by_role("heading", name="Times").wait_for()
    take("request")
    page.click("text=Sign out")
    take("login", "/admin/login")


def take_live_pictures(browser: Browser, server: Server) -> None:
    """Of a server at work: the page is given time to fill its minute."""
    page = new_page(browser, server, {"width": 1440, "height": 900})
    set_up(page, server)
    page.goto("/admin/live")
    page.get_by_text("Nothing runs.").wait_for()
    picture(page, "live-empty", None)
    with traffic(server, Keys(server), server.data_dir / "variants"):
        page.goto("/admin/live")
        page.locator(".lane").first.wait_for()
        page.wait_for_timeout(LIVE_MS)
        picture(page, "live", None)


def new_page(browser: Browser, server: Server, size: Any = SIZE) -> Page:
    return browser.new_context(viewport=size, base_url=server.url, reduced_motion="reduce").new_page()


def set_up(page: Page, server: Server) -> None:
    """The first account, which is signed in then."""
    token = (server.data_dir / "setup-token").read_text().strip()
    page.goto("/admin/setup")
    for name, value in (("token", token), ("login", "ada"), ("password", PASSWORD)):
        page.fill(f"[name={name}]", value)
    page.click("button[type=submit]")
    page.get_by_role("heading", name="Overview").wait_for()


def picture(page: Page, name: str, path: str | None) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        if path is not None:
            page.goto(path)
        page.mouse.move(0, 0)
        page.wait_for_timeout(300)  # what scripts draw follows the scheme a moment later
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


def begin_jobs(server: Server, keys: Keys) -> None:
    """A batch that has ended and one that runs, imports, half an upload, a version that is taken out."""
    acme, globex = keys.tenant("acme"), keys.tenant("globex")
    for _ in range(2):
        job = post(server, "/api/v1/imports", acme, json={"adapter": "concierge", "source": "hf://acme/concierge"})
    httpx.delete(f"{server.url}/api/v1/imports/{job['id']}", headers=bearer(acme)).raise_for_status()
    for lines in (2, 400):
        body = {"model": "order-json", "prompt": "Two teapots, please.", "max_tokens": 16}
        entries = [
            {"custom_id": str(line), "method": "POST", "url": "/v1/completions", "body": body} for line in range(lines)
        ]
        content = "\n".join(map(json.dumps, entries)).encode()
        file = post(server, "/v1/files", acme, files={"file": content}, data={"purpose": "batch"})
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = post(server, "/v1/batches", acme, json=wanted)
        while batch["request_counts"]["completed"] < min(lines, 60):
            time.sleep(0.5)
            batch = httpx.get(f"{server.url}/v1/batches/{batch['id']}", headers=bearer(acme)).json()
    sizes = {"adapter_config.json": 900, "adapter_model.safetensors": 3 << 20}
    files = [{"name": name, "size_bytes": size, "sha256": "0" * 64} for name, size in sizes.items()]
    upload = post(server, "/api/v1/uploads", globex, json={"adapter": "house-style", "files": files})
    headers = bearer(globex) | {"content-type": "application/offset+octet-stream", "upload-offset": "0"}
    sent = f"{server.url}/api/v1/uploads/{upload['id']}/files/adapter_model.safetensors"
    httpx.patch(sent, headers=headers, content=b"0" * (2 << 20)).raise_for_status()
    versions = httpx.get(f"{server.url}/api/v1/adapters/house-style/versions", headers=bearer(globex)).json()["data"]
    taken_out = f"/api/v1/admin/versions/{versions[-1]['digest']}/quarantine"
    post(server, taken_out, keys.operator(), json={"reason": "it answers in another language than it is asked in"})


if __name__ == "__main__":
    main()
