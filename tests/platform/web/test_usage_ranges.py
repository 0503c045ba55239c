"""Ranges of time that pages of usage show."""

from __future__ import annotations

from datetime import UTC, datetime

from loraplex.platform.web.usage_ranges import span


def test_ranges_are_whole_hours_and_days() -> None:
    """With the one that runs, so that sums by the hour are of exactly that time."""
    now = datetime(2026, 3, 1, 15, 59, 59, tzinfo=UTC)
    assert span("24h", now) == (datetime(2026, 2, 28, 16, tzinfo=UTC), datetime(2026, 3, 1, 16, tzinfo=UTC))
    assert span("30d", now) == (datetime(2026, 1, 31, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC))
    assert span("custom", now, "2026-02-27", "2026-02-28")[1] == datetime(2026, 3, 1, tzinfo=UTC)
