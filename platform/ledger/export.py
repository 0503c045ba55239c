"""Usage as CSV and as JSON, written while it is read. Knows no query and no HTTP."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Iterable
from dataclasses import fields
from datetime import datetime
from typing import Any, Literal

import msgspec

from loraplex.platform.ledger.queries import UsageEntry, UsageSum

Format = Literal["csv", "json"]

MEDIA_TYPES: dict[Format, str] = {"csv": "text/csv; charset=utf-8", "json": "application/json"}

FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What a cell of a spreadsheet begins with that is a formula in it: clients choose names, so none of ours may."""


async def exported(
    format: Format, kind: type[UsageEntry] | type[UsageSum], pages: AsyncIterator[list[Any]]
) -> AsyncIterator[bytes]:
    """JSON is a list of objects; CSV has a line of column names first, and moments as ISO 8601 has them."""
    columns = [field.name for field in fields(kind)]
    if format == "csv":
        yield _lines([columns])
        async for page in pages:
            yield _lines([_cell(getattr(entry, column)) for column in columns] for entry in page)
        return
    separator = b"["
    async for page in pages:
        for_page = msgspec.json.encode(page)[1:-1]
        yield separator + for_page
        separator = b",\n"
    yield b"]" if separator != b"[" else b"[]"


def _lines(rows: Iterable[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """A text that would be a formula gets an apostrophe before it, by which spreadsheets take it for text."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat()
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULAS) else text
