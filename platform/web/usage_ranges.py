"""Ranges of time that pages of usage can show: whole hours or days of UTC, with the one that runs. Knows the clock's
time as it is told."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal

from loraplex.platform.errors import ApiError

Range = Literal["24h", "7d", "30d", "custom"]

LONGEST = timedelta(days=366)

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def span(range: Range, now: datetime, first: str = "", last: str = "") -> tuple[datetime, datetime]:
    """Its start, and its end, which is not in it. first, last: days of a custom range, as ISO 8601 has them; without
    them it is a week. Raises ApiError."""
    hour = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    if range == "24h":
        return hour - timedelta(days=1), hour
    if range == "7d":
        return hour - timedelta(days=7), hour
    today = datetime.combine(now.date(), time(), UTC)
    if range == "30d":
        return today - timedelta(days=29), today + timedelta(days=1)
    end = (_day(last, "end") if last else today) + timedelta(days=1)
    start = _day(first, "start") if first else end - timedelta(days=7)
    if start >= end:
        raise ApiError(400, "invalid_value", "The first day is after the last one.", param="start")
    if end - start > LONGEST:
        raise ApiError(400, "invalid_value", f"A range has at most {LONGEST.days} days.", param="start")
    return start, end


def _day(text: str, param: str) -> datetime:
    try:
        if _DATE.fullmatch(text) and "1970" < text < "9999":
            return datetime.combine(date.fromisoformat(text), time(), UTC)
    except ValueError:
        pass
    raise ApiError(400, "invalid_value", f"'{param}' is no day; write it as 2026-01-31.", param=param)
