"""The hunt for secrets finds them: a test that tells one, in whatever way, fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from secret_hunt import Answer, SecretHunt

from loraplex.platform.api_keys import new_key

pytest_plugins = ["pytester"]

TOKEN = "x" * 20 + "-_" + "y" * 21


def test_what_is_seen_of_a_secret_is_noted_and_does_not_tell_it() -> None:
    """Keys by their form, tokens within other text, passwords within words; once they are issued."""
    hunt, (_, key) = SecretHunt(), new_key()
    hunt.look(f"{key} {TOKEN} seven herons", "a page")
    assert [leak.startswith("lk_") for leak in hunt.take_leaks()] == [True]
    hunt.remember(TOKEN)
    hunt.remember_password("seven herons")
    hunt.look(f"<a href='/?t=_{TOKEN}_'>", "a page")
    hunt.look(b"login=ada&password=seven+herons.", "a log")
    hunt.look(key[:20] + TOKEN[:-1] + "seven heron", "a page")
    leaks = hunt.take_leaks()
    assert [leak[-6:] for leak in leaks] == ["a page", " a log"]
    assert TOKEN not in "".join(leaks)
    assert hunt.take_leaks() == []


def test_an_answer_may_show_what_it_has_just_made() -> None:
    """Where that is what it is for; not what was there before, and not in another place."""
    hunt = SecretHunt()
    before = hunt.remember(TOKEN[::-1])
    shown, signed_in = Answer(hunt, "POST", "/api/v1/admin/keys"), Answer(hunt, "POST", "/admin/login")
    read = Answer(hunt, "GET", "/admin/keys")
    new = hunt.remember(TOKEN)
    shown.look_at(new[:30].encode())
    shown.look_at(new[30:].encode())
    signed_in.look_at_headers([(b"set-cookie", f"loraplex_session={new}; HttpOnly".encode())])
    assert hunt.take_leaks() == []
    shown.look_at(before.encode())
    signed_in.look_at_headers([(b"location", f"/admin?session={new}".encode())])
    signed_in.look_at(new.encode())
    read.look_at(new[:30].encode())
    read.look_at(new[30:].encode())
    assert len(hunt.take_leaks()) == 4


LEAKS = """
    import logging, httpx, pytest, structlog
    from litestar import Litestar, get
    from loraplex.platform.setup_token import SetupToken
    from loraplex.platform.tenants import new_key

    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    @pytest.fixture
    def secret(tmp_path):
        return SetupToken(tmp_path).issue()

    def test_log(secret):
        logging.getLogger("x").warning("issued %s", secret)

    def test_structured_log():
        structlog.get_logger().info("created", key=new_key()[1])

    def test_teardown(request, secret):
        request.addfinalizer(lambda: print(secret))

    @pytest.mark.anyio
    async def test_answer(secret):
        @get("/{rest:path}")
        async def tell() -> str:
            return "the token is " + secret
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Litestar([tell])), base_url="http://x") as client:
            await client.get("/debug")

    def test_nothing(secret):
        print(secret[:-1], "a word of its length:", "z" * 43)
"""


def test_the_test_that_tells_a_secret_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a log, a structured one, its teardown, an answer; a test that tells none passes."""
    root = Path(__file__).parent
    paths = [str(root), str(root.parent / "src"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    pytester.makepyfile(LEAKS)
    result = pytester.runpytest_subprocess("-p", "secret_hunt", "-p", "no:cacheprovider", "-p", "no:xdist")
    capsys.readouterr()  # this test would tell what those inside of it do
    result.assert_outcomes(failed=3, errors=1, passed=2)
    result.stdout.fnmatch_lines(["*(66 characters) in Captured stdout call*", "*(43 characters) in GET /debug*"])
