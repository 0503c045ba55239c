"""What operators do with one API key that there is: look at it, change it, rotate it. `admin` mounts it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from litestar import Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import audited
from loraplex.platform.key_terms import KeyInfo
from loraplex.platform.manage.preconditions import PRECONDITIONED, etag, expected_revision
from loraplex.platform.manage.tenant_schemas import ChangeKey, KeyView, RotateKey
from loraplex.platform.services import Services

PATH = "/keys/{key_id:str}"


@get(PATH)
async def get_key(key_id: FromPath[str], services: NamedDependency[Services]) -> Response[KeyView]:
    """One key, with the ETag of its revision; never its secret."""
    return _shown(await services.tenants.get_key(key_id))


@patch(PATH, opt=PRECONDITIONED | audited("key.change"))
async def change_key(
    key_id: FromPath[str],
    data: JSONBody[ChangeKey],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    by: NamedDependency[Actor],
) -> Response[KeyView]:
    """Change what a key may do, its name or its end: at once on this server, within 2 seconds on others.

    With `If-Match` only from that revision; else 412 with code `key_changed`. A key that was revoked is a 409.
    """
    return _shown(await services.key_changes.change(key_id, data.apply, expected_revision(request), by=by))


@post(PATH + "/rotate", status_code=200, opt=PRECONDITIONED | audited("key.rotate"))
async def rotate_key(
    key_id: FromPath[str],
    data: JSONBody[RotateKey],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    by: NamedDependency[Actor],
) -> Response[KeyView]:
    """Give a key another secret, shown here and never again. The old one holds for `overlap_seconds` more.

    While one from an earlier rotation holds still this is a 409, code `rotation_under_way`, but for an overlap of 0,
    which ends both. `If-Match` as for a change.
    """
    overlap = timedelta(seconds=data.overlap_seconds)
    return _shown(*await services.key_changes.rotate(key_id, overlap, expected_revision(request), by=by))


@delete(PATH + "/old-secret", status_code=200, opt=PRECONDITIONED | audited("key.end_old_secret"))
async def end_old_secret(
    key_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    by: NamedDependency[Actor],
) -> Response[KeyView]:
    """End the secret from before the last rotation now; fine where there is none. `If-Match` as for a change."""
    return _shown(await services.key_changes.end_old_secret(key_id, expected_revision(request), by=by))


def _shown(key: KeyInfo, secret: str | None = None) -> Response[KeyView]:
    return Response(KeyView.of(key, secret), headers=etag(key.revision))


KEY_HANDLERS = [get_key, change_key, rotate_key, end_old_secret]
