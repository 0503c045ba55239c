"""What a tenant is told of its own use, and that nobody else's shows through it."""

from __future__ import annotations

from loraplex.engine.messages import LoadTimes, Started
from loraplex.platform import use_log
from loraplex.platform.use_log import Use, UseLog

TIMES = LoadTimes(0.02, 0.01, 0.04)


def test_a_tenants_numbers_are_its_own():
    """Requests in hand, the last use, and the loads that they waited for."""
    log = UseLog()
    log.begin("acme", {"a", "b"})
    log.begin("acme", {"a"})
    assert (log.of("acme", "a").running, log.of("acme", "b").running) == (2, 1)

    log.end("acme", {"a"}, Started("r", 0.0, 0.04, {"a": TIMES}))
    log.end("acme", {"a", "b"}, None)

    use = log.of("acme", "a")
    assert (use.running, use.loads, use.last_load) == (0, 1, TIMES)
    assert use.last_used_at is not None
    assert (log.of("acme", "b").loads, log.of("globex", "a")) == (0, Use(told="disk"))


def test_a_tenant_is_told_of_no_rise_that_it_has_not_caused():
    """Whoever else brings the same bytes back to the device."""
    log = UseLog()
    assert log.tell("globex", "a", "device") == "disk"
    log.touch("globex", "a")
    seen = [log.tell("globex", "a", tier) for tier in ("disk", "host", "device", "host", "device", "disk", "device")]
    assert seen == ["disk", "host", "device", "host", "host", "disk", "disk"]

    log.begin("globex", {"a"})
    assert log.tell("globex", "a", "device") == "device"
    log.evicted("globex", "a")
    assert log.tell("globex", "a", "device") == "disk"


def test_what_is_remembered_is_bounded(monkeypatch):
    """The least recently used goes first, but none that a request has."""
    monkeypatch.setattr(use_log, "MAX_ENTRIES", 2)
    log = UseLog()
    log.begin("acme", {"running"})
    for digest in ("a", "b", "c"):
        log.touch("acme", digest)
    assert log.of("acme", "running").running == 1
    assert [log.tell("acme", digest, "device") for digest in "abc"] == ["disk", "disk", "device"]
