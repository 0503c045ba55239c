"""If-Match and If-None-Match on a resource that has a revision, whose ETag is the revision in quotes."""

from __future__ import annotations

from typing import Any

from litestar import Request

from loraplex.adapters.aliases import ABSENT
from loraplex.platform.errors import ApiError

PRECONDITIONED = {"preconditions": True}
"""For the `opt` of a handler that takes `expected_revision`, so that it is documented."""


def etag(revision: int) -> dict[str, str]:
    """The header of an answer that shows the resource at this revision."""
    return {"etag": f'"{revision}"'}


def expected_revision(request: Request[Any, Any, Any]) -> int | None:
    """The revision that the request is about: that of If-Match, ABSENT for `If-None-Match: *`, None without either.

    Raises ApiError 400 for anything else.
    """
    match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if match is None and none_match is None:
        return None
    if match is None and none_match == "*":
        return ABSENT
    revision = (match or "").removeprefix('"').removesuffix('"')
    if none_match is None and revision.isascii() and revision.isdigit() and 1 <= len(revision) <= 9:
        return int(revision)
    message = 'Send `If-Match: "<revision>"` with the ETag that you were given, or `If-None-Match: *` to create only.'
    raise ApiError(400, "invalid_precondition", message, param="If-Match")
