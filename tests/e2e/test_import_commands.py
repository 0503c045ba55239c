"""`loraplex adapter push` of what a hub or a bucket has, against a real server: what is typed and what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from bucket_server import Bucket
from click.testing import CliRunner, Result
from e2e.conftest import Site
from e2e.server import shown_bytes
from hub_server import COMMIT, Hub

from loraplex.platform.cli import following
from loraplex.platform.cli.database import print_table
from loraplex.platform.cli.main import main
from loraplex.platform.cli.transfers import transfer_progress

Run = Callable[..., Result]


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command as acme; the result has exit_code, stdout and stderr."""
    monkeypatch.setenv("LORAPLEX_URL", site.server.url)
    monkeypatch.setenv("LORAPLEX_API_KEY", site.acme)
    return lambda *arguments: CliRunner().invoke(main, ["adapter", *arguments])


@pytest.fixture
def bot(hub: Hub, make_adapter: Callable[..., Any], tmp_path: Any) -> Hub:
    """The hub, with an adapter of its own in acme/bot."""
    hub.add("acme/bot", make_adapter(tmp_path / "lora", rank=2, modules=("v_proj",), seed=11))
    return hub


def test_an_import_is_followed_until_it_serves(run: Run, bot: Hub, site: Site) -> None:
    """A new name is made; the end tells the version, the commit that it is from, and what to type next."""
    imported = run("push", "hf://acme/bot", "imported")
    assert imported.exit_code == 0, imported.output
    assert f"Version 1 of imported is ready, from hf://acme/bot@{COMMIT}" in imported.stdout
    assert f'loraplex chat imported@1 --url {site.server.url} "Hello"' in imported.stdout
    size = sum(len(data) for name, data in bot.repos["acme/bot", COMMIT].items() if name.startswith("adapter_"))
    assert shown_bytes(imported.stderr) == {"Succeeded": f"{size / 1e3:.1f}/{size / 1e3:.1f} kB"}
    again = json.loads(run("push", f"hf://acme/bot@{COMMIT}", "imported", "--json").stdout)
    assert (again["state"], again["version"], again["version_state"]) == ("succeeded", 1, "ready")
    assert CliRunner().invoke(main, ["chat", "imported@1", "Hello", "--max-tokens", "2"]).exit_code == 0
    assert run("delete", "imported").exit_code == 0
    named = run("push", "hf://acme/bot", "--alias", "prod")
    assert named.exit_code == 0, named.output
    assert json.loads(run("show", "bot", "--json").stdout)["aliases"]["prod"]["split"] == {"1": 1}
    assert run("push", "hf://acme/bot", "--alias", "prod", "--detach").exit_code == 2
    assert run("delete", "bot").exit_code == 0


def test_a_folder_of_a_bucket_is_imported_under_the_folders_name(run: Run, bucket: Bucket) -> None:
    """Its last part, whatever stands before it; the bytes that the bar ends with are those of its two files."""
    pushed = run("push", "s3://models/of@acme/bot/", "--alias", "prod")

    assert pushed.exit_code == 0, pushed.output
    assert "Version 1 of bot is ready, from s3://models/of@acme/bot." in pushed.stdout
    size = sum(path.stat().st_size for path in bucket.folder.glob("adapter_*"))
    assert shown_bytes(pushed.stderr) == {"Succeeded": f"{size / 1e3:.1f}/{size / 1e3:.1f} kB"}
    assert json.loads(run("show", "bot", "--json").stdout)["aliases"]["prod"]["split"] == {"1": 1}
    assert "(source_not_found)" in run("push", "s3://models/nothing", "bot").stderr
    assert "(source_not_allowed)" in run("push", "s3://others/bot").stderr
    assert run("delete", "bot").exit_code == 0


def test_what_a_server_says_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """In bars and tables: reasons quote what people wrote, and square brackets and colons in that are no markup."""
    reason = "no adapter '[/x]' [bold] :cat:"
    with transfer_progress() as bar:
        bar.add_task(reason, total=None)
    print_table("state", rows=iter([(reason,)]))
    shown = capsys.readouterr()
    assert (reason in shown.err, reason in shown.out) == (True, True)


def test_ctrl_c_leaves_the_import_running(run: Run, bot: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to look; whoever looks follows it to its end. --detach does not wait, --cancel ends it."""

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    bot.proceed.clear()
    with monkeypatch.context() as context:
        context.setattr(following.time, "sleep", interrupt)
        left = run("push", "hf://acme/bot", "watched")
    assert left.exit_code == following.INTERRUPTED
    [watched] = json.loads(run("imports", "--json").stdout)[:1]
    assert f"loraplex adapter imports {watched['id']}" in left.stderr
    detached = run("push", "hf://acme/bot", "watched", "--detach")
    assert (detached.exit_code, "loraplex adapter imports" in detached.stdout) == (0, True)
    [other] = json.loads(run("imports", "--json").stdout)[:1]
    assert run("imports", other["id"], "--cancel").exit_code == 0
    assert "was cancelled" in run("imports", other["id"]).stderr
    bot.proceed.set()
    assert "Version 1 of watched is ready" in run("imports", watched["id"]).stdout
    listed = run("imports").stdout
    assert "Succeeded" in listed
    assert "Cancelled" in listed
    assert run("delete", "watched").exit_code == 0


def test_what_is_wrong_is_told(run: Run, bot: Hub) -> None:
    """A source that is not allowed makes no adapter; a refused adapter tells every failed check; exit code 1."""
    refused = run("push", "hf://elsewhere/bot", "nothing")
    assert (refused.exit_code, "(source_not_allowed)" in refused.stderr) == (1, True)
    assert "nothing" not in run("list").stdout
    bot.repos["acme/bad", COMMIT] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"pickle"}
    invalid = run("push", f"hf://acme/bad@{COMMIT}", "bad")
    assert (invalid.exit_code, "refused (adapter_invalid):" in invalid.stderr) == (1, True)
    assert json.loads(run("push", f"hf://acme/bad@{COMMIT}", "bad", "--json").stdout)["state"] == "failed"
    assert "(import_not_found)" in run("imports", "none").stderr
    assert run("imports", "--cancel").exit_code == 2
    assert run("delete", "bad").exit_code == 0
