"""No secret that the tests issue is seen anywhere but in the answer that hands it out: a test that tells one fails.

What is issued is remembered where it is made: keys, tokens of sessions and of set-up, passwords. Looked at is all that
comes out: every answer of an application or a server, headers and all; what a test prints and logs; the logs of servers
that run for themselves; databases, when their tests are over. Whatever else there is to look at, `HUNT.look` takes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

KEY = re.compile(rb"lk_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}")
"""Also one that was issued elsewhere: no other text looks like it."""
TOKEN_CHARS = 43
LONG_WORD = re.compile(rb"[A-Za-z0-9_-]{%d,}" % TOKEN_CHARS)
MIN_PASSWORD_CHARS = 12
OVERLAP_BYTES = 128
"""Of two chunks of a stream: no secret is longer."""

SHOWN = re.compile(
    r"POST (/api/v1/admin/keys(/\w+/rotate)?|/admin/keys/(new|\w+/rotate)|/admin/people/(new|[\w.-]+/password))"
)
"""The answers that show a secret, which they have just made."""
SIGNED_IN = re.compile(r"POST /admin/(login|setup|account/password)|GET /admin/login/oidc/callback")
"""The answers that hand out a session, in a cookie."""


class SecretHunt:
    """What is secret, and where it was seen."""

    def __init__(self) -> None:
        self._issued: dict[bytes, int] = {}
        self._passwords: set[bytes] = set()
        self._recent: list[bytes] = []
        self._leaks: list[str] = []

    @property
    def mark(self) -> int:
        """How many secrets there are by now."""
        return len(self._issued)

    def remember(self, secret: str) -> str:
        """A key or a token of 256 bits, which is one word."""
        encoded = secret.encode()
        self._issued.setdefault(encoded, len(self._issued))
        self._recent.append(encoded)
        return secret

    def remember_password(self, password: str) -> None:
        """One that a person may have chosen: any text. Also as it stands in a URL, a form and a page."""
        if len(password) >= MIN_PASSWORD_CHARS:
            for written in {password, quote(password), quote_plus(password), escape(password)}:
                self._issued.setdefault(written.encode(), len(self._issued))
                self._passwords.add(written.encode())

    def look(self, seen: bytes | str, where: str, *, since: int | None = None) -> None:
        """Note every secret in it. since: a mark; what was issued after it may be seen here."""
        data = seen.encode(errors="replace") if isinstance(seen, str) else seen
        found = {*KEY.findall(data), *self._tokens_in(data)}
        found.update(password for password in self._passwords if password in data)
        self._note(found, where, since)

    def look_at_file(self, path: Path) -> None:
        """As `look`, but for tokens those of this test alone."""
        data = path.read_bytes() if path.exists() else b""
        found = {*KEY.findall(data), *(secret for secret in (*self._recent, *self._passwords) if secret in data)}
        self._note(found, path.name, None)

    def take_leaks(self) -> list[str]:
        leaks, self._leaks = self._leaks, []
        return leaks

    def begin_test(self) -> None:
        self._recent.clear()

    def _tokens_in(self, data: bytes) -> Iterator[bytes]:
        for word in LONG_WORD.findall(data):
            for start in range(len(word) - TOKEN_CHARS + 1):
                if (part := word[start : start + TOKEN_CHARS]) in self._issued:
                    yield part

    def _note(self, found: Iterable[bytes], where: str, since: int | None) -> None:
        for secret in found:
            if since is None or self._issued.get(secret, -1) < since:
                self._leaks.append(f"{secret[:8].decode()}… ({len(secret)} characters) in {where}")


HUNT = SecretHunt()


class Answer:
    """An answer as it goes out, looked at header by header and chunk by chunk."""

    def __init__(self, hunt: SecretHunt, method: str, path: str) -> None:
        self._hunt = hunt
        self._name = f"{method} {path}"
        self._mark = hunt.mark
        self._tail = b""

    def look_at_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in headers:
            hands_out = name.lower() == b"set-cookie" and SIGNED_IN.fullmatch(self._name)
            self._hunt.look(value, f"{self._name}: {name.decode()}", since=self._mark if hands_out else None)

    def look_at(self, chunk: bytes) -> None:
        since = self._mark if SHOWN.fullmatch(self._name) else None
        self._hunt.look(self._tail + chunk, self._name, since=since)
        self._tail = (self._tail + chunk)[-OVERLAP_BYTES:]


def pytest_configure(config: pytest.Config) -> None:
    """Listen where secrets are made, and where answers go out."""
    import httpx
    from litestar import Litestar

    from loraplex.platform import key_changes, tenants
    from loraplex.platform.passwords import Passwords
    from loraplex.platform.setup_token import SetupToken
    from loraplex.platform.web_sessions import WebSessions

    tenants.new_key = key_changes.new_key = _issuing(tenants.new_key, lambda made: made[1])
    SetupToken.issue = _issuing(SetupToken.issue, lambda token: token)
    WebSessions.open = _opening(WebSessions.open)
    Passwords.hash = _hashing(Passwords.hash)
    Litestar.__call__ = _answering(Litestar.__call__)
    httpx.Client.send = _receiving(httpx.Client.send)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    HUNT.begin_test()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A test fails with whatever has told a secret since the last look, in its own words or in an answer."""
    report = yield
    for title, text in report.sections:
        if title.endswith(report.when):
            HUNT.look(text, title)
    if leaks := HUNT.take_leaks():
        if report.outcome != "failed":
            report.outcome, report.longrepr = "failed", ""
        report.longrepr = f"{report.longrepr}\nsecrets were told:\n  " + "\n  ".join(dict.fromkeys(leaks))
    return report


def _issuing(make: Callable[..., Any], secret_of: Callable[[Any], str]) -> Callable[..., Any]:
    @functools.wraps(make)
    def issue(*arguments: Any, **options: Any) -> Any:
        made = make(*arguments, **options)
        HUNT.remember(secret_of(made))
        return made

    return issue


def _opening(open_session: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(open_session)
    async def open_and_remember(*arguments: Any) -> str:
        return HUNT.remember(await open_session(*arguments))

    return open_and_remember


def _hashing(hash_password: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(hash_password)
    async def hash_and_remember(passwords: Any, password: str) -> str:
        HUNT.remember_password(password)
        return await hash_password(passwords, password)

    return hash_and_remember


def _answering(call: Callable[..., Any]) -> Callable[..., Any]:
    """Every application of this process, whoever asks it: a client of a test, a browser, a line of a batch."""

    @functools.wraps(call)
    async def answer(app: Any, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await call(app, scope, receive, send)
        seen = Answer(HUNT, scope["method"], scope["path"])

        async def look_and_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.look_at_headers(message.get("headers", ()))
            elif message["type"] == "http.response.body":
                seen.look_at(message.get("body", b""))
            await send(message)

        return await call(app, scope, receive, look_and_send)

    return answer


def _receiving(send: Callable[..., Any]) -> Callable[..., Any]:
    """Servers in processes of their own, as far as they answer in one piece. What they hand out was made there."""

    @functools.wraps(send)
    def send_and_look(client: Any, request: Any, **options: Any) -> Any:
        response = send(client, request, **options)
        path = request.extensions.get("target", request.url.raw_path).decode(errors="replace").partition("?")[0]
        if not options.get("stream") and not SHOWN.fullmatch(f"{request.method} {path}"):
            seen = Answer(HUNT, request.method, path)
            seen.look_at_headers(response.headers.raw)
            seen.look_at(response.content)
        return response

    return send_and_look
