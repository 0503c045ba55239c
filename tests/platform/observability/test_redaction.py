"""No secret in a line of the log, under whatever name and in whatever text."""

from __future__ import annotations

import io
import json
import logging
import secrets
from collections.abc import Iterator

import pytest
import structlog

from loraplex.platform.api_keys import new_key
from loraplex.platform.logging import configure_logging, redact
from loraplex.platform.passwords import Passwords
from loraplex.platform.redaction import REDACTED, redacted

SESSION = secrets.token_urlsafe(32)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the server writes as JSON."""
    written = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setattr("sys.stderr", written)
    configure_logging("info", "json")
    yield written
    structlog.reset_defaults()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    "field",
    ["authorization", "Authorization", "set-cookie", "cookie", "password", "new_password", "hf_token", "token",
     "s3_secret_access_key", "api_key", "client_secret", "credentials"],
)  # fmt: skip
def test_a_field_with_a_secrets_name_is_not_shown(field: str) -> None:
    """Whatever is in it, in a mapping too."""
    assert redacted(field, "x") == REDACTED
    assert redacted("request", {"headers": [{field: "x"}]}) == {"headers": [{field: REDACTED}]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"got {new_key()[1]}, bye", f"got {REDACTED}, bye"),
        (f"cookie loraplex_session={SESSION}; Path=/", f"cookie loraplex_session={REDACTED}; Path=/"),
        (f"/admin/setup?token={SESSION}&a=1", f"/admin/setup?token={REDACTED}&a=1"),
        ("postgresql://app:hunter2@db/x", f"postgresql://{REDACTED}@db/x"),
        ("host=db user=app password=hunter2 dbname=x", f"host=db user=app password={REDACTED} dbname=x"),
        ("Authorization: Bearer abcdefghij", f"Authorization: Bearer {REDACTED}"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", f"Authorization: Basic {REDACTED}"),
        ("hash $argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA is", f"hash {REDACTED} is"),
    ],
    ids=["key", "cookie", "query", "url", "dsn", "bearer", "basic", "password-hash"],
)
def test_a_text_that_holds_a_secret_is_shown_without(text: str, shown: str) -> None:
    """The rest of it stays."""
    assert redacted("event", text) == shown


@pytest.mark.parametrize(
    "text",
    ["prompt_tokens=5", "sha256 " + "0a" * 32, "basic authentication", "/api/v1/adapters/{name}", "req_" + "0a" * 16,
     "a_name_of_forty_three_characters_in_all_ok_"],
)  # fmt: skip
def test_what_is_no_secret_is_shown(text: str) -> None:
    """Digests, ids and names that are merely long."""
    assert redacted("event", text) == text
    assert redacted("prompt_tokens", 5) == 5
    assert redacted("key_id", "k1") == "k1"


@pytest.mark.anyio
async def test_every_kind_of_secret_that_is_issued_is_found() -> None:
    """A thousand tokens, since they are drawn at random."""
    issued = [secrets.token_urlsafe(32) for _ in range(1000)]
    assert {redacted("event", f"got {secret}.") for secret in issued} == {f"got {REDACTED}."}
    assert REDACTED in redacted("event", await Passwords().hash("correct horse battery"))


def test_lines_of_all_loggers_are_without_secrets(log: io.StringIO) -> None:
    """Ours and the standard library's; in arguments, objects and tracebacks."""
    key = "lk_0123456789ab_but_not_a_real_one"
    structlog.get_logger("ours").warning("got", what=[key], error=ValueError(f"no {key}"), password="hunter2")
    logging.getLogger("theirs").warning("got %s", key)
    try:
        raise ConnectionError(f"postgresql://app:hunter2@db: no {key}")
    except ConnectionError:
        structlog.get_logger("ours").exception("failed")
        logging.getLogger("theirs").exception("failed")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert len(lines) == 4
    assert not any(secret in log.getvalue() for secret in (key, "hunter2"))
    assert lines[0]["error"] == f"ValueError('no {REDACTED}')"
    assert all("ConnectionError" in line["exception"] for line in lines[2:])


def test_a_bottomless_field_is_cut_off() -> None:
    """A list that holds itself, and one with a million items, cost a bounded time."""
    bottomless: list[object] = []
    bottomless.append(bottomless)
    event = redact(None, "info", {"event": "x", "a": bottomless, "b": range(10**9), "c": list(range(10**6))})
    assert len(event["c"]) == 100
