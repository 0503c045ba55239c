"""What names a source, which places an operator allows, and what a download refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from loraplex.platform.errors import ApiError
from loraplex.platform.imports.download import Download
from loraplex.platform.imports.hub import HubSource
from loraplex.platform.imports.source_names import BucketFolder, HubRepo, parse_source, require_allowed
from loraplex.platform.settings import Settings

COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"hf://Acme/Bot.v1@{COMMIT}", HubRepo("Acme/Bot.v1", COMMIT)),
        ("hf://acme/bot", HubRepo("acme/bot", "main")),
        ("hf://acme/bot@refs/pr/1", HubRepo("acme/bot", "refs/pr/1")),
        ("s3://models", BucketFolder("models", "")),
        ("s3://models/a/run=1/b@2/", BucketFolder("models", "a/run=1/b@2")),
    ],
)
def test_sources_are_read_and_written_in_one_form(text, expected):
    """What is written back reads as the same source."""
    assert parse_source(text) == expected
    assert parse_source(str(expected)) == expected


@pytest.mark.parametrize(
    ("allowed", "source", "is_allowed"),
    [
        ("hf://acme/", "hf://acme/bot", True),
        ("hf://acme", "hf://acme/bot", True),
        ("hf://acme/*", "hf://acme/bot", True),
        ("hf://acme/bot", "hf://acme/bot@v2", True),
        ("hf://acme/bot", "hf://acme/bot2", False),
        ("hf://acme/", "hf://acme-evil/bot", False),
        ("hf://*", "hf://anyone/bot", True),
        ("hf://*", "s3://models/bot", False),
        ("s3://models/shared", "s3://models/shared", True),
        ("s3://models/shared/", "s3://models/shared/bot", True),
        ("s3://models/shared", "s3://models/shared2/bot", False),
        ("s3://models", "s3://models2/bot", False),
        ("s3://models/{tenant}/", "s3://models/acme/bot", True),
        ("s3://models/{tenant}/", "s3://models/globex/bot", False),
    ],
)
def test_whole_parts_of_a_path_are_allowed(allowed, source, is_allowed):
    """What merely begins like an allowed place is none; {tenant} is the caller."""
    entries = Settings(import_sources=allowed).import_sources
    if is_allowed:
        require_allowed(parse_source(source), entries, "acme")
    else:
        with pytest.raises(ApiError) as refused:
            require_allowed(parse_source(source), entries, "acme")
        assert (refused.value.status, refused.value.code) == (403, "source_not_allowed")


@pytest.mark.parametrize(
    "wrong",
    [
        {"import_sources": "https://hub"},
        {"import_sources": ["hf://acme/", "*"]},
        {"import_sources": "hf://{user}/"},
        {"import_sources": "hf://acme/bot@main"},
        {"hf_endpoint": "ftp://hub"},
        {"hf_endpoint": "https://user:secretword@hub"},
        {"s3_endpoint": "https://s3?x=1"},
        {"s3_secret_access_key": "secretword"},
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_told(wrong):
    """Each by its name; what was given is not quoted where it may be a credential."""
    with pytest.raises(ValidationError, match=next(iter(wrong))) as refused:
        Settings(**wrong)
    assert "secretword" not in str(refused.value)


def test_buckets_need_the_extra(monkeypatch):
    """The server does not start with a bucket that it could not read; it says what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "obstore" else find(name))
    with pytest.raises(ValidationError, match=r"pip install 'loraplex\[s3\]'"):
        Settings(import_sources="hf://acme/,s3://models/")
    assert Settings(import_sources="hf://acme/ hf://globex/").import_sources == ("hf://acme/", "hf://globex/")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://cdn.example/x?signature=1", "https://cdn.example/x?signature=1"),
        ("/api/resolve-cache/models/acme/bot/x", "https://hub.example/api/resolve-cache/models/acme/bot/x"),
        ("/Acme/bot/resolve/main/x", "https://hub.example/Acme/bot/resolve/main/x"),
        ("/evil/bot/resolve/main/x", "source_not_found"),
        ("http://cdn.example/x", "source_refused"),
        ("http://169.254.169.254/latest/meta-data", "source_refused"),
        ("file:///etc/passwd", "source_refused"),
        ("https://[::1", "source_refused"),
    ],
)
def test_redirects_of_the_hub_stay_encrypted_and_in_the_repository(location, expected):
    """Elsewhere only by https; on the hub itself only to the repository that was asked for."""
    source = HubSource(httpx.AsyncClient(), "https://hub.example", None, HubRepo("acme/bot", "main"))
    request = httpx.Request("GET", "https://hub.example/acme/bot/resolve/main/x")
    response = httpx.Response(302, headers={"location": location}, request=request)
    if expected.startswith("https://"):
        assert str(source._redirected(response)) == expected
    else:
        with pytest.raises(ApiError) as refused:
            source._redirected(response)
        assert refused.value.code == expected


@pytest.mark.anyio
async def test_a_download_never_grows_beyond_its_bound(tmp_path: Path):
    """Neither by what is announced nor by what comes; a restart forgets what came."""
    with Download(tmp_path / "file", max_bytes=10) as download:
        download.expect(10)
        await download.write(b"12345678")
        for action in (lambda: download.write(b"901"), lambda: _expect(download, 11)):
            with pytest.raises(ApiError) as refused:
                await action()
            assert (refused.value.status, refused.value.code) == (413, "source_too_large")
        download.restart()
        await download.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert download.received_bytes == 3


async def _expect(download: Download, total_bytes: int) -> None:
    download.expect(total_bytes)
