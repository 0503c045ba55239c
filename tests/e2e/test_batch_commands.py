"""`loraplex batch` against a real server: what a user types and what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_files import CHAT, by_custom_id, jsonl, request
from click.testing import CliRunner, Result
from e2e.conftest import Site

from loraplex.platform.cli import following
from loraplex.platform.cli.main import main

Run = Callable[..., Result]


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command as acme; the result has exit_code, stdout and stderr."""
    monkeypatch.setenv("LORAPLEX_URL", site.server.url)
    monkeypatch.setenv("LORAPLEX_API_KEY", site.acme)
    return lambda *arguments: CliRunner().invoke(main, ["batch", *map(str, arguments)])


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    """Two good requests and one that is not."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl([b"", request("base"), request("adapter", "tickets"), request("none", "nothing")]))
    return file


def test_a_file_is_submitted_and_its_answers_come_back(run: Run, entries: Path, tmp_path: Path) -> None:
    """On standard output, or in files; it can be listed, shown, and fetched again."""
    submitted = run("submit", entries)
    assert submitted.exit_code == 0, submitted.output
    answers = by_custom_id(submitted.stdout_bytes)
    assert answers.keys() == {"base", "adapter"}
    assert answers["adapter"]["response"]["body"]["model"] == "acme/tickets@1"
    assert "Completed" in submitted.stderr
    assert "3/3" in submitted.stderr
    assert "1 requests have no answer" in submitted.stderr

    [found] = json.loads(run("list", "--json").stdout)[:1]
    assert found["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert found["id"] in run("list").stdout
    assert "is completed: 2 of 3 requests are answered" in run("show", found["id"]).stdout
    assert json.loads(run("show", found["id"], "--json").stdout) == found
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    again = run("results", found["id"], "--output", good, "--errors", bad)
    assert (again.exit_code, again.stdout) == (0, "")
    assert good.read_bytes() == submitted.stdout_bytes
    assert by_custom_id(bad.read_bytes()).keys() == {"none"}
    assert json.loads(run("results", found["id"], "--json").stdout) == found


def test_what_is_wrong_is_told(run: Run, tmp_path: Path) -> None:
    """By the line of the input; a file that is none, a batch that is none; exit code 1 or 2."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl([request("a"), request("b", url=CHAT)]))
    wrong = run("submit", file, "--output", tmp_path / "out.jsonl")
    assert wrong.exit_code == 1
    assert "line 2: The url is not the endpoint of the batch" in wrong.stderr
    assert not (tmp_path / "out.jsonl").exists()
    file.write_text("a,b\n")
    assert (run("submit", file).exit_code, "--endpoint names one" in run("submit", file).stderr) == (2, True)
    assert "No such Batch object" in run("show", "batch_0").stderr


def test_ctrl_c_leaves_the_batch_running(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to look; --detach does not wait; cancel ends it, which its follower is told."""

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "in.jsonl"
    file.write_bytes(jsonl(request(str(number), max_tokens=400, ignore_eos=True) for number in range(200)))
    with monkeypatch.context() as context:
        context.setattr(following.time, "sleep", interrupt)
        left = run("submit", file)
    detached = run("submit", file, "--detach")
    assert (left.exit_code, detached.exit_code) == (following.INTERRUPTED, 0)
    for each in json.loads(run("list", "--json").stdout)[:2]:
        assert f"loraplex batch results {each['id']}" in left.stderr + detached.stdout
        assert "cancel" in run("cancel", each["id"]).stdout
        ended = run("results", each["id"], "--output", tmp_path / each["id"])
        assert (ended.exit_code, "the batch is cancelled" in ended.stderr) == (1, True)
