"""A version is in the blob store whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loraplex.adapters.blobs import CONFIG_FILE, WEIGHTS_FILE, BlobStore
from loraplex.adapters.errors import AdapterNotFound, AdapterUnavailable
from loraplex.adapters.types import AdapterSpec, ModuleSpec, adapter_digest

SPEC = AdapterSpec({"model.layers.0.self_attn.q_proj": ModuleSpec(2, 2.0)})
SHA = "ab" * 32
DIGEST = adapter_digest(SPEC, SHA)

CRASHING_COMMIT = """
import os, signal, sys
from pathlib import Path
from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.types import AdapterSpec, ModuleSpec

calls_left = int(sys.argv[2])
def dying(call):
    def run(*args, **kwargs):
        global calls_left
        if calls_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        calls_left -= 1
        return call(*args, **kwargs)
    return run

blobs = BlobStore(Path(sys.argv[1]))
with blobs.stage() as staging:
    staging.path("adapter_config.json").write_bytes(b"{}")
    staging.path("adapter_model.safetensors").write_bytes(b"weights")
    for name in ("fsync", "rename", "mkdir", "chmod", "utime"):
        setattr(os, name, dying(getattr(os, name)))
    spec = AdapterSpec({"model.layers.0.self_attn.q_proj": ModuleSpec(2, 2.0)})
    blobs.commit(staging, spec, "ab" * 32)
"""


def commit(blobs: BlobStore, sha: str = SHA, weights: bytes = b"weights") -> str:
    with blobs.stage() as staging:
        staging.path(CONFIG_FILE).write_bytes(b"{}")
        staging.path(WEIGHTS_FILE).write_bytes(weights)
        return blobs.commit(staging, SPEC, sha)


def age(path: Path, seconds: float) -> None:
    for entry in (path, *path.iterdir()):
        os.utime(entry, (0, entry.stat().st_mtime - seconds))


def test_what_was_committed_is_opened(blobs):
    """The digest gives back the specification and the very bytes."""
    stored = blobs.open(commit(blobs))

    assert stored.spec == SPEC
    assert stored.weights_path.read_bytes() == b"weights"
    assert stored.config_path.read_bytes() == b"{}"
    assert stored.size_bytes == 7
    assert all(path.stat().st_mode & 0o222 == 0 for path in stored.weights_path.parent.iterdir())


def test_an_upload_that_is_not_committed_leaves_nothing(blobs, tmp_path):
    """Leaving the stage, by an error too, removes it."""

    def interrupted() -> None:
        with blobs.stage() as staging:
            staging.path(WEIGHTS_FILE).write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_the_same_content_is_kept_once(blobs):
    """A second commit of the same content is the first one's blob, untouched."""
    first = blobs.open(commit(blobs)).weights_path.stat()
    second = blobs.open(commit(blobs)).weights_path.stat()
    assert (first.st_ino, first.st_mtime_ns) == (second.st_ino, second.st_mtime_ns)


@pytest.mark.parametrize("digest", ["", "..", "../" * 10, "A" * 64, "g" * 64, "a" * 63, "a" * 64 + "\n", "é" * 64])
def test_only_a_digest_is_looked_up(blobs, digest):
    """Nothing but 64 lower-case hexadecimal digits becomes a path."""
    with pytest.raises(AdapterNotFound):
        blobs.open(digest)


@pytest.mark.parametrize("name", ["../x", "adapter.json", ""])
def test_only_the_two_files_are_staged(blobs, name):
    """No name from outside becomes a path."""
    with blobs.stage() as staging, pytest.raises(ValueError):
        staging.path(name)


def test_missing_and_damaged_files_are_told(blobs):
    """A version whose bytes are gone or garbled is unavailable, with the remedy, which works."""
    with pytest.raises(AdapterUnavailable, match="upload it again"):
        blobs.open("0" * 64)
    for damage in (b"{", b"[]", b'{"modules": 3}', b'{"modules": {"m": [1]}}', b"\xff"):
        spec_path = blobs.open(commit(blobs)).weights_path.with_name("adapter.json")
        original = spec_path.read_bytes()
        spec_path.chmod(0o644)
        spec_path.write_bytes(damage)
        with pytest.raises(AdapterUnavailable, match="damaged"):
            blobs.open(DIGEST)
        assert commit(blobs) == DIGEST
        assert spec_path.read_bytes() == original
    weights_path = blobs.open(DIGEST).weights_path
    weights = weights_path.read_bytes()
    for damage in (weights_path.unlink, lambda: os.truncate(weights_path, 1)):
        damage()
        commit(blobs)
        assert blobs.open(DIGEST).weights_path.read_bytes() == weights


def test_what_is_kept_outlives_a_sweep(blobs):
    """For the grace period from then on, however old it is; what is not there cannot be kept."""
    digest = commit(blobs)
    os.utime(blobs.open(digest).weights_path.parent, (0, 0))
    blobs.keep(digest)
    assert blobs.sweep([], grace_seconds=60) == []
    os.utime(blobs.open(digest).weights_path.parent, (0, 0))
    assert blobs.sweep([], grace_seconds=60) == [digest]
    with pytest.raises(AdapterUnavailable):
        blobs.keep(digest)


def test_a_commit_needs_both_files(blobs):
    """A version without its configuration cannot come to be."""
    with blobs.stage() as staging:
        staging.path(WEIGHTS_FILE).write_bytes(b"weights")
        with pytest.raises(FileNotFoundError):
            blobs.commit(staging, SPEC, SHA)
    with pytest.raises(AdapterUnavailable):
        blobs.open(DIGEST)


def test_a_process_killed_at_any_point_leaves_all_or_nothing(tmp_path):
    """SIGKILL before each system call of a commit: the blob is absent or complete, and the sweep cleans the rest."""
    outcomes = []
    for calls in range(40):
        root = tmp_path / str(calls)
        root.mkdir()
        child = subprocess.run([sys.executable, "-c", CRASHING_COMMIT, root, str(calls)], check=False)
        blobs = BlobStore(root)
        try:
            stored = blobs.open(DIGEST)
        except AdapterUnavailable:
            outcomes.append("absent")
        else:
            outcomes.append("complete")
            assert (stored.spec, stored.weights_path.read_bytes(), stored.config_path.read_bytes()) == (
                SPEC,
                b"weights",
                b"{}",
            )
        blobs.sweep({DIGEST}, grace_seconds=-60)
        assert list((root / "staging").iterdir()) == []
        assert commit(blobs) == DIGEST
        if child.returncode == 0:
            break
    assert child.returncode == 0, "the commit has more system calls than this test tries"
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {"absent", "complete"}


def test_the_sweep_takes_what_nothing_refers_to(blobs, tmp_path):
    """Referred to, or younger than the grace period: kept. The rest goes, and uploads whose process is gone."""
    live, young, dead = (commit(blobs, sha * 32) for sha in ("01", "02", "03"))
    for digest in (live, dead):
        age(blobs.open(digest).weights_path.parent, 100)
    stray = tmp_path / "store" / "blobs" / "00" / "notes"
    stray.mkdir(parents=True)
    stale = tmp_path / "store" / "staging" / "of-a-dead-process"
    stale.mkdir()
    (stale / WEIGHTS_FILE).write_bytes(b"half")
    with blobs.stage() as running:
        running.path(WEIGHTS_FILE).write_bytes(b"half")
        age(running.directory, 100)

        assert blobs.sweep({live}, grace_seconds=50) == [dead]

        assert running.directory.exists()
    assert not stale.exists()
    assert blobs.open(live)
    assert blobs.open(young)
    assert stray.exists()
    with pytest.raises(AdapterUnavailable):
        blobs.open(dead)


def test_committing_again_renews_the_grace_period(blobs):
    """An old blob that an upload meets again is not swept before the registry knows of it."""
    age(blobs.open(commit(blobs)).weights_path.parent, 100)
    commit(blobs)
    assert blobs.sweep(set(), grace_seconds=50) == []
