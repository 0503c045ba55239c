"""`loraplex adapter residency`, `pin`, `unpin` and `evict` against a real server, as a tenant and as an operator."""

import json

import pytest
from click.testing import CliRunner

from loraplex.platform.cli.main import main


@pytest.fixture(scope="module", autouse=True)
def placed(site, make_adapter, tmp_path_factory):
    """acme has `placed`, whose bytes nobody else has."""
    folder = make_adapter(tmp_path_factory.mktemp("placed") / "lora", rank=2, seed=42)
    site.server.upload(site.acme, "placed", folder)
    yield
    with site.server.http(site.acme) as client:
        assert client.delete("/api/v1/adapters/placed").is_success


@pytest.fixture
def run(site, monkeypatch):
    """Run a command as acme, or with another key."""
    monkeypatch.setenv("LORAPLEX_URL", site.server.url)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments, key=site.acme):
        monkeypatch.setenv("LORAPLEX_API_KEY", key)
        return CliRunner().invoke(main, ["adapter", *map(str, arguments)])

    return invoke


def test_a_version_is_followed_through_the_tiers(run, site):
    """Evicted it is on the disk; a request brings it back, which the table, `show` and JSON tell."""
    assert "acme/placed@1 is on the disk" in run("evict", "placed", 1).stdout
    (away,) = json.loads(run("residency", "placed", "--json").stdout)
    assert (away["tier"], away["device_bytes"]) == ("disk", 0)

    completion = site.server.openai(site.acme).completions.create(model="placed", prompt="x", max_tokens=1)
    assert completion.model == "acme/placed@1"

    (back,) = json.loads(run("residency", "placed", "--json").stdout)
    assert (back["tier"], back["loads"]) == ("device", 1)
    (row,) = [line for line in run("residency").stdout.splitlines() if "acme/placed@1" in line]
    assert "device" in row
    assert "UTC" in row
    shown = json.loads(run("show", "placed", "--json").stdout)["versions"][0]["residency"]
    assert shown["tier"] == "device"
    assert "device" in run("show", "placed").stdout


def test_a_pin_is_made_shown_and_ended(run, site):
    """For as long as was said; while it lasts its version cannot be evicted. Operators see whose bytes are pinned."""
    pinned = run("pin", "placed", 1, "--for", "90m")
    assert "acme/placed@1 is pinned until" in pinned.stdout
    refused = run("evict", "placed", 1)
    assert (refused.exit_code, "(adapter_pinned)" in refused.stderr) == (1, True)
    seen = json.loads(run("residency", "--json", key=site.server.admin_key).stdout)
    (entry,) = [entry for entry in seen["data"] if entry["pins"]]
    assert entry["versions"] == ["acme/placed@1"]
    assert seen["memory"]["adapter_pinned_bytes"] == entry["device_bytes"] > 0
    table = run("residency", key=site.server.admin_key).stdout
    assert "acme/placed@1" in table
    assert "pinned; the KV cache has" in table

    assert run("unpin", "placed", 1).exit_code == 0
    assert json.loads(run("residency", "placed", "--json").stdout)[0]["pinned_until"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pin", "placed", 1, "--for", "forever"), "write 90s, 30m, 12h or 7d"),
        (("pin", "placed", 1, "--for", "8d"), "seconds"),
        (("pin", "placed", 99), "adapter_not_found"),
        (("evict", "absent", 1), "adapter_not_found"),
        (("residency", "absent"), "adapter_not_found"),
    ],
)
def test_mistakes_are_told_in_a_line(run, arguments, message):
    """What is wrong and what to do."""
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
