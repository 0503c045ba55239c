"""The bodies of usage: sums, requests, what was said in them, and for how long that is kept."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct

from loraplex.platform.ledger.queries import UsageEntry, UsageSum

MAX_CONTENT_DAYS = 365


class UsageSums(Struct, frozen=True):
    """`start`, `end`: of the time that was asked for. Of each step and group there is one sum for each currency."""

    start: datetime
    end: datetime
    data: list[UsageSum]


class UsagePage(Struct, frozen=True):
    """`next`: give it as `after` to get the next page; null on the last one."""

    data: list[UsageEntry]
    next: str | None


class RequestContents(Struct, frozen=True):
    """`request`: what was sent to the model, as JSON. `answer`: its text. Each is cut where it is too long."""

    request: str
    answer: str


class ContentRetention(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`days`: how long what requests ask and are answered is kept; null: not at all."""

    days: Annotated[int, Meta(ge=1, le=MAX_CONTENT_DAYS)] | None


class DeletedContents(Struct, frozen=True):
    """`deleted`: of how many requests."""

    deleted: int
